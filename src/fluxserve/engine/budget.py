"""The token budget: how much is worth a forward pass on this device, measured on these networks.

A large device is not filled by a small picture, so several in one pass cost little more than one; beyond some number
of tokens each further picture only makes the steps longer.
What it does not know: networks, and whether pictures may share a pass at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

#: No pass has more pictures, and measuring stops after so many seconds.
MOST_PICTURES = 16
PATIENCE_S = 1.5
#: Passes of each number of pictures; the fastest counts, for whatever else runs only slows them down.
_ROUNDS = 3
#: Pictures a second that are not worth longer steps: this share of the best is enough.
_ENOUGH = 0.9
#: A pass that is always filled up may take this many times as long as one picture does alone.
_ALONE_PAYS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Tokens, of pictures and of their texts, in a forward pass; `padded`: where each pass is filled up."""

    tokens: int
    padded: int


def measure(seconds_of: Callable[[int], float | None], tokens: int) -> Budget:
    """Time passes of 1, 2, 4, ... pictures of `tokens` each; `seconds_of(count)` runs one, None: it does not fit.

    Where one picture does not fit beside all else that is there now, it may still be drawn by other means.
    """
    times: dict[int, float] = {}
    count, spent = 1, 0.0
    while count <= MOST_PICTURES and spent < PATIENCE_S and (rounds := _rounds(partial(seconds_of, count), spent)):
        times[count], spent, count = min(rounds), spent + sum(rounds), 2 * count
    if not times:
        return Budget(tokens=tokens, padded=tokens)
    return Budget(tokens=tokens * _smallest_that_is_enough(times), padded=tokens * _largest_that_pays(times))


def _rounds(seconds_of: Callable[[], float | None], spent: float) -> list[float]:
    """How long each pass took; none where one did not fit."""
    rounds: list[float] = []
    while len(rounds) < _ROUNDS and (not rounds or spent + sum(rounds) < PATIENCE_S):
        if (seconds := seconds_of()) is None:
            return []
        rounds.append(seconds)
    return rounds


def _smallest_that_is_enough(times: Mapping[int, float]) -> int:
    best = max(count / seconds for count, seconds in times.items())
    return next(count for count, seconds in sorted(times.items()) if count / seconds >= _ENOUGH * best)


def _largest_that_pays(times: Mapping[int, float]) -> int:
    """Where passes are padded, a picture alone takes as long as a full pass: only where that is not much longer."""
    return max(count for count, seconds in times.items() if seconds <= _ALONE_PAYS * times[1])
