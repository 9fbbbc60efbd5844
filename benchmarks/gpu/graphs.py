"""Passes of small pictures recorded as CUDA graphs, beside the same passes asked for kernel by kernel.

    .venv/bin/python benchmarks/gpu/graphs.py --model FLUX.2-klein-4B

Predicted: at 256 x 256 a replayed pass of klein takes half of the time, at 512 x 512 nine tenths; above that nothing
is gained, which is why larger passes are not recorded. Recorded passes have the bits of those that are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import lab
from fluxserve.engine.faster import plainly, switch_of
from fluxserve.engine.faster.graphs import record_passes
from fluxserve.engine.faster.switch import Learning
from fluxserve.engine.speed import Speed

MODELS = ("FLUX.2-klein-4B", "FLUX.1-schnell")
PREDICTED = {256: 0.5, 512: 0.9, 768: 1.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both ways at each size."""
    bench = lab.begin("Passes of small pictures, recorded and not.", arguments, MODELS)
    for size in PREDICTED:
        bench.measure("graphs", f"{size} x {size}", lambda s=size: _at(bench, s))  # type: ignore[misc]
    return bench.answer


def _at(bench: lab.Bench, size: int) -> dict[str, float]:
    speed = Speed(fused=True)
    off = lab.off_by(bench, speed, size)
    assert off < 0.05, off
    network = lab.made_fast(bench, speed)
    given = lab.inputs(bench, network, size)
    plain = lab.passed(network, given)
    asked = bench.seconds(lambda: lab.passed(network, given), 20)
    records = bench.device.type == "cuda"
    if records:
        record_passes(network, switch_of(network))
    with switch_of(network).learning(Learning.COMPANY):
        assert lab.passed(network, given).equal(plain)
    replayed = bench.seconds(lambda: lab.passed(network, given), 20)
    with plainly(network, when=True):
        assert lab.passed(network, given).equal(plain)
    figures = {"seconds": replayed, "seconds_asked": asked, "off_by": off, "predicted": PREDICTED[size]}
    return {**figures, "measured": replayed / asked} if records else {**figures, "not_recorded": 1.0}


if __name__ == "__main__":
    lab.run(main)
