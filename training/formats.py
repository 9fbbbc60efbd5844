"""The number format that a device computes training in: bfloat16 where that is fast, else float32."""

from __future__ import annotations

import time
from functools import cache

import torch

_ROWS, _WIDTH = 512, 256
_TRIES = 3


@cache
def fast(device: str) -> torch.dtype:
    """What a matrix product takes less time in; a CPU without instructions for bfloat16 is fifty times slower in it."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return min((torch.bfloat16, torch.float32), key=_seconds)


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    taken = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - started)
    return min(taken)


def computing(device: str) -> torch.autocast:
    """Inside, what can is computed in the fast format."""
    dtype = fast(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
