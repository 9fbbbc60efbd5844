"""Rate limits: a token bucket per key or address, as a value and a pure function of the clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """`tokens` were left at time `at` (seconds)."""

    tokens: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Of a limit by the minute: how many are `left` at once, and in how many seconds all of it is there again."""

    limit: int
    left: int
    full_in: float


def rate_of(bucket: Bucket | None, rate_per_minute: int) -> Rate:
    """What the bucket says, as of its own time."""
    tokens = float(rate_per_minute) if bucket is None else bucket.tokens
    return Rate(limit=rate_per_minute, left=int(tokens), full_in=(rate_per_minute - tokens) * 60 / rate_per_minute)


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
