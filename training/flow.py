"""The rectified flow: transformer and text encoders learn to turn noise into the latents of painted pictures.

x(s) = (1 - s) x0 + s e, and the network predicts e - x0 (arXiv 2209.03003), as FLUX.1 does. The curriculum and the
canvases follow from how many pictures were seen; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from training import checkpoints, curve, formats, latents, ranks, results, work
from training.bank import Bank, Batch, Painting, Source, Supply, read
from training.canvases import LARGE, SMALL, SQUARE, TOKEN, canvases
from training.looks import measure
from training.masters import Masters
from training.network import SHAPES, Illustrator, Shape, build_transformer
from training.optimizers import Optimizers
from training.painter import Painter
from training.ranks import Rank
from training.render import load_sprites
from training.scenes import SceneSampler
from training.stream import GENERATOR_SETS
from training.tokenizers import T5_LENGTH, load_tokenizers

#: Share of captions left out, so that the network also learns what pictures are like without one.
_SILENT = 0.1
#: Largest guidance that is taught, and how much each step above 1 adds to the scale of classifier-free guidance: the
#: API's usual 3 is a scale of 1.8, beyond which colours burn out.
_MOST_GUIDANCE = 6.0
_SCALE_PER_GUIDANCE = 0.4
#: Mean of the logit of the noise level: most is learnt where little of the picture is seen.
_LOGIT_MEAN = 0.4
#: Share of steps at which prompts are cut to so many tokens. 96 % have no more; half as much text costs a third less.
_HURRIED, _SHORT = 0.75, 16
_SCENES_APART = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Up to `until` pictures seen: the curriculum's stage, and the canvas areas with their shares.

    `guided` is the share of pictures that teach the guidance embedding.
    """

    until: int
    stage: int
    areas: Mapping[int, float]
    guided: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A machine's worth of training. `batch` is per step over all processes, for the small canvases."""

    shape: Shape
    phases: tuple[Phase, ...]
    settle: float
    batch: int
    bank: int
    reuse: int


