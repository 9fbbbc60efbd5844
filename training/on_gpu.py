"""All training that a GPU is for, in a few calls of some minutes: `python3 -m training.on_gpu --out FOLDER`.

Needs no network and no packages of pictures: it unpacks what `training/pack` wrote. Each call goes on where the one
before was, by the state in the work folder or, on another machine, by the results in `--resume` (weights alone: the
optimizers start anew). The curriculum is fitted to the minutes that are left, by the speed measured before. When the
flow is done, the autoencoder is trained. Results are written every two minutes; `training/collect` takes them home.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from msgspec.structs import replace as changed

from training import autoencoder, results, work
from training.canvases import SMALL
from training.feeders import Feeders
from training.flow import PRESETS, Phase, Plan, Preset, Trainer, tokens
from training.pack import PACKED, unpack
from training.ranks import Rank
from training.results import Facts

_ALONE = Rank(0, 1)
_HALVES: tuple[tuple[Literal["decoder", "encoder"], float], ...] = (("decoder", 0.75), ("encoder", 1.0))
#: Below this many seconds training a half is not worth its start.
_WORTHWHILE = 15.0
_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the command.

    `deadline` is of `time.monotonic`; `flow_minutes` are for the flow in all calls; `samples` is the most that each
    half of the autoencoder is trained on.
    """

    preset: str
    deadline: float
    flow_minutes: float
    samples: int
    out: Path
    device: str
    compiled: bool
    processes: int | None
    rate: float
    seed: int

    @property
    def seconds(self) -> float:
        """What is left."""
        return self.deadline - time.monotonic()

    @property
    def home(self) -> Path:
        """The flow's folder on this machine."""
        return work.folder() / "flow"


def train_flow(call: Call, before: Facts, resume: Path | None) -> None:
    """Train the flow until it is done or the call's time is up; results go to the flow's folder and to `out`."""
    seconds = 60 * (call.flow_minutes - before.minutes)
    plan = Plan(
        preset=fitted(PRESETS[call.preset], before, seconds),
        minutes=call.seconds / 60,
        rate=call.rate,
        device=call.device,
        compiled=call.compiled,
        seed=call.seed,
        folder=call.home,
    )
    with Feeders(call.seed, call.processes) as feeders:
        trainer = Trainer(_ALONE, plan, feeders)
        if resume and trainer.done < before.done:
            trainer.restart(results.read(resume), before.done)
        if call.seconds > 0 and trainer.done < plan.preset.phases[-1].until:
            trainer.step()  # waits for the first pictures, and compiles
        trainer.run(_keeper(call, trainer, before, plan.preset))


def _keeper(call: Call, trainer: Trainer, before: Facts, preset: Preset) -> Callable[[], None]:
    """What writes the results after each save; minutes and speed count from now."""
    started, first = time.monotonic(), trainer.done

    def keep() -> None:
        seconds = time.monotonic() - started
        now = changed(
            before,
            done=trainer.done,
            minutes=before.minutes + seconds / 60,
            speed=cost(preset, first, trainer.done) / seconds if trainer.done > first else before.speed,
            is_finished=trainer.done >= preset.phases[-1].until,
        )
        results.write(call.home, trainer.averages(), now)
        _hand_over(call.home / results.WEIGHTS, call.out)

    return keep


def fitted(preset: Preset, before: Facts, seconds: float) -> Preset:
    """The preset with its phases stretched so that what is left of them takes `seconds` at the speed measured before.

    Without a measured speed it stays as it is.
    """
    if not before.speed:
        return preset
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        if cost(_stretched(preset, middle), before.done, None) <= before.speed * max(0.0, seconds):
            low = middle
        else:
            high = middle
    return _stretched(preset, low)


def cost(preset: Preset, first: int, last: int | None) -> float:
    """What the pictures from `first` to `last` (None: to the end) take, in pictures of the small canvas."""
    total, start = 0.0, 0
    for phase in preset.phases:
        end = phase.until if last is None else min(last, phase.until)
        total += _cost_of_picture(phase) * max(0, end - max(first, start))
        start = phase.until
    return total


