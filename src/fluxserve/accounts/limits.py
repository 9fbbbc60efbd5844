"""Rate limits: a token bucket per key, as a value and a pure function of the clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """`tokens` were left at time `at` (seconds)."""

    tokens: float
    at: float


def take(bucket: Bucket | None, *, rate_per_minute: int, now: float) -> tuple[Bucket, float]:
    """Take one token; returns the new bucket and 0.0, or the seconds until the next token.

    A full bucket holds one minute's rate, so a burst of that size is always allowed. A clock that goes back
    gives no tokens and takes none.
    """
    per_second = rate_per_minute / 60
    before = bucket or Bucket(float(rate_per_minute), now)
    tokens = min(rate_per_minute, before.tokens + max(0.0, now - before.at) * per_second)
    if tokens < 1:
        return Bucket(tokens, now), (1 - tokens) / per_second
    return Bucket(tokens - 1, now), 0.0
