"""Weights whose own place is the machine's memory: brought to the device, and given up there, which copies nothing.

A network may also be brought block by block, as it comes to them: beside the one at work the next is on its way, on a
GPU by a queue of its own.
What it does not know: stages, who decides what is where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module


def tensors_of(module: Module) -> Iterator[Tensor]:
    """Everything of it that takes memory."""
    yield from module.parameters()
    yield from module.buffers()


def waiting(tensor: Tensor) -> Tensor:
    """It in the machine's memory, from a GPU in pages that stay where they are: it fetches them much faster."""
    import torch

    pinned = tensor.device.type == "cuda"
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


class Home:
    """Some tensors, and where they are at home. `pinned`: in memory that a GPU reads by itself."""

    def __init__(self, tensors: Iterable[Tensor], device: torch.device, *, pinned: bool = False) -> None:
        self._device = device
        self._own = [(tensor, tensor.data.pin_memory() if pinned else tensor.data) for tensor in tensors]
        self.give_up()

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        return (tensor for tensor, _ in self._own)

    def bring(self, *, exact: bool = False) -> None:
        """To the device; `exact`: as float32."""
        import torch

        for tensor, data in self._own:
            there = data.to(self._device, non_blocking=True, copy=True)
            tensor.data = there.to(torch.float32) if exact and there.is_floating_point() else there

    def give_up(self) -> None:
        """Off the device."""
        for tensor, data in self._own:
            tensor.data = data


class Streamed:
    """A network whose blocks are brought when it comes to them; blocks of another order are only brought later."""

    def __init__(self, network: Module, device: torch.device) -> None:
        import torch

        self._device = device
        on_gpu = device.type == "cuda"
        blocks = list(_blocks(network))
        inside = {id(tensor) for block in blocks for tensor in tensors_of(block)}
        self.rest = [tensor for tensor in tensors_of(network) if id(tensor) not in inside]
        self._rest = Home(self.rest, device)
        self._blocks = [Home(tensors_of(block), device, pinned=on_gpu) for block in blocks]
        self._queue = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._brought: set[int] = set()
        #: While set, blocks are brought as float32.
        self.exact = False
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._enter, number))

    def bring(self) -> None:
        """All but the blocks."""
        self._rest.bring()

    def give_up(self) -> None:
        """All of it."""
        self.give_up_blocks()
        self._rest.give_up()

    def give_up_blocks(self) -> None:
        """Those that were brought, once the device is done with them."""
        self._wait()
        for number in sorted(self._brought):
            self._blocks[number].give_up()
        self._brought.clear()

    def _enter(self, number: int, *_: object) -> None:
        """Before a block's work: the last one makes room for the next."""
        self._wait()  # what is given up while work on it is under way may be overwritten
        for other in sorted(self._brought - {number}):
            self._blocks[other].give_up()
        self._brought &= {number}
        if number not in self._brought:
            self._bring(number)
            self._wait()
        if number + 1 < len(self._blocks):
            self._bring(number + 1)

    def _bring(self, number: int) -> None:
        import torch

        self._brought.add(number)  # first: where it comes by half, all of it is given up
        with torch.cuda.stream(self._queue):
            self._blocks[number].bring(exact=self.exact)

    def _wait(self) -> None:
        """Until the device has worked on all that was asked of it, and has all that is on its way."""
        import torch

        if self._queue is not None:
            self._queue.synchronize()
            torch.cuda.current_stream(self._device).synchronize()


class Homes:
    """Some networks, each brought as a whole or, where they are `streamed`, block by block."""

    def __init__(self, networks: Iterable[Module], device: torch.device, *, streamed: bool) -> None:
        self._streamed = [Streamed(network, device) for network in networks] if streamed else []
        self._whole = [] if streamed else [Home(tensors_of(network), device) for network in networks]
        self._all: Sequence[Home | Streamed] = [*self._whole, *self._streamed]

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Those that are brought as the networks are, not as their blocks are."""
        for one in self._whole:
            yield from one.tensors
        for other in self._streamed:
            yield from other.rest

    def bring(self) -> None:
        """To the device, but for blocks that are brought as they are needed."""
        for one in self._all:
            one.bring()

    def give_up(self) -> None:
        """Off the device."""
        for one in self._all:
            one.give_up()

    @contextmanager
    def at_work(self, *, exact: bool) -> Iterator[None]:
        """Inside, blocks come as they are needed, `exact` ones as float32."""
        for one in self._streamed:
            one.exact = exact
        try:
            yield
        finally:
            for one in self._streamed:
                one.exact = False
                one.give_up_blocks()


def _blocks(network: Module) -> Iterator[Module]:
    """The members of its outermost lists of layers, in their order."""
    from torch.nn import ModuleList

    for child in network.children():
        if isinstance(child, ModuleList):
            yield from child
        else:
            yield from _blocks(child)
