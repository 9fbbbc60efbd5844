"""Attention alone, by each kernel, at the shapes that FLUX has.

    .venv/bin/python benchmarks/gpu/attention.py

Predicted: cuDNN's and FlashAttention-3's take 0.6 of FlashAttention-2's time on Hopper, which `torch` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import lab
from fluxserve.engine.faster.attention import KERNELS
from fluxserve.settings import AttentionChoice

HEADS, WIDTH = 24, 128
#: Tokens of a picture of 512, 1024 and 1024 with a reference, each with 512 of text.
TOKENS = (1536, 4608, 8704)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each kernel at each length."""
    bench = lab.begin("Attention alone, by each kernel.", arguments)
    for tokens in (16,) if bench.tiny else TOKENS:
        for choice in KERNELS:
            bench.measure("attention", f"{choice}, {tokens} tokens", lambda c=choice, t=tokens: _of(bench, c, t))  # type: ignore[misc]
    return bench.answer


def _of(bench: lab.Bench, choice: AttentionChoice, tokens: int) -> dict[str, float]:
    shape = (1, HEADS, tokens, WIDTH)
    query, key, value = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(3))
    kernel = KERNELS[choice]
    exact = KERNELS["torch"](query.float(), key.float(), value.float())
    off = float((kernel(query, key, value).float() - exact).norm() / exact.norm())
    assert off < 0.02, off
    seconds = bench.seconds(lambda: kernel(query, key, value), 20)
    return {"seconds": seconds, "tflops": 4 * tokens**2 * HEADS * WIDTH / seconds / 1e12, "off_by": off}


if __name__ == "__main__":
    lab.run(main)
