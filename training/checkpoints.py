"""The state of a training run in one file, written whole or not at all, so that a killed run resumes.

Read and written by this project's own runs only: torch loads it as plain tensors, never as code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

_AVERAGE = "average.pt"


class Stateful(Protocol):
    """Networks, optimizers, masters: whatever gives and takes back its state."""

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that has to come back."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take it back."""


def save(path: Path, parts: Mapping[str, Stateful], done: int) -> None:
    """Write beside `path`, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save({"done": done, "parts": {name: part.state_dict() for name, part in parts.items()}}, unfinished)
    unfinished.replace(path)


def save_average(folder: Path, weights: Mapping[str, torch.Tensor], done: int) -> None:
    """The averaged weights of a run by name, which pictures are drawn with, and how many pictures they have seen."""
    torch.save({"done": done, "weights": dict(weights)}, folder / _AVERAGE)


def load_average(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """What `save_average` wrote."""
    kept = torch.load(folder / _AVERAGE, weights_only=True)
    return kept["weights"], kept["done"]


def resume(path: Path, parts: Mapping[str, Stateful], device: str) -> int:
    """Load what `save` wrote, if it did; returns the samples done."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True, map_location=device)
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return int(state["done"])
