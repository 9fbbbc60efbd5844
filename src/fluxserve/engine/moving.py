"""The tensors of networks: how much they take, and all of them from one memory into another, bit by bit the same.

What it does not know: what the networks are for, and who has to leave them alone meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def byte_count(modules: Iterable[torch.nn.Module]) -> int:
    """What they take of memory; a tensor that two of them share counts once."""
    return sum(tensor.nbytes for tensor in _tensors(modules))


def to_host(modules: Iterable[torch.nn.Module]) -> None:
    """Into the machine's memory, and from a GPU into pages that stay where they are: it fetches them much faster."""
    import torch

    for tensor in _tensors(modules):
        pinned = tensor.device.type == "cuda"
        tensor.data = torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


def to_device(modules: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Back to where they compute."""
    for tensor in _tensors(modules):
        tensor.data = tensor.data.to(device, non_blocking=True)


def _tensors(modules: Iterable[torch.nn.Module]) -> Iterator[torch.Tensor]:
    seen = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor
