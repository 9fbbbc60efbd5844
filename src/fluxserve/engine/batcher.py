"""The batcher: who steps together next. A pure function of who is held and whose turn it is.

What it does not know: networks, tensors, time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trajectory as the batcher sees it.

    Equal `key`s (network, size) can share a forward pass, at most `most` of them: what the token budget allows.
    """

    ref: str
    key: Hashable
    most: int
    turn: float


def choose(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The refs that step next: the lowest turn, then those that can step with it, in the order of their turns.

    Among equal turns the order given decides. The others stay parked as they are, for as many batches as it takes.
    """
    if not candidates:
        return ()
    by_turn = sorted(candidates, key=lambda candidate: candidate.turn)
    first = by_turn[0]
    like_it = [candidate.ref for candidate in by_turn if candidate.key == first.key]
    return tuple(like_it[: max(1, first.most)])
