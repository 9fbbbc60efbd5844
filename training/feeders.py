"""Processes that paint for a trainer whose own time is too dear for it: one on a GPU.

Each paints on one core, about 550 pictures a second for canvases of 512 x 512, 130 for 1024 x 1024. The trainer never
waits for them but for the first pictures of a bank: when they fall behind, it sees the pictures it has more often.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from training.bank import Batch, Source, join
from training.flow import Sources
from training.network import Texts

#: Pictures of one order.
_ORDER = 64


class _Painted(NamedTuple):
    """A batch as it travels between processes: bfloat16 as the integers of its bits."""

    latents: NDArray[np.int16]
    clip: NDArray[np.int64]
    t5: NDArray[np.int64]
    grid: tuple[int, int]


class Feeders:
    """The processes; a context manager that ends them."""

    def __init__(self, seed: int, processes: int | None = None) -> None:
        count = processes or max(1, (os.cpu_count() or 2) - 2)
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _prepare, (seed,))

    def __enter__(self) -> Feeders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def supply(self, stage: int, canvas: tuple[int, int], first: int) -> Fed:
        """The pictures of the stage's scenes `first` and following, on a canvas of (height, width)."""
        return Fed(self._pool, stage, canvas, first)


class Fed:
    """The supply of one bank: what was ordered when it last asked, or is still to come."""

    def __init__(self, pool: ProcessPoolExecutor, stage: int, canvas: tuple[int, int], first: int) -> None:
        self._pool = pool
        self._stage = stage
        self._canvas = canvas
        self._next = first
        self._orders: deque[Future[_Painted]] = deque()
        self._owed = 0

    def take(self, count: int, *, waiting: bool) -> Batch | None:
        """What has been painted; orders `count` more, unless twice as many are under way."""
        self._order(count)
        found: list[Batch] = []
        while self._orders and (self._orders[0].done() or (waiting and _ORDER * len(found) < count)):
            found.append(_received(self._orders.popleft().result()))
        return join(*found) if found else None

    def _order(self, count: int) -> None:
        self._owed = min(self._owed + count, 2 * count + _ORDER)
        while self._owed > 0 and _ORDER * len(self._orders) < 2 * count + _ORDER:
            self._orders.append(self._pool.submit(_paint, self._stage, self._canvas, self._next))
            self._next += _ORDER
            self._owed -= _ORDER


def _received(painted: _Painted) -> Batch:
    latents = torch.from_numpy(painted.latents).view(torch.bfloat16)
    return Batch(latents, Texts(torch.from_numpy(painted.clip), torch.from_numpy(painted.t5)), painted.grid)


class _Studio:
    """What one process paints with; the sources of the stages are made when first needed."""

    def __init__(self, seed: int) -> None:
        self._sources = Sources(seed, "cpu")
        self._of_stage: dict[int, Source] = {}

    def source(self, stage: int) -> Source:
        if stage not in self._of_stage:
            self._of_stage[stage] = self._sources.at(stage)
        return self._of_stage[stage]


_studio: _Studio | None = None


def _prepare(seed: int) -> None:
    global _studio
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _studio = _Studio(seed)


def _paint(stage: int, canvas: tuple[int, int], first: int) -> _Painted:
    assert _studio is not None  # noqa: S101 - every process is prepared
    latents, texts, grid = _studio.source(stage).make(first, _ORDER, canvas)
    return _Painted(latents.view(torch.int16).numpy(), texts.clip.numpy(), texts.t5.numpy(), grid)
