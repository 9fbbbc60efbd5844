"""Latents to train on: painted, encoded and read once, used several times with new noise, then replaced.

Painting a picture costs about as much as a training step with it, so a bank of recent pictures is kept
for each canvas and a few of them are replaced at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from training.canvases import SHRUNK, TOKEN
from training.latents import Code
from training.network import Texts, pack
from training.painter import Painter
from training.scenes import SceneSampler


class Batch(NamedTuple):
    """`latents` (B, N, 64) on a `grid` of (rows, columns) tokens, and the captions' ids."""

    latents: Tensor
    texts: Texts
    grid: tuple[int, int]

    def to(self, device: str) -> Batch:
        """The same on `device`."""
        return Batch(self.latents.to(device), self.texts.to(device), self.grid)


class Supply(Protocol):
    """Where the pictures of one bank come from."""

    def take(self, count: int, *, waiting: bool) -> Batch | None:
        """New pictures, `count` of them if `waiting`; else perhaps fewer or none, if they are not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Turns scene numbers into latents and ids. Canvases are (height, width) in pixels of the final picture."""

    sampler: SceneSampler
    painter: Painter
    code: Code
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]

    @torch.no_grad()
    def make(self, first: int, count: int, canvas: tuple[int, int]) -> Batch:
        """Scenes `first` ... `first + count`."""
        scenes = [self.sampler.scene(first + offset, canvas) for offset in range(count)]
        height, width = canvas
        pictures = self.painter.paint(scenes, height // SHRUNK, width // SHRUNK)
        latents = self.code.encode(pictures)
        texts = read(self.tokenizers, [scene.caption for scene in scenes])
        return Batch(pack(latents).to(torch.bfloat16), texts, (height // TOKEN, width // TOKEN))


class Painting:
    """A supply that paints scenes `first` and following when it is asked."""

    def __init__(self, source: Source, canvas: tuple[int, int], first: int) -> None:
        self._source = source
        self._canvas = canvas
        self._next = first

    def take(self, count: int, *, waiting: bool) -> Batch:  # noqa: ARG002 - what is painted now is always there
        """The next `count` scenes."""
        new = self._source.make(self._next, count, self._canvas)
        self._next += count
        return new


class Bank:
    """A pool of pictures of one canvas, on `device`: grows to `size`, then the oldest are replaced."""

    def __init__(self, supply: Supply, size: int, device: str = "cpu") -> None:
        self._supply = supply
        self._size = size
        self._device = device
        self._place = 0
        self._pool: Batch | None = None

    def draw(self, count: int, fresh: int, chance: torch.Generator) -> Batch:
        """`count` pictures of the pool at random, after adding `fresh` new ones (`count` while it is empty)."""
        is_empty = self._pool is None
        if new := self._supply.take(count if is_empty else fresh, waiting=is_empty):
            self._keep(new.to(self._device))
        assert self._pool is not None  # noqa: S101 - filled by the first draw, which waits
        latents, texts, grid = self._pool
        rows = torch.randint(len(latents), (count,), generator=chance, device=self._device)
        return Batch(latents[rows], Texts(texts.clip[rows], texts.t5[rows]), grid)

    def _keep(self, new: Batch) -> None:
        if self._pool is None or len(self._pool.latents) < self._size:
            self._pool = new if self._pool is None else join(self._pool, new)
            return
        count = len(new.latents)
        rows = torch.arange(self._place, self._place + count, device=self._device) % len(self._pool.latents)
        self._place = (self._place + count) % len(self._pool.latents)
        self._pool.latents[rows] = new.latents
        self._pool.texts.clip[rows] = new.texts.clip
        self._pool.texts.t5[rows] = new.texts.t5


def read(tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase], captions: list[str]) -> Texts:
    """Ids of the captions for CLIP and T5, padded and cut to the lengths the tokenizers name."""
    ids = [
        tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        for tokenizer in tokenizers
    ]
    return Texts(*ids)


def join(*batches: Batch) -> Batch:
    """One batch of all rows, which are of one canvas."""
    texts = Texts(torch.cat([batch.texts.clip for batch in batches]), torch.cat([batch.texts.t5 for batch in batches]))
    return Batch(torch.cat([batch.latents for batch in batches]), texts, batches[0].grid)
