"""The batcher: who steps together next. A pure function of who waits, since when, and a token budget.

What it does not know: networks, tensors, time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trajectory as the batcher sees it.

    Equal `key`s (network, size, text length) can share a forward pass; `tokens` is what it takes of the budget; the
    lowest `turn` is first. `moved` numbers the batch that last moved it, or, before the first, the last before it came.
    """

    ref: str
    key: Hashable
    tokens: int
    moved: int
    turn: float = 0.0


def choose(candidates: Sequence[Candidate], budget: int) -> tuple[str, ...]:
    """The refs that step next: the one of the lowest turn, then those like it, lowest turn first, within `budget`.

    Among equal turns the longest wait decides, then the order given. The first is taken even where it is over the
    budget alone. So of n candidates of one turn each moves at least once in n batches, whatever its size and whoever
    joins meanwhile.
    """
    waiting = sorted(candidates, key=lambda candidate: (candidate.turn, candidate.moved))
    if not waiting:
        return ()
    first, *others = waiting
    chosen, left = [first.ref], budget - first.tokens
    for other in others:
        if other.key == first.key and other.tokens <= left:
            chosen.append(other.ref)
            left -= other.tokens
    return tuple(chosen)
