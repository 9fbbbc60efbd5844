"""The batcher: who steps together next. A pure function of who is held, whose turn it is and whose pictures they are.

What it does not know: networks, tensors, time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trajectory as the batcher sees it.

    Equal `key`s (network, size) can share a forward pass, at most `most` of them: what the token budget allows. A pass
    is shared fairly between `flow`s.
    """

    ref: str
    key: Hashable
    most: int
    turn: float
    flow: str


def choose(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The refs that step next: the lowest turn, then those that can step with it, in the order of their turns.

    Among equal turns the order given decides. A pass takes longer the more share it, so no flow takes more of it than
    the flow whose turn is lowest, nor more than a flow that would be among them by turn could take itself: a flow
    alone fills it, and one with a single picture gets half of it beside a flow with many.
    The others stay parked as they are, for as many batches as it takes.
    """
    if not candidates:
        return ()
    by_turn = sorted(candidates, key=lambda candidate: candidate.turn)
    first = by_turn[0]
    like_it = [candidate for candidate in by_turn if candidate.key == first.key]
    most = max(1, first.most)
    able = _counted(like_it)
    each = min(able[candidate.flow] for candidate in like_it[:most])
    chosen = _at_most(like_it, most, each)
    while (taken := _counted(chosen))[first.flow] < max(taken.values()):
        each -= 1
        chosen = _at_most(like_it, most, each)
    return tuple(candidate.ref for candidate in chosen)


def _at_most(candidates: Sequence[Candidate], most: int, each: int) -> Sequence[Candidate]:
    """The first `most` of those that are among the first `each` of their flow."""
    seen: Counter[str] = Counter()
    chosen = []
    for candidate in candidates:
        seen[candidate.flow] += 1
        if seen[candidate.flow] <= each:
            chosen.append(candidate)
    return chosen[:most]


def _counted(candidates: Sequence[Candidate]) -> Counter[str]:
    return Counter(candidate.flow for candidate in candidates)
