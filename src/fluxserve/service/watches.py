"""Who waits for news: of a task, polls for its end and streams for every change; of the queue, those who hand it out.

News is only that there is some: whoever is woken looks at the task, and sees it as it is by then. So a watcher that
is slow misses steps and costs no more memory, and a task that nobody watches costs nothing. Used from the event loop
only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Watch:
    """One watcher of one task."""

    def __init__(self, *, end_only: bool) -> None:
        self.end_only = end_only
        #: Nothing more will be told: the server is stopping.
        self.is_over = False
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is something to look at."""
        self._woken.set()

    async def news(self, within: float) -> bool:
        """Wait until there is news, at most `within` seconds; whether there is."""
        try:
            async with asyncio.timeout(within):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Watches:
    """Every watcher, by task."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._is_over = False

    def __len__(self) -> int:
        """How many tasks are watched."""
        return len(self._watches)

    @contextlib.contextmanager
    def watching(self, task_id: str, *, end_only: bool) -> Iterator[Watch]:
        """A watch, as long as the block runs; `end_only`: it is woken by the task's end alone."""
        watch = Watch(end_only=end_only)
        if self._is_over:
            self._end(watch)
        self._watches.setdefault(task_id, set()).add(watch)
        try:
            yield watch
        finally:
            mine = self._watches[task_id]
            mine.discard(watch)
            if not mine:
                del self._watches[task_id]

    def tell(self, task_id: str, *, is_final: bool) -> None:
        """The task changed."""
        for watch in self._watches.get(task_id, ()):
            if is_final or not watch.end_only:
                watch.wake()

    def end(self) -> None:
        """Let everybody go, and whoever comes from now on."""
        self._is_over = True
        for watches in self._watches.values():
            for watch in watches:
                self._end(watch)

    @staticmethod
    def _end(watch: Watch) -> None:
        watch.is_over = True
        watch.wake()


class Signal:
    """Wakes everybody who watches the same thing."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Event] = set()

    def fire(self) -> None:
        """Something changed."""
        for watcher in self._watchers:
            watcher.set()

    @contextlib.contextmanager
    def watching(self, watcher: asyncio.Event) -> Iterator[None]:
        """Set `watcher` at every change, as long as the block runs."""
        self._watchers.add(watcher)
        try:
            yield
        finally:
            self._watchers.discard(watcher)
