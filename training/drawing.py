"""Pictures of a pipeline folder by the engine that serves it, many at a time, each kept for the next call.

Rows of a batch share a forward pass, as the server's would on a machine where that changes no bit; elsewhere the last
bits may differ from the served picture's. Kept pictures are shrunk to what judges look at.
What it does not know: what the pictures are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import checkpoints, pixels, weights
from fluxserve.engine.base import Pixels
from fluxserve.engine.device import Runtime, apply
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.fingerprint import weights_hash
from fluxserve.engine.forward import Company
from training.exams import Exam, Question

#: Pixels of the shorter side of a kept picture.
KEPT = 128
_BATCH = 16


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One picture to draw; `size` is (width, height) in pixels."""

    prompt: str
    seed: int
    size: tuple[int, int]
    steps: int
    guidance: float


class Artist:
    """A loaded pipeline folder."""

    def __init__(self, folder: Path, device: str, threads: int) -> None:
        checkpoint = checkpoints.find(str(folder))
        runtime = Runtime(device=device, dtype="float32", threads=threads, token_budget=1)
        apply(runtime)
        self.checkpoint, self.runtime = checkpoint, runtime
        self.weights = weights_hash(checkpoint.path)
        self._drawer = open_drawer(checkpoint, runtime)

    def draw(self, wishes: Sequence[Wish]) -> list[Pixels]:
        """One picture for each wish, at its size; all have one size and one number of steps."""
        size = Size(*wishes[0].size)
        together = {checkpoints.drawn_size(self.checkpoint, size): Company(most=len(wishes))}
        drawer = replace(self._drawer, company=together)
        trajectories = [drawer.start(str(number), _generation(wish), 0) for number, wish in enumerate(wishes)]
        while not trajectories[0].is_done:
            velocities = drawer.velocities(trajectories)
            trajectories = [
                trajectory.moved(velocity) for trajectory, velocity in zip(trajectories, velocities, strict=True)
            ]
        return [self._finish(drawer, trajectory.latents, size) for trajectory in trajectories]

    def parts(self) -> weights.Parts:
        """The networks themselves."""
        return weights.load(self.checkpoint.path, self.runtime)

    def _finish(self, drawer: Drawer, latents: Tensor, size: Size) -> Pixels:
        drawn = drawer.network.decode(latents, checkpoints.drawn_size(self.checkpoint, size))
        return pixels.fit(drawn, size)


class Gallery:
    """What an artist drew for exams, kept in a folder by weights, prompts, seeds and settings."""

    def __init__(self, artist: Artist, folder: Path) -> None:
        self._artist, self._folder = artist, folder
        folder.mkdir(parents=True, exist_ok=True)

    def pictures(self, exam: Exam) -> list[Tensor]:
        """(3, H, W) in -1 ... 1 for each question, the shorter side `KEPT` pixels."""
        found: list[Tensor] = []
        for _, group in groupby(exam.questions, key=lambda question: question.canvas):
            questions = list(group)
            for first in range(0, len(questions), _BATCH):
                found += self._batch(exam, questions[first : first + _BATCH])
        return found

    def _batch(self, exam: Exam, questions: Sequence[Question]) -> list[Tensor]:
        wishes = [
            Wish(
                prompt=question.scene.caption,
                seed=question.seed,
                size=(question.canvas[1], question.canvas[0]),
                steps=exam.steps,
                guidance=exam.guidance,
            )
            for question in questions
        ]
        key = hashlib.blake2b(self._artist.weights.encode() + msgspec.json.encode(wishes), digest_size=16)
        file = self._folder / f"{key.hexdigest()}.npz"
        if not file.is_file():
            drawn = torch.stack([as_tensor(picture) for picture in self._artist.draw(wishes)])
            _keep(file, shrunk(drawn))
        with np.load(file) as kept:
            return list(torch.from_numpy(kept["pictures"]).float() / 127.5 - 1)


def as_tensor(picture: Pixels) -> Tensor:
    """(3, H, W) in -1 ... 1."""
    levels = np.frombuffer(picture.data, dtype=np.uint8).reshape(picture.size.height, picture.size.width, 3)
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def shrunk(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in -1 ... 1 with the shorter side `KEPT` pixels."""
    scale = KEPT / min(pictures.shape[-2:])
    size = [round(side * scale) for side in pictures.shape[-2:]]
    return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)


def _keep(file: Path, pictures: Tensor) -> None:
    levels = ((pictures + 1) * 127.5).round().byte().numpy()
    unfinished = file.with_suffix(".unfinished.npz")
    np.savez_compressed(unfinished, pictures=levels)
    unfinished.replace(file)


def _generation(wish: Wish) -> Generation:
    return Generation(
        model="flux-dev",
        prompt=wish.prompt,
        size=Size(*wish.size),
        seed=wish.seed,
        steps=wish.steps,
        guidance=wish.guidance,
        output_format="png",
    )