def _cost_of_picture(phase: Phase) -> float:
    """By tokens, of which all steps have the same. Guidance takes two forward passes, a step three."""
    pictures = sum(share * tokens(SMALL) / tokens(area) for area, share in phase.areas.items())
    return (1 + 2 / 3 * phase.guided) / pictures


def _stretched(preset: Preset, factor: float) -> Preset:
    phases = tuple(replace(phase, until=int(phase.until * factor)) for phase in preset.phases)
    return replace(preset, phases=phases)


def train_autoencoder(call: Call) -> None:
    """Train both halves in what is left of the call's time, the decoder for most of it."""
    folder = work.folder() / "vae"
    for half, share in _HALVES:
        if share * call.seconds < _WORTHWHILE:
            print(f"no time is left for the {half}")
            return
        plan = autoencoder.Plan(
            half=half,
            samples=call.samples,
            minutes=share * call.seconds / 60,
            batch=min(_BATCH, call.samples),
            rate=call.rate,
            device=call.device,
            seed=call.seed,
            folder=folder,
        )
        trainer = autoencoder.Trainer(_ALONE, plan)
        if trainer.done < call.samples:
            trainer.fit(share * call.seconds)
            trainer.run()
        _hand_over(folder, call.out)


def _hand_over(folder: Path, out: Path) -> None:
    """Copy the folder into `out`, without what only this machine needs, in place of the one before."""
    unfinished = out / f"{folder.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(folder, unfinished, ignore=shutil.ignore_patterns("*.state", "*.unfinished"))
    shutil.rmtree(out / folder.name, ignore_errors=True)
    unfinished.rename(out / folder.name)


def _latest(folders: list[Path]) -> Path | None:
    """The folder whose results are furthest."""
    return max((one for one in folders if results.are_in(one)), key=lambda one: results.facts(one).done, default=None)


def command(
    out: Annotated[Path, typer.Option(help="Where results go: six files of at most 15 MB.")],
    resume: Annotated[Path | None, typer.Option(help="The results of the call before, on another machine.")] = None,
    minutes: Annotated[float, typer.Option(help="Of this call.")] = 8.5,
    flow_minutes: Annotated[
        float, typer.Option(help="Of the flow in all calls; what is left is the autoencoder's.")
    ] = 20,
    samples: Annotated[int, typer.Option(help="Pieces that each half of the autoencoder is trained on at most.")] = 10
    ** 7,
    preset: Annotated[str, typer.Option(help="gpu, or tiny to try the command out.")] = "gpu",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    compiled: Annotated[bool, typer.Option(help="Compile the blocks; needs a C++ compiler.")] = True,
    processes: Annotated[
        int | None, typer.Option(help="Processes that unpack and paint; by default by the number of cores.")
    ] = None,
    packed: Annotated[Path, typer.Option(help="What training/pack wrote.")] = PACKED,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    seed: int = 0,
) -> None:
    """Train as far as the minutes go; the next call goes on."""
    call = Call(
        preset=preset,
        deadline=time.monotonic() + 60 * minutes,
        flow_minutes=flow_minutes,
        samples=samples,
        out=out,
        device=device,
        compiled=compiled,
        processes=processes,
        rate=rate,
        seed=seed,
    )
    torch._dynamo.config.suppress_errors = True  # what does not compile is run as it is
    unpack(packed, processes)
    out.mkdir(parents=True, exist_ok=True)
    text = results.fingerprint(work.folder() / "text")
    latest = _latest([call.home, *([resume] if resume else [])])
    before = results.facts(latest) if latest else Facts(preset=preset, text=text)
    if (before.preset, before.text) != (preset, text):
        raise SystemExit(f"{latest} belongs to the preset {before.preset} or to other tokenizers than {packed}.")
    print(f"after {minutes - call.seconds / 60:.1f} minutes: unpacked; {before.done} pictures are done", flush=True)
    if latest and before.is_finished:
        _hand_over(latest / results.WEIGHTS, out)
    else:
        train_flow(call, before, latest)
    if results.facts(out).is_finished:
        train_autoencoder(call)


if __name__ == "__main__":
    typer.run(command)
