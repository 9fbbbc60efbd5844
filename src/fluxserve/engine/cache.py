"""What was made before and takes a while to make: prompts that were read, LoRA files; within a budget of bytes.

What is made has to follow from its key alone, so that what is kept is, bit by bit, what making it again would give.
What it does not know: networks, trajectories.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Sized(Protocol):
    @property
    def byte_count(self) -> int:
        """What it takes of memory."""


_T = TypeVar("_T", bound=_Sized)


class Cache(Generic[_T]):
    """What was used last, of one checkpoint; used from one thread. A `budget` of 0 bytes keeps nothing."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[str, _T] = OrderedDict()

    def get(self, key: str, make: Callable[[str], _T]) -> _T:
        """What `make` makes of exactly this key; never to be changed in place."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept
        made = make(key)
        self._kept[key] = made
        self._held += made.byte_count
        while self._held > self._budget:
            _, dropped = self._kept.popitem(last=False)
            self._held -= dropped.byte_count
        return made