PRESETS = {
    "cpu": Preset(
        shape=SHAPES["cpu"],
        phases=(
            Phase(until=150_000, stage=1, areas={SMALL: 1.0}),
            Phase(until=270_000, stage=2, areas={SMALL: 1.0}),
            Phase(until=1_620_000, stage=3, areas={SMALL: 1.0}),
            Phase(until=1_780_000, stage=3, areas={SMALL: 1.0}, guided=0.4),
            Phase(until=1_840_000, stage=4, areas={SMALL: 1.0}),
            Phase(until=2_000_000, stage=5, areas={SMALL: 1.0}),
            Phase(until=2_300_000, stage=6, areas={SMALL: 1.0}),
            Phase(until=2_450_000, stage=6, areas={SMALL: 1.0}, guided=0.4),
        ),
        settle=0.15,
        batch=128,
        bank=4096,
        reuse=5,
    ),
    "gpu": Preset(
        shape=SHAPES["gpu"],
        phases=(
            Phase(until=1_500_000, stage=1, areas={SMALL: 1.0}),
            Phase(until=3_000_000, stage=2, areas={SMALL: 1.0}),
            Phase(until=6_000_000, stage=3, areas={SMALL: 1.0}),
            Phase(until=10_500_000, stage=3, areas={SMALL: 0.2, LARGE: 0.8}),
            Phase(until=12_000_000, stage=3, areas={SMALL: 0.2, LARGE: 0.8}, guided=0.4),
        ),
        settle=0.2,
        batch=2048,
        bank=65_536,
        reuse=6,
    ),
    "tiny": Preset(
        shape=SHAPES["tiny"],
        phases=(
            Phase(until=400, stage=1, areas={SMALL: 1.0}),
            Phase(until=800, stage=2, areas={SMALL: 1.0}),
            Phase(until=1200, stage=3, areas={SMALL: 1.0}),
            Phase(until=2000, stage=3, areas={SMALL: 0.5, LARGE: 0.5}, guided=0.5),
        ),
        settle=0.2,
        batch=32,
        bank=64,
        reuse=4,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One call of the command."""

    preset: Preset
    minutes: float
    rate: float
    device: str
    compiled: bool
    seed: int
    folder: Path


def tokens(area: int) -> int:
    """How many tokens a picture of this area takes with its text: a step has as many for every canvas."""
    return area // TOKEN**2 + T5_LENGTH


def _block_matrices(masters: Masters) -> set[str]:
    """The weights of the blocks of all three networks, without those that modulate."""
    inside = ("blocks.", ".layers.", ".block.")
    return {
        name
        for name, value in masters.parameters().items()
        if value.dim() == 2 and any(part in name for part in inside) and "norm" not in name
    }


class Supplies(Protocol):
    """Who paints for the banks."""

    def supply(self, stage: int, canvas: tuple[int, int], first: int) -> Supply:
        """The pictures of the stage's scenes `first` and following, on a canvas of (height, width)."""


class Trainer:
    """One process's share of a run. It paints itself, unless others supply its pictures."""

    def __init__(self, rank: Rank, plan: Plan, supplies: Supplies | None = None) -> None:
        self._rank = rank
        self._plan = plan
        self._deadline = time.monotonic() + 60 * plan.minutes
        self._network = load_start(plan.preset.shape).to(plan.device)
        dtype = formats.fast(plan.device)
        self._teacher = copy.deepcopy(self._network).to(dtype).requires_grad_(requires_grad=False)
        self._masters = Masters(self._network, dtype)
        if plan.compiled:
            self._network.compile_blocks()
        self._optimizers = Optimizers(self._masters, _block_matrices(self._masters), plan.rate, rank)
        self._parts: dict[str, checkpoints.Stateful] = {"masters": self._masters, "optimizers": self._optimizers}
        self._state = plan.folder / "flow.state"
        self.done = checkpoints.resume(self._state, self._parts, plan.device)
        self._cold = 0
        self._chance = self._chance_from(plan.seed + 7919 * rank.index + self.done)
        self._banks: dict[tuple[int, tuple[int, int]], Bank] = {}
        self._sources = Sources(plan.seed, plan.device)
        self._supplies: Supplies = supplies or self._sources
        self._silence = read(self._sources.tokenizers, [""]).to(plan.device)

    def restart(self, weights: Mapping[str, Tensor], done: int) -> None:
        """Go on with averaged weights alone: the optimizers are new, so the rate rises again."""
        self._masters.take(weights)
        self.done = self._cold = done

    def run(self, kept: Callable[[], None] = lambda: None) -> None:
        """Until the plan's pictures or minutes are used up; calls `kept` after each save."""
        started, told, average = time.monotonic(), time.monotonic(), None
        start = self.done
        while self.done < self._plan.preset.phases[-1].until and time.monotonic() < self._deadline:
            loss = self.step()
            average = loss if average is None else 0.98 * average + 0.02 * loss
            if self._rank.leader and time.monotonic() - told > 120:
                told = time.monotonic()
                speed = (self.done - start) / (told - started)
                unseen = self.check()
                print(f"flow: {self.done} pictures, loss {average:.4f}, unseen {unseen:.4f}, {speed:.0f}/s", flush=True)
                curve.note(self._plan.folder, self.done, average, unseen)
                self.save()
                kept()
        if self._rank.leader:
            self.save()
            kept()
            print(f"flow: {self.done} pictures, unseen {self.check():.4f}", flush=True)

    def step(self) -> float:
        """One step of both optimizers over all processes' pictures; returns this process's loss."""
        preset, phase = self._plan.preset, self._phase()
        area, canvas = self._canvas(phase)
        count = max(8, preset.batch * tokens(SMALL) // tokens(area) // self._rank.size)
        if phase.guided:
            self._masters.teach(self._teacher)
        batch = self._bank(phase.stage, canvas).draw(count, max(1, count // preset.reuse), self._chance)
        if self._dice(1).random() < _HURRIED:
            batch = Batch(batch.latents, batch.texts.cut(_SHORT), batch.grid)
        loss = self._loss(self._network, batch, self._chance, phase.guided)
        torch.autograd.backward(loss)
        masters = self._masters
        masters.gather()
        self._rank.average(masters.gradient)
        norm = masters.gradient.norm()
        masters.gradient *= (1.0 / norm.clamp(min=1.0)).nan_to_num(0.0)
        self._optimizers.step(self._rate())
        masters.publish()
        masters.follow(min(0.9995, 1 - 10 / (100 + self.done / preset.batch)))
        self.done += count * self._rank.size
        return loss.item()

    def save(self) -> None:
        """The state to resume from, and the averaged weights to draw with."""
        checkpoints.save(self._state, self._parts, self.done)
        checkpoints.save_average(self._plan.folder, self.averages(), self.done)

    def averages(self) -> Mapping[str, Tensor]:
        """The averaged weights by name, float32."""
        return self._masters.averages()

    @torch.no_grad()
    def check(self) -> float:
        """Loss of the averaged weights, without guidance, on scenes that are never trained on."""
        self._masters.teach(self._teacher)
        batch = self._sources.at(3, apart=True).make(0, 256, SQUARE).to(self._plan.device)
        loss = self._loss(self._teacher, batch, self._chance_from(0))
        return loss.item()

    def _loss(
        self,
        network: Illustrator,
        batch: Batch,
        chance: torch.Generator,
        guided: float = 0.0,
    ) -> Tensor:
        count, device = len(batch.latents), self._plan.device
        sigmas = _sigmas(count, chance, device)
        noise = torch.randn(batch.latents.shape, generator=chance, device=device)
        guidance = torch.ones(count, device=device)
        spoken = torch.rand(count, generator=chance, device=device) >= _SILENT
        silence = self._silence.cut(batch.texts.t5.shape[1])
        texts = batch.texts.where(spoken, silence)
        clean = batch.latents.float()
        mixed = clean + sigmas[:, None, None] * (noise - clean)
        target = noise - clean
        if guided:
            rows = slice(int(count * guided))
            guidance[rows] += (_MOST_GUIDANCE - 1) * torch.rand(rows.stop, generator=chance, device=device)
            seen = Batch(mixed[rows], texts.rows(rows), batch.grid)
            target[rows] += self._towards_text(seen, sigmas[rows], guidance[rows])
        return F.mse_loss(network(mixed, sigmas, guidance, texts, batch.grid), target)

    @torch.no_grad()
    def _towards_text(self, seen: Batch, sigmas: Tensor, guidance: Tensor) -> Tensor:
        """What guidance adds to the velocity, by the averaged network itself without any (arXiv 2502.12154)."""
        told, untold = (
            self._teacher(seen.latents, sigmas, torch.ones_like(guidance), texts, seen.grid)
            for texts in (seen.texts, self._silence.cut(seen.texts.t5.shape[1]).repeat(len(guidance)))
        )
        added: Tensor = _SCALE_PER_GUIDANCE * (guidance - 1)[:, None, None] * (told - untold)
        return added

    def _chance_from(self, seed: int) -> torch.Generator:
        return torch.Generator(self._plan.device).manual_seed(seed)

    def _phase(self) -> Phase:
        phases = self._plan.preset.phases
        return next((phase for phase in phases if self.done < phase.until), phases[-1])

    def _dice(self, number: int) -> np.random.Generator:
        """The same on all processes: from the pictures seen."""
        return np.random.default_rng((self._plan.seed, self.done, number))

    def _canvas(self, phase: Phase) -> tuple[int, tuple[int, int]]:
        chance = self._dice(0)
        areas = sorted(phase.areas)
        area = areas[chance.choice(len(areas), p=[phase.areas[area] for area in areas])]
        choices = [SQUARE] if phase.stage < 3 else list(canvases(area))
        square = chance.random() < 0.4
        return area, choices[0] if square else choices[chance.integers(len(choices))]

    def _bank(self, stage: int, canvas: tuple[int, int]) -> Bank:
        key = (stage, canvas)
        if key not in self._banks:
            self._banks = {known: bank for known, bank in self._banks.items() if known[0] == stage}
            preset = self._plan.preset
            size = max(512, preset.bank * SMALL // (canvas[0] * canvas[1])) // self._rank.size
            first = _SCENES_APART * (1 + self._rank.index) + self.done * 4
            self._banks[key] = Bank(self._supplies.supply(stage, canvas, first), size, self._plan.device)
        return self._banks[key]

    def _rate(self) -> float:
        """Rises over 100 steps, stays, and falls to nothing over the last part of the plan."""
        preset = self._plan.preset
        left = 1 - self.done / preset.phases[-1].until
        return min(1.0, (1 + (self.done - self._cold) / preset.batch) / 100, max(0.01, left / preset.settle))


class Sources:
    """Everything a picture is made from; sources of different stages share the sprites."""

    def __init__(self, seed: int, device: str) -> None:
        sprites, self._records = load_sprites(GENERATOR_SETS)
        self._looks = measure(sprites)
        self._painter = Painter(sprites, device)
        self._code = latents.load().to(device)
        self._seed = seed
        self.tokenizers = load_tokenizers(work.folder() / "text")

    def at(self, stage: int, *, apart: bool = False) -> Source:
        """The source of a stage; `apart` gives scenes of another seed, for checking."""
        sampler = SceneSampler(self._records, stage=stage, seed=self._seed + 99 * apart, looks=self._looks)
        return Source(sampler=sampler, painter=self._painter, code=self._code, tokenizers=self.tokenizers)

    def supply(self, stage: int, canvas: tuple[int, int], first: int) -> Painting:
        """Paints when asked."""
        return Painting(self.at(stage), canvas, first)


def load_start(shape: Shape) -> Illustrator:
    """The network before its first step: started text encoders, an identity for a transformer."""
    folder = work.folder() / "text"
    clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, attn_implementation="eager")
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(0)
    transformer = build_transformer(shape, t5.config.d_model, clip.config.hidden_size)
    return Illustrator(clip, t5, transformer)


def _sigmas(count: int, chance: torch.Generator, device: str) -> Tensor:
    """Noise levels with normal logits, spread evenly over a batch, so that its loss varies less (arXiv 2107.00630)."""
    shifted = torch.arange(count, device=device) + torch.rand(1, generator=chance, device=device)
    even = shifted[torch.randperm(count, generator=chance, device=device)] / count
    return torch.sigmoid(torch.special.ndtri(even.clamp(1e-4, 1 - 1e-4)) + _LOGIT_MEAN)


def begin(rank: Rank, plan: Plan) -> Trainer:
    """Where the run was, or with the weights that `training/adopt` left for it."""
    trainer = Trainer(rank, plan)
    if results.are_in(plan.folder) and trainer.done < (told := results.facts(plan.folder)).done:
        trainer.restart(results.read(plan.folder), told.done)
    return trainer


def _work(rank: Rank, plan: Plan) -> None:
    begin(rank, plan).run()


def command(
    preset: Annotated[
        str, typer.Option(help="cpu or gpu: size of the network and of the run; tiny tries the commands out.")
    ] = "cpu",
    minutes: Annotated[float, typer.Option(help="Stop after this long; the same command resumes.")] = 9,
    processes: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[bool, typer.Option(help="Compile the blocks; needs a C++ compiler.")] = True,
    name: Annotated[str, typer.Option(help="Folder of the run, inside the work folder.")] = "flow",
    seed: int = 0,
) -> None:
    """Train the transformer and the text encoders; the same command resumes."""
    plan = Plan(
        preset=PRESETS[preset],
        minutes=minutes,
        rate=rate,
        device=device,
        compiled=compiled,
        seed=seed,
        folder=work.folder() / name,
    )
    plan.folder.mkdir(exist_ok=True)
    ranks.run(_work, plan, processes)


if __name__ == "__main__":
    typer.run(command)
