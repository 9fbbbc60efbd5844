"""The autoencoder of mini, AutoencoderTiny with factor 64: it learns to draw and to read the latents' code.

The code is fixed beforehand (training/latents.py), so the two halves learn apart from each other, beside or after
the flow: the decoder turns code, made a little noisy, into pictures at full resolution, sharper than the linear
inverse; the encoder imitates the code.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from training import checkpoints, formats, latents, ranks, work
from training.canvases import SHRUNK
from training.latents import Code
from training.masters import Masters
from training.optimizers import Optimizers
from training.ranks import Rank
from training.stream import GENERATOR_SETS, Stream

WIDTH = 32
#: Residual blocks of each level, the coarsest first.
BLOCKS = (4, 4, 3, 2, 1, 0, 0)
#: The code is shrunk by this on its way in: DecoderTiny squeezes its input into -3 ... 3.
SHRINK = 0.6
#: Largest deviation of the noise that the decoder learns to bear: what is drawn is never quite on the code's spot.
NOISE = 0.15
_SIDE = 256
#: Sides of the pictures that pieces are cut from, with their shares: both native areas.
_PICTURES = {512: 0.8, 1024: 0.2}
_PIECES = 4
#: Steps that are enough to tell how fast a machine is.
_PACED = 10


def build() -> AutoencoderTiny:
    """An untrained network; latents come out, and go in after the pipeline's scaling, as code times `SHRINK`."""
    levels = len(BLOCKS)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * levels,
        decoder_block_out_channels=(WIDTH,) * levels,
        num_encoder_blocks=BLOCKS[::-1],
        num_decoder_blocks=BLOCKS,
        latent_channels=latents.CHANNELS,
        scaling_factor=1 / SHRINK,
        shift_factor=0.0,
    )


@torch.no_grad()
def start(network: AutoencoderTiny, code: Code) -> AutoencoderTiny:
    """Let the decoder begin by painting each latent's mean colour.

    Its 32 channels carry the 16 latents and their negatives (what is left of them after a ReLU) unchanged through all
    levels, the blocks add nothing yet, and the last layer reads the colours. From a random start it took thousands of
    steps to find the third colour.
    """
    layers = network.decoder.layers
    signs = torch.cat([torch.eye(latents.CHANNELS), -torch.eye(latents.CHANNELS)])
    _set_centre(layers[0], signs)
    for block in network.decoder.modules():
        if isinstance(block, AutoencoderTinyBlock):
            nn.init.zeros_(block.conv[4].weight)
            nn.init.zeros_(block.conv[4].bias)
    for layer in layers[1:-1]:
        if isinstance(layer, nn.Conv2d):
            _set_centre(layer, torch.eye(WIDTH))
    colours = code.back.view(latents.CHANNELS, 3, -1).mean(dim=2).T / (2 * SHRINK)
    _set_centre(layers[-1], colours @ signs.T)
    layers[-1].bias.copy_(code.mean.view(3, -1).mean(dim=1) / 2 + 0.5)
    return network


