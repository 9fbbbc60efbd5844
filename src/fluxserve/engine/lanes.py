"""Lanes beside the step loop: reading prompts and decoding pictures, each one at a time.

The lowest turn first, but whoever waited longest is passed by once only: the next piece is his. So a short picture
waits for two pieces at most, however many came before it, and nobody waits for more than twice those that did.
Where a core or a device is left over, a lane has a thread of its own and works while others step. Where steps take
all cores, it would only hold them up: there it works a piece at a time between two steps.
What it does not know: what the work is, steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from fluxserve.engine.device import Runtime, apply, surroundings

T = TypeVar("T")
#: After this long the step loop waits for a piece of work, so that whoever watches the steps sees that it hangs.
HANGS_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work(Generic[T]):
    ref: str
    turn: float
    do: Callable[[], T]


class Lane(Generic[T]):
    """One lane; `news` is notified when a piece of work is done."""

    def __init__(self, name: str, runtime: Runtime, news: threading.Condition) -> None:
        # Each thread has to be told how many threads its kernels may use.
        self._threads = (
            ThreadPoolExecutor(1, thread_name_prefix=f"fluxserve-{name}", initializer=apply, initargs=(runtime,))
            if runtime.has_room_beside_steps
            else None
        )
        self._surroundings = surroundings(runtime)
        self._news = news
        #: In the order they came.
        self._waiting: list[_Work[T]] = []
        self._passed_by = False
        self._done: list[tuple[str, T]] = []
        self._broken: BaseException | None = None
        self._begun: float | None = None

    def submit(self, ref: str, turn: float, do: Callable[[], T]) -> None:
        """Let `do` be done; of equal turns the first that came is first."""
        with self._news:
            self._waiting.append(_Work(ref=ref, turn=turn, do=do))
        if self._threads is not None:
            self._threads.submit(self._do_next)

    def withdraw(self, ref: str) -> bool:
        """Take back what waits under this name; whether anything did, which will then not be done."""
        with self._news:
            left = [work for work in self._waiting if work.ref != ref]
            has_waited, self._waiting = len(left) < len(self._waiting), left
        return has_waited

    def forget(self, ref: str) -> None:
        """Leave out what is done under this name; what is under way comes out all the same."""
        with self._news:
            self._done = [done for done in self._done if done[0] != ref]

    def take(self) -> Iterator[tuple[str, T]]:
        """What is done; raises what a piece of work has raised."""
        if self._threads is None:
            self._do_next()
        with self._news:
            self._news.wait_for(lambda: not self._hangs)
            if self._broken is not None:
                raise self._broken
            done, self._done = self._done, []
        return iter(done)

    @property
    def has_news(self) -> bool:
        """Taking would not be in vain; the caller holds `news`."""
        return bool(self._done or self._broken or (self._threads is None and self._waiting))

    @property
    def _hangs(self) -> bool:
        return self._begun is not None and time.monotonic() - self._begun > HANGS_S

    def _take_next(self) -> _Work[T]:
        oldest = self._waiting[0]
        work = oldest if self._passed_by else min(self._waiting, key=lambda one: one.turn)
        self._passed_by = work is not oldest
        self._waiting.remove(work)
        return work

    def _do_next(self) -> None:
        with self._news:
            if not self._waiting:  # dropped
                return
            work = self._take_next()
            self._begun = time.monotonic()
        try:
            with self._surroundings():
                done = [(work.ref, work.do())]
        except BaseException as error:  # noqa: BLE001 - raised again by `take`
            done, self._broken = [], error
        with self._news:
            self._done += done
            self._begun = None
            self._news.notify_all()
