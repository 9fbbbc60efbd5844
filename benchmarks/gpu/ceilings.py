"""The device's ceilings: a large copy, a large product in bfloat16, and one of float8 with a scale for each row.

    .venv/bin/python benchmarks/gpu/ceilings.py

All other scripts say how near they come to these, so this one goes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import lab
from fluxserve.engine.faster import eighths

#: Rows, width in and width out of a product: about a feed-forward layer's of FLUX.1 for two pictures.
SHAPE, TINY_SHAPE = (8192, 8192, 8192), (64, 64, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure them."""
    bench = lab.begin("The device's ceilings.", arguments)
    for what, act in {"copy": _copy, "bfloat16": _product, "float8": _product_of_8_bits}.items():
        bench.measure("ceilings", what, lambda act=act: act(bench))  # type: ignore[misc]
    return bench.answer


def _copy(bench: lab.Bench) -> dict[str, float]:
    source = torch.randn(2**12 if bench.tiny else 2**31, device=bench.device, dtype=bench.dtype)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source))
    assert target.equal(source)
    return {"seconds": seconds, "gigabytes_per_second": 2 * source.nbytes / seconds / 1e9}


def _matrices(bench: lab.Bench) -> tuple[torch.Tensor, torch.Tensor]:
    rows, wide, out = TINY_SHAPE if bench.tiny else SHAPE
    return (
        torch.randn(rows, wide, device=bench.device, dtype=bench.dtype),
        torch.randn(out, wide, device=bench.device, dtype=bench.dtype),
    )


def _rate(bench: lab.Bench, seconds: float) -> dict[str, float]:
    rows, wide, out = TINY_SHAPE if bench.tiny else SHAPE
    return {"seconds": seconds, "tflops": 2 * rows * wide * out / seconds / 1e12}


def _product(bench: lab.Bench) -> dict[str, float]:
    one, other = _matrices(bench)
    exact = one[:16].float() @ other.float().t()
    found = (one @ other.t())[:16].float()
    off = float((found - exact).norm() / exact.norm())
    assert off < 0.01, off
    return {**_rate(bench, bench.seconds(lambda: one @ other.t(), 20)), "off_by": off}


def _product_of_8_bits(bench: lab.Bench) -> dict[str, float]:
    one, other = _matrices(bench)
    (bits, scales), (weight, own) = eighths.quantised(one), eighths.quantised(other)

    def multiply() -> torch.Tensor:
        return torch._scaled_mm(bits, weight.t(), scales, own.t(), out_dtype=bench.dtype, use_fast_accum=True)

    exact = one[:16].float() @ other.float().t()
    off = float((multiply()[:16].float() - exact).norm() / exact.norm())
    assert off < 0.1, off
    return {**_rate(bench, bench.seconds(multiply, 20)), "off_by": off}


if __name__ == "__main__":
    lab.run(main)
