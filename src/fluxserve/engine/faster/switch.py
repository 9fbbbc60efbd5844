"""A switch: whether what was made for usual passes is used now, and which new shapes it may still learn.

What it does not know: what it switches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto


class Learning(Enum):
    """Of which passes the shapes are learnt: of no more, of pictures alone, or of pictures in company."""

    NOTHING = auto()
    ALONE = auto()
    COMPANY = auto()


class Switch:
    """`on`: the usual way. `learns`: what is met now is worth kernels, or in company a record, of its own.

    `forget`: gives up what is kept on the device and can be made again.
    """

    def __init__(self) -> None:
        self.forget: Callable[[], None] = _nothing
        self.on = True
        self.learns = Learning.NOTHING

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, nothing that it switches is used."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    @contextmanager
    def learning(self, what: Learning) -> Iterator[None]:
        """Inside, shapes of such passes are learnt."""
        self.learns = what
        try:
            yield
        finally:
            self.learns = Learning.NOTHING


def _nothing() -> None:
    """There is nothing to forget."""
