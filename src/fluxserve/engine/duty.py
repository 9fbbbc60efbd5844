"""Whose weights are on the device: those of checkpoints on duty, as many at once as there is room for.

A swap takes far longer than a step. So whoever is on duty stays there as long as there is something to do, or, where
others wait, for twice what it costs to swap and to swap back: so swaps take at most a fifth of the time, and nobody
starves. Who has waited longest comes next, and nobody overtakes him.
What it does not know: trajectories, steps, where weights lie (`pool`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fluxserve.engine.base import Failed
from fluxserve.engine.device import Runtime, apply, surroundings
from fluxserve.engine.lanes import HANGS_S
from fluxserve.engine.pool import Origin, Pool
from fluxserve.engine.recovery import Recovery
from fluxserve.errors import EngineError

#: A stint that others wait for ends after so many times what swapping and swapping back take.
STINT = 2
#: Weights that could not be brought are not tried again for so long: each try takes the room of sound ones.
RETRY_S = 15.0
#: Weights that take so many times longer to come than the last time are not coming.
_HANG_FACTOR = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A checkpoint that has something to do: on duty `since` then, or waiting for that.

    `takes`: bytes of the device. `seconds`: what bringing it takes. `is_held`: its pictures are being decoded, so its
    room cannot be had.
    """

    origin: Origin
    takes: int
    since: float
    seconds: float
    is_on_duty: bool
    is_held: bool


def on_duty(needs: Sequence[Need], room: int, now: float) -> frozenset[Origin]:
    """Those to be on duty now; one of them at least, however little room there is.

    One that had to leave makes room only when its pictures are decoded.
    """
    kept = [need for need in needs if need.is_on_duty]
    for waiting in sorted((need for need in needs if not need.is_on_duty), key=_since):
        held = [need for need in needs if need.is_held and not need.is_on_duty and need is not waiting]
        relieved = _relieved(waiting, kept, room, now)
        kept = [need for need in kept if need not in relieved]
        if not _fits(waiting, (*kept, *held, *(need for need in relieved if need.is_held)), room):
            break  # nobody overtakes him
        kept.append(waiting)
    return frozenset(need.origin for need in kept)


def _relieved(waiting: Need, kept: Sequence[Need], room: int, now: float) -> Sequence[Need]:
    """Those that leave for him: as few as it takes, the longest on duty first; none while that is not enough."""
    tired = [need for need in kept if need.is_on_duty and now - need.since > STINT * (need.seconds + waiting.seconds)]
    relieved: list[Need] = []
    while not _fits(waiting, [need for need in kept if need not in relieved], room):
        if len(relieved) == len(tired):
            return ()
        relieved = sorted(tired, key=_since)[: len(relieved) + 1]
    return relieved


def _fits(need: Need, others: Sequence[Need], room: int) -> bool:
    return not others or need.takes + sum(other.takes for other in others) <= room


def _since(need: Need) -> float:
    return need.since


class Duty:
    """Keeps those on duty whose turn it is, and brings their weights in a thread of its own, one after the other."""

    def __init__(
        self,
        pool: Pool,
        runtime: Runtime,
        recovery: Recovery,
        news: threading.Condition,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`news` is notified when weights have come."""
        self._pool = pool
        self._recovery = recovery
        self._news = news
        self._clock = clock
        self._surroundings = surroundings(runtime)
        self._bringer = ThreadPoolExecutor(
            1, thread_name_prefix="fluxserve-weights", initializer=apply, initargs=(runtime,)
        )
        self._on: frozenset[Origin] = frozenset()
        self._since: dict[Origin, float] = {}
        #: Those that could not be brought, and until when that is taken for lasting.
        self._broken: dict[Origin, tuple[EngineError, float]] = {}
        self._coming: tuple[Origin, Future[tuple[Failed | None, float]]] | None = None
        #: Since when it is being brought; None while those that have to leave are still in use.
        self._began: float | None = None

    @property
    def is_bringing(self) -> bool:
        """Weights are on their way."""
        return self._coming is not None

    @property
    def has_news(self) -> bool:
        """Weights have come since the last `update`."""
        return self._coming is not None and self._coming[1].done()

    def is_ready(self, origin: Origin) -> bool:
        """It is on duty, and its weights have come."""
        return origin in self._on and self._pool.is_at_hand(origin)

    def update(self, needed: Mapping[Origin, bool]) -> Mapping[Origin, EngineError]:
        """Choose anew; answers whose weights could not be brought.

        `needed`: the checkpoints that have something to do, and whether pictures of them are being decoded.
        """
        self._take_brought()
        now = self._clock()
        self._broken = {origin: (error, until) for origin, (error, until) in self._broken.items() if now < until}
        failed = {origin: error for origin, (error, _) in self._broken.items() if origin in needed}
        left = [origin for origin in needed if origin not in failed]
        self._since = {origin: self._since.get(origin, now) for origin in left}
        for origin in self._on:
            if origin in self._since and not self._pool.is_at_hand(origin):  # its stint has not begun
                self._since[origin] = now
        on = on_duty([self._need(origin, is_held=needed[origin]) for origin in left], self._pool.room.device, now)
        self._since |= {origin: now for origin in left if (origin in on) != (origin in self._on)}
        self._on = on
        self._bring_next()
        return failed

    def _need(self, origin: Origin, *, is_held: bool) -> Need:
        return Need(
            origin=origin,
            takes=self._pool.takes(origin),
            since=self._since[origin],
            seconds=self._pool.seconds(origin),
            is_on_duty=origin in self._on,
            is_held=is_held and self._pool.is_at_hand(origin),
        )

    def _bring_next(self) -> None:
        """One at a time, so that who makes room for whom is always known."""
        away = [origin for origin in self._on if not self._pool.is_at_hand(origin)]
        if self._coming is None and away:
            vacate, bring = self._pool.bringing(away[0], keep=self._on)
            self._began = None
            self._coming = away[0], self._bringer.submit(self._bring, away[0], vacate, bring)

    def _bring(
        self, origin: Origin, vacate: Callable[[], None], bring: Callable[[], None]
    ) -> tuple[Failed | None, float]:
        """How it failed, if it did, and when that was known."""
        try:
            with self._surroundings():
                vacate()  # not as an attempt: who is waited for may need the thread that attempts are made in
                self._began = self._clock()
                return self._recovery.attempt(bring, str(origin[0])), self._clock()
        finally:
            with self._news:
                self._news.notify_all()

    def _take_brought(self) -> None:
        """Raises what no picture is to blame for; waits for what hangs, so that whoever watches the steps sees it."""
        if self._coming is None:
            return
        (origin, brought), began = self._coming, self._began
        patience = max(HANGS_S, _HANG_FACTOR * self._pool.seconds(origin))
        hangs = began is not None and self._clock() - began > patience
        if not brought.done() and not hangs:
            return
        (outcome, ended), self._coming = brought.result(), None
        if outcome is not None:
            self._broken[origin] = outcome.error, ended + RETRY_S