def _set_centre(layer: nn.Conv2d, matrix: Tensor) -> None:
    """A convolution that applies `matrix` (out, in) to each pixel, and little else: the rest keeps a tenth."""
    layer.weight *= 0.1
    layer.weight[:, :, 1, 1] = matrix
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def code_of(code: Code, pictures: Tensor) -> Tensor:
    """Full-resolution pictures (B, 3, H, W) in -1 ... 1 -> (B, 16, H/64, W/64)."""
    return code.encode(F.avg_pool2d(pictures, SHRUNK))


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 of the values, L1 of their differences to the neighbours at two scales: flat areas and sharp edges."""
    loss = F.l1_loss(drawn, target) + F.mse_loss(drawn, target)
    for scale in (1, 2):
        a, b = (F.avg_pool2d(picture, scale) for picture in (drawn, target))
        loss = loss + F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))
    return loss


def psnr(drawn: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1 ... 1."""
    return -10 * math.log10(F.mse_loss(drawn.clamp(-1, 1), target).item() / 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`samples` over all processes decide the learning rate; `minutes` end a run before, to be resumed."""

    samples: int
    minutes: float
    half: Literal["decoder", "encoder"]
    batch: int
    rate: float
    device: str
    seed: int
    folder: Path


class Trainer:
    """One process's share of the training of one half."""

    def __init__(self, rank: Rank, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self._rank = rank
        self._plan = plan
        self._code = latents.load().to(plan.device)
        self._half: nn.Module = getattr(start(build(), latents.load()), plan.half).to(plan.device)
        self._averaged = copy.deepcopy(self._half).requires_grad_(requires_grad=False)
        self._masters = Masters(self._half, torch.float32)
        self._optimizers = Optimizers(self._masters, _kernels(self._masters), plan.rate, rank)
        self._parts: dict[str, checkpoints.Stateful] = {"masters": self._masters, "optimizers": self._optimizers}
        self.done = checkpoints.resume(self._state, self._parts, plan.device)
        seed = plan.seed + 1000 * rank.index + self.done
        self._chance = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._stream = Stream(GENERATOR_SETS, seed, plan.device)
        unseen = Stream(GENERATOR_SETS, plan.seed + 999_999, plan.device)
        self._unseen = {side: unseen.draw(4 * 1024**2 // side**2, (side, side), (side, side)) for side in _PICTURES}

    @property
    def _state(self) -> Path:
        return self._plan.folder / f"{self._plan.half}.state"

    def run(self) -> None:
        """Until the plan's samples or minutes are used up."""
        started = told = time.monotonic()
        while self.done < self._plan.samples and time.monotonic() - started < 60 * self._plan.minutes:
            self.step()
            if self._rank.leader and time.monotonic() - told > 120:
                told = time.monotonic()
                print(f"{self._plan.half}: {self.done} pieces, {self.check()}", flush=True)
                self.save()
        if self._rank.leader:
            print(f"{self._plan.half}: {self.done} pieces, {self.check()}", flush=True)
            self.save()

    def fit(self, seconds: float) -> None:
        """Plan no more samples than fit into the seconds, by the speed of a few steps."""
        started = time.monotonic()
        self._steps(_PACED)
        warm, first = time.monotonic(), self.done
        self._steps(_PACED)
        now = time.monotonic()
        left = seconds - (now - started)
        fitting = self.done + int((self.done - first) / (now - warm) * max(0.0, left))
        self._plan = replace(self._plan, samples=min(self._plan.samples, fitting), minutes=left / 60)

    def _steps(self, count: int) -> None:
        """At most `count`, until the samples are used up; waits for the device."""
        for _ in range(count):
            if self.done < self._plan.samples:
                self.step()
        if self._plan.device != "cpu":
            torch.cuda.synchronize()

    def step(self) -> None:
        """One step of the optimizer."""
        plan, masters = self._plan, self._masters
        torch.autograd.backward(self._loss(self._pieces(plan.batch)))
        masters.gather()
        self._rank.average(masters.gradient)
        self._optimizers.step(_rate(self.done / plan.samples, self.done // plan.batch))
        masters.publish()
        masters.follow(min(0.999, 1 - 10 / (100 + self.done / plan.batch)))
        self.done += plan.batch * self._rank.size

    def save(self) -> None:
        """The state to resume from, and both halves as diffusers keeps them."""
        checkpoints.save(self._state, self._parts, self.done)
        self._masters.teach(self._averaged)
        folder = self._plan.folder
        whole = AutoencoderTiny.from_pretrained(folder) if (folder / "config.json").is_file() else build()
        getattr(whole, self._plan.half).load_state_dict(self._averaged.state_dict())
        whole.save_pretrained(folder)

    @torch.no_grad()
    def check(self) -> str:
        """Quality on pictures that are never trained on."""
        self._masters.teach(self._averaged)
        return "; ".join(f"{side}: {self._quality(pictures)}" for side, pictures in self._unseen.items())

    def _quality(self, pictures: Tensor) -> str:
        code = SHRINK * code_of(self._code, pictures)
        if self._plan.half == "encoder":
            error = F.mse_loss(self._averaged(pictures), code) / code.var()
            return f"explains {1 - error.item():.4f} of the code's variance"
        linear = F.interpolate(self._code.decode(code / SHRINK), scale_factor=SHRUNK, mode="bilinear")
        return f"{psnr(self._averaged(code), pictures):.2f} dB, linear {psnr(linear, pictures):.2f} dB"

    def _loss(self, pieces: Tensor) -> Tensor:
        code = SHRINK * code_of(self._code, pieces)
        if self._plan.half == "encoder":
            with formats.computing(pieces.device.type):
                read = self._half(pieces)
            return F.mse_loss(read.float(), code)
        amount = SHRINK * NOISE * torch.rand(len(code), 1, 1, 1, generator=self._noise)
        noisy = code + (amount * torch.randn(code.shape, generator=self._noise)).to(code)
        with formats.computing(pieces.device.type):
            drawn = self._half(noisy)
        return reconstruction_loss(drawn.float(), pieces)

    def _pieces(self, count: int) -> Tensor:
        """(count, 3, 256, 256), several of each painted picture, cut at the code's grid."""
        side = int(self._chance.choice(list(_PICTURES), p=list(_PICTURES.values())))
        pictures = self._stream.draw(count // _PIECES, (side, side), (side, side))
        step = SHRUNK * latents.PATCH
        places = step * self._chance.integers(0, (side - _SIDE) // step + 1, (count, 2))
        return torch.stack(
            [
                pictures[number // _PIECES, :, top : top + _SIDE, left : left + _SIDE]
                for number, (top, left) in enumerate(places)
            ]
        )


def _rate(share: float, steps: int) -> float:
    """Rises over the first 100 steps, then half a cosine down to 2 %."""
    return min(1.0, (steps + 1) / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))


def _kernels(masters: Masters) -> set[str]:
    """All convolutions but the first and the last, which see or make pictures and latents."""
    kernels = [name for name, value in masters.parameters().items() if value.dim() == 4]
    return set(kernels[1:-1])


def _work(rank: Rank, plan: Plan) -> None:
    Trainer(rank, plan).run()


def command(
    half: Annotated[Literal["decoder", "encoder"], typer.Argument(help="What to train.")],
    samples: Annotated[int, typer.Option(help="Pieces of pictures to train on, over all processes.")] = 300_000,
    minutes: Annotated[float, typer.Option(help="Stop after this long; the same command resumes.")] = 9,
    processes: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    batch: Annotated[int, typer.Option(help="Pieces a step and process, a multiple of 4.")] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train one half of the autoencoder; the same command resumes."""
    plan = Plan(
        half=half,
        samples=samples,
        minutes=minutes,
        batch=batch,
        rate=rate,
        device=device,
        seed=seed,
        folder=work.folder() / "vae",
    )
    plan.folder.mkdir(exist_ok=True)
    ranks.run(_work, plan, processes)


if __name__ == "__main__":
    typer.run(command)
