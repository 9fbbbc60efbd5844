"""Trains the judges: `training/judge strict` and `training/judge known`.

`strict` learns from picture sets that mini never sees, `known` from all sets. A judge's own figures on fresh
composites stand beside every figure of mini, for no picture can be recognised better than a real one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from torch import Tensor

from training import checkpoints, classifier, formats, work
from training.classifier import SIDE, Judge
from training.pictures import DRAWING, SETS
from training.render import files, read_records
from training.views import Spoiler, Viewer, Views, join, names

#: What each judge learns from, and how much the style counts beside the label.
UNSEEN = tuple(name for name in SETS if name not in DRAWING)
SCHOOLS: dict[str, tuple[tuple[str, ...], float]] = {"strict": (UNSEEN, 0.0), "known": (tuple(SETS), 0.2)}
PUBLISHED = Path(__file__).parent / "judges"
_POOL = 8192  # views kept to draw from
_FRESH = 8  # of them replaced at each step
_SMOOTHING = 0.1
_DECAY = 0.05
_SMALL = 64  # px of the side in the first part of the training, which then takes half the time
_SMALL_UNTIL = 0.65
_RISE = 0.02  # share of the training in which the learning rate rises
_CHECKED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`samples` decide the learning rate; `minutes` of computing end a call before, to be resumed."""

    name: str
    samples: int
    minutes: float
    batch: int
    rate: float
    device: str
    seed: int

    @property
    def state(self) -> Path:
        """Where the run resumes."""
        return folder() / f"{self.name}.state"


def folder() -> Path:
    """Where judges are trained."""
    return work.folder() / "judge"


def path(name: str) -> Path:
    """The judge `strict` or `known`, when it is trained."""
    return folder() / f"{name}.safetensors"


def at_hand(name: str) -> Path:
    """The one trained here, else the one that graded the published figures."""
    return path(name) if path(name).is_file() else PUBLISHED / f"{name}.safetensors"


class Pool:
    """Views to draw from, a few of them replaced each time: painting takes longer than looking."""

    def __init__(self, viewer: Viewer, size: int) -> None:
        self._viewer, self._size = viewer, size
        self._views = viewer.draw(_FRESH)
        self._oldest = 0

    def draw(self, count: int, chance: torch.Generator) -> Views:
        """`count` of the pool at random."""
        self._replace(self._viewer.draw(_FRESH if len(self._views.labels) >= self._size else count))
        return self._views.at(torch.randint(len(self._views.labels), (count,), generator=chance))

    def _replace(self, new: Views) -> None:
        if len(self._views.labels) < self._size:
            self._views = join([self._views, new])
            return
        rows = (self._oldest + torch.arange(len(new.labels))) % self._size
        self._oldest = (self._oldest + len(new.labels)) % self._size
        for kept, fresh in zip(self._views, new, strict=True):
            kept[rows] = fresh


class School:
    """One judge in training."""

    def __init__(self, plan: Plan) -> None:
        sets, self._style_weight = SCHOOLS[plan.name]
        self._plan = plan
        records = [record for chosen in SETS if chosen in sets for record in read_records(files(chosen).records)]
        torch.manual_seed(plan.seed)
        self.judge = classifier.build(*names(records))
        self._network = self.judge.network.to(plan.device)
        decayed = [value for value in self._network.parameters() if value.dim() > 1]
        rest = [value for value in self._network.parameters() if value.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": _DECAY}, {"params": rest, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, plan.rate, betas=(0.9, 0.98))
        parts: dict[str, checkpoints.Stateful] = {"network": self._network, "optimizer": self._optimizer}
        self._parts = parts
        self.done = checkpoints.resume(plan.state, parts, plan.device)

    def run(self) -> None:
        """Until the plan's samples or minutes are used up."""
        plan, told, average = self._plan, time.monotonic(), None
        pool = Pool(Viewer(SCHOOLS[plan.name][0], plan.seed + self.done, plan.device), _POOL)
        spoiler = Spoiler(plan.seed + self.done)
        chance = torch.Generator().manual_seed(plan.seed + self.done)
        for _ in self._steps():
            loss = self._step(pool.draw(plan.batch, chance), spoiler)
            average = loss if average is None else 0.98 * average + 0.02 * loss
            self.done += plan.batch
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{plan.name}: {self.done} views, loss {average:.3f}", flush=True)
                checkpoints.save(plan.state, self._parts, self.done)
        checkpoints.save(plan.state, self._parts, self.done)
        classifier.save(self.judge, path(plan.name))

    def _steps(self) -> Iterator[None]:
        started = time.process_time()
        while self.done < self._plan.samples and time.process_time() - started < 60 * self._plan.minutes:
            yield

    def _step(self, views: Views, spoiler: Spoiler) -> float:
        share = self.done / self._plan.samples
        rate = self._plan.rate * min(1.0, share / _RISE + 0.01, 0.5 + 0.5 * math.cos(math.pi * share))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        pictures = spoiler.spoil(views.pictures, _SMALL if share < _SMALL_UNTIL else SIDE)
        loss = self._loss(pictures.contiguous(memory_format=torch.channels_last), views)
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.item()

    def _loss(self, pictures: Tensor, views: Views) -> Tensor:
        with formats.computing(pictures.device.type):
            opinion = self._network(pictures)
        device = pictures.device
        loss = F.cross_entropy(opinion.labels.float(), views.labels.to(device), label_smoothing=_SMOOTHING)
        return loss + self._style_weight * F.cross_entropy(opinion.styles.float(), views.styles.to(device))


def check(judge: Judge, sets: tuple[str, ...], seed: int) -> str:
    """Top-1 and top-5 on fresh, unspoilt views of `sets`, of the things that the judge knows."""
    viewer = Viewer(sets, seed)
    views = viewer.draw(_CHECKED)
    numbers = {label: number for number, label in enumerate(judge.labels)}
    wanted = torch.tensor([numbers.get(viewer.labels[label], -1) for label in views.labels.tolist()])
    views, wanted = views.at(wanted >= 0), wanted[wanted >= 0]
    best = judge.look(views.pictures.float() / 127.5 - 1).labels.topk(5, dim=1).indices
    right = best == wanted[:, None]
    return f"top-1 {right[:, 0].float().mean():.1%}, top-5 {right.any(1).float().mean():.1%} of {len(wanted)} views"


def main(
    name: Annotated[str, typer.Argument(help="strict or known.")],
    samples: Annotated[int, typer.Option(help="Views to train on.")] = 600_000,
    minutes: Annotated[float, typer.Option(help="Stop after so much computing; the same command resumes.")] = 60,
    batch: Annotated[int, typer.Option(help="Views a step.")] = 64,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option(help="Of weights and views.")] = 0,
) -> None:
    """Train a judge; the same command resumes."""
    if name not in SCHOOLS:
        raise typer.BadParameter(f"no such judge: {name}; there are {', '.join(SCHOOLS)}")
    torch.set_num_threads(threads)
    school = School(Plan(name=name, samples=samples, minutes=minutes, batch=batch, rate=rate, device=device, seed=seed))
    school.run()
    judge = classifier.load(path(name))
    print(f"{name}: {school.done} views, {len(judge.labels)} labels, {path(name).stat().st_size / 1e6:.2f} MB")
    print(f"sets it learnt from: {check(judge, SCHOOLS[name][0], seed + 1_000_003)}")
    for drawn in DRAWING:
        print(f"{drawn}: {check(judge, (drawn,), seed + 1_000_003)}")


if __name__ == "__main__":
    typer.run(main)
