"""A line of tasks in the order of their turns, which tells what comes before any place in it.

Blocks of a few hundred tasks, each with its sum, so that with n tasks a question or a change costs about the square
root of n. Sums are made anew from what they add up: whatever comes and goes, nothing drifts.
What it does not know: tasks, workers, time.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

#: Turn, then the order of coming.
Place = tuple[float, int]
#: A block that grows beyond this is cut in half.
MOST_IN_BLOCK = 512


@dataclass(slots=True)
class _Block:
    places: list[Place] = field(default_factory=list)
    works: list[float] = field(default_factory=list)


class Line:
    """Places, each with the work that is left of it. Used from the event loop only."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._lasts: list[Place] = []
        self._counts: list[int] = []
        self._works: list[float] = []

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def first(self) -> Place | None:
        """The first place; None in an empty line."""
        return self._blocks[0].places[0] if self._blocks else None

    def before(self, place: Place) -> tuple[int, float]:
        """How many places come before this one, and how much work is left of them."""
        number = bisect_left(self._lasts, place)
        count, work = sum(self._counts[:number]), sum(self._works[:number])
        if number == len(self._blocks):
            return count, work
        block = self._blocks[number]
        inside = bisect_left(block.places, place)
        return count + inside, work + sum(block.works[:inside])

    def add(self, place: Place, work: float) -> None:
        """A new place."""
        if not self._blocks:
            self._insert(0, _Block([place], [work]))
            return
        number = min(bisect_left(self._lasts, place), len(self._blocks) - 1)
        block = self._blocks[number]
        inside = bisect_left(block.places, place)
        block.places.insert(inside, place)
        block.works.insert(inside, work)
        if len(block.places) > MOST_IN_BLOCK:
            half = MOST_IN_BLOCK // 2
            self._insert(number + 1, _Block(block.places[half:], block.works[half:]))
            del block.places[half:], block.works[half:]
        self._count(number)

    def change(self, place: Place, work: float) -> None:
        """So much work is left of a place that is in the line."""
        number = bisect_left(self._lasts, place)
        block = self._blocks[number]
        block.works[bisect_left(block.places, place)] = work
        self._works[number] = sum(block.works)

    def remove(self, place: Place) -> None:
        """A place that is in the line leaves it."""
        number = bisect_left(self._lasts, place)
        block = self._blocks[number]
        inside = bisect_left(block.places, place)
        del block.places[inside], block.works[inside]
        if block.places:
            self._count(number)
        else:
            del self._blocks[number], self._lasts[number], self._counts[number], self._works[number]

    def _insert(self, number: int, block: _Block) -> None:
        self._blocks.insert(number, block)
        self._lasts.insert(number, block.places[-1])
        self._counts.insert(number, len(block.places))
        self._works.insert(number, sum(block.works))

    def _count(self, number: int) -> None:
        block = self._blocks[number]
        self._lasts[number] = block.places[-1]
        self._counts[number] = len(block.places)
        self._works[number] = sum(block.works)
