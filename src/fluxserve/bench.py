"""`fluxserve bench`: how fast the stages of a picture are here, for a checkpoint or a published shape.

What it does not know: how anything is measured (`engine/stages`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fluxserve import __version__, engine
from fluxserve.app.licenses import accepted_licenses
from fluxserve.catalogue import Size, find
from fluxserve.catalogue.network import TERA
from fluxserve.engine import checkpoints, device, processor
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.published import SHAPES
from fluxserve.errors import ConfigurationError, EngineNotInstalled, LicenseNotAccepted
from fluxserve.settings import MINI, Settings

if TYPE_CHECKING:
    from fluxserve.engine.stages import Measured, Report, Tell

HEADINGS = ("stage", "times", "seconds", "TFLOP", "TFLOP/s", "floor s", "of the floor")
_GIGA = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to measure: the checkpoint of `model`, or a published `shape`; None: as that is usually drawn."""

    model: str
    shape: str | None
    size: Size
    steps: int | None
    references: int | None
    rounds: int


def measure(settings: Settings, wish: Wish, tell: Tell = lambda _: None) -> Report:
    """Raises ConfigurationError for what is not there or does not fit, and EngineError. `tell`: what begins now."""
    if not engine.is_installed():
        raise EngineNotInstalled(f"There is nothing to measure: {engine.INSTALL_HINT}")
    if wish.shape is not None:
        return _measure_shape(settings, wish, wish.shape, tell)
    spec = find(wish.model)
    checkpoint = checkpoints.find(settings.models.get(spec.name, MINI))
    needed = checkpoint.license_needed
    if needed is not None and needed not in accepted_licenses(settings):
        raise LicenseNotAccepted(f"{checkpoint.name} is licensed under {needed}: set accept_licenses first.")
    return _measure(settings, wish, checkpoint, wish.steps or spec.steps, wish.references or 0, tell)


def _measure_shape(settings: Settings, wish: Wish, name: str, tell: Tell) -> Report:
    from fluxserve.engine import published

    if name not in SHAPES:
        raise ConfigurationError(f"There is no shape {name}: the shapes are {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    references = shape.references if wish.references is None else wish.references
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        built = published.build(Path(folder) / shape.title, name)
        checkpoint = checkpoints.find(str(built))
        return _measure(settings, wish, checkpoint, wish.steps or shape.steps, references, tell, at_random=True)


def _measure(
    settings: Settings,
    wish: Wish,
    checkpoint: Checkpoint,
    steps: int,
    references: int,
    tell: Tell,
    *,
    at_random: bool = False,
) -> Report:
    from fluxserve.engine import stages

    if references > checkpoint.family.references:
        raise ConfigurationError(
            f"{checkpoint.name} reads {checkpoint.family.references} pictures beside the one it draws, "
            f"not {references}."
        )
    runtime = device.resolve(settings, checkpoint.weight_bytes)
    picture = stages.Wish(size=wish.size, steps=steps, references=references)
    return stages.measure(checkpoint, runtime, picture, rounds=wish.rounds, at_random=at_random, tell=tell)


def about(report: Report) -> Sequence[str]:
    """What was measured where, a line each, for people."""
    runtime = report.runtime
    references = f", beside {report.wish.references} pictures" if report.wish.references else ""
    drawn = "" if report.drawn == report.wish.size else f", drawn at {report.drawn}"
    return (
        f"fluxserve {__version__}, torch {metadata.version('torch')}, {_machine(report)}",
        f"{report.checkpoint.name} in {runtime.dtype}, {runtime.threads} threads, plan {runtime.plan.name}: "
        f"{report.wish.size}{drawn}, {report.wish.steps} steps{references}",
        f"speed: {', '.join(runtime.speed.words) or 'plain'}{_foretold(report)}",
        f"ceilings: copy {report.copy_rate / _GIGA:.1f} GB/s, product {report.product_rate / TERA:.3f} TFLOP/s",
        "the floor of a stage is its exact count of operations at the rate of the product",
    )


def _foretold(report: Report) -> str:
    from fluxserve.engine.stages import FORETELL

    count = sum(stage.times for stage in report.stages if stage.name == FORETELL)
    return f"; {count} of {report.wish.steps} steps are foretold" if count else ""


def rows(report: Report) -> Sequence[Sequence[str]]:
    """A row for each stage, and one for the picture."""
    floor = report.flop / report.product_rate
    return (
        *(_row(stage, report.product_rate) for stage in report.stages),
        (
            "picture", "", f"{report.seconds:.4g}", f"{report.flop / TERA:.4g}",
            f"{report.flop / report.seconds / TERA:.3g}", f"{floor:.4g}", f"{floor / report.seconds:.0%}",
        ),
    )  # fmt: skip


def _row(stage: Measured, rate: float) -> Sequence[str]:
    if not stage.flop:
        return stage.name, str(stage.times), f"{stage.median:.4g}", "", "", "", ""
    return (
        stage.name, str(stage.times), f"{stage.median:.4g}", f"{stage.flop / TERA:.4g}",
        f"{stage.rate / TERA:.3g}", f"{stage.flop / rate:.4g}", f"{stage.of_floor(rate):.0%}",
    )  # fmt: skip


def as_json(report: Report) -> str:
    """All of it, each round's seconds too; one line."""
    runtime = report.runtime
    facts = {
        "version": __version__,
        "torch": metadata.version("torch"),
        "machine": _machine(report),
        "checkpoint": report.checkpoint.name,
        "device": runtime.device,
        "dtype": runtime.dtype,
        "threads": runtime.threads,
        "plan": runtime.plan.name,
        "speed": runtime.speed.words,
        "numerics": "throughput" if runtime.speed.throughput else "exact",
        "step_cache": runtime.speed.step_cache,
        "size": str(report.wish.size),
        "drawn_at": str(report.drawn),
        "steps": report.wish.steps,
        "references": report.wish.references,
        "copy_bytes_per_second": report.copy_rate,
        "product_flop_per_second": report.product_rate,
        "seconds": report.seconds,
        "flop": report.flop,
        "of_floor": report.flop / report.product_rate / report.seconds,
        "stages": [
            {
                "name": stage.name,
                "times": stage.times,
                "seconds": stage.seconds,
                "median": stage.median,
                "flop": stage.flop,
                "flop_per_second": stage.rate,
                "of_floor": stage.of_floor(report.product_rate),
            }
            for stage in report.stages
        ],
    }
    return msgspec.json.encode(facts).decode()


def _machine(report: Report) -> str:
    if report.runtime.kind != "cuda":
        return processor.here().name
    import torch

    return torch.cuda.get_device_name(report.runtime.device)
