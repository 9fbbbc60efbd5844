"""A transformer's step: eager, fused, by each kernel of attention, compiled, in 8 bits, and the best of it together.

    .venv/bin/python benchmarks/gpu/transformer.py --model FLUX.1-dev

One change at a time, each with the gain that was predicted for it, as a share of the time of what it is beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

import lab
from fluxserve.engine.speed import PLAIN, Speed

MODELS = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.2-klein-4B", "FLUX.2-klein-9B", "FLUX.2-dev")
STEPS = {"FLUX.1-dev": 28, "FLUX.2-dev": 50}
SIZE = 1024
_COMPILED = Speed(compiled=True, fused=True, channels_last=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A `speed`, and the share of the time of the variant `beside` it that it was predicted to take."""

    speed: Speed
    beside: str = "eager"
    predicted: float = 1.0
    tolerance: float = 0.05


VARIANTS = {
    "eager": Variant(speed=PLAIN),
    "fused": Variant(speed=Speed(fused=True), predicted=0.98),
    "attention cudnn": Variant(speed=Speed(attention="cudnn"), predicted=0.87),
    "attention flash": Variant(speed=Speed(attention="flash"), predicted=1.0),
    "attention efficient": Variant(speed=Speed(attention="efficient"), predicted=1.1),
    "attention flash3": Variant(speed=Speed(attention="flash3"), predicted=0.87),
    "float8": Variant(speed=Speed(float8=True), predicted=0.85, tolerance=0.2),
    "compiled": Variant(speed=Speed(compiled=True), predicted=0.77),
    "compiled, fused": Variant(speed=_COMPILED, beside="compiled", predicted=0.98),
    "compiled, fused, cudnn": Variant(
        speed=replace(_COMPILED, attention="cudnn"), beside="compiled, fused", predicted=0.84
    ),
    "compiled, fused, flash3": Variant(
        speed=replace(_COMPILED, attention="flash3"), beside="compiled, fused", predicted=0.84
    ),
    "compiled, fused, cudnn, float8": Variant(
        speed=replace(_COMPILED, attention="cudnn", float8=True),
        beside="compiled, fused, cudnn",
        predicted=0.62,
        tolerance=0.2,
    ),
    "compiled for any size": Variant(speed=_COMPILED, beside="compiled, fused", predicted=1.03),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each variant."""
    bench = lab.begin("A transformer's step, one change at a time.", arguments, MODELS)
    for what, variant in VARIANTS.items():
        bench.measure("transformer", what, lambda w=what, v=variant: _of(bench, w, v))  # type: ignore[misc]
    return bench.answer


def _of(bench: lab.Bench, what: str, variant: Variant) -> dict[str, float]:
    speed = replace(variant.speed, backend="aot_eager") if bench.tiny else variant.speed
    off = lab.off_by(bench, speed, SIZE)
    assert off < variant.tolerance, off
    network = lab.made_fast(bench, speed)
    given = lab.inputs(bench, network, SIZE)
    lab.warm(network, lab.inputs(bench, network, SIZE // 2) if what.endswith("any size") else given)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(lambda: lab.passed(network, given))
    rate = lab.teraflop(bench, SIZE) / seconds
    beside, limit = bench.found("transformer", variant.beside), lab.ceiling(bench, "bfloat16")
    return {
        "seconds": seconds,
        "seconds_per_picture": seconds * STEPS.get(bench.model, 4),
        "tflops": rate,
        "off_by": off,
        "predicted": variant.predicted,
        **({"measured": seconds / beside["seconds"]} if beside else {}),
        **({"of_ceiling": rate / limit} if limit else {}),
        **({"gigabytes": torch.cuda.max_memory_allocated() / 1e9} if bench.device.type == "cuda" else {}),
    }


if __name__ == "__main__":
    lab.run(main)
