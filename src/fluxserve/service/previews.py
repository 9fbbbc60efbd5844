"""Previews of running tasks that somebody asked to see: the newest of each, in memory, within a budget of bytes.

What it does not know: what a preview shows, who asks, who makes it.
"""

from __future__ import annotations

from collections import OrderedDict

#: Bytes; a preview has a few thousand. A larger one is not kept.
MAX_PREVIEW = 2**18


class Previews:
    """Task id -> picture, for tasks that are wanted. Used from the event loop only."""

    def __init__(self, budget: int) -> None:
        """`budget`: most bytes that are kept; 0: nothing is ever wanted."""
        self._budget = budget
        self._wanted: set[str] = set()
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def want(self, task_id: str) -> bool:
        """Keep what comes for this task; whether that is new."""
        if not self._budget or task_id in self._wanted:
            return False
        self._wanted.add(task_id)
        return True

    def is_wanted(self, task_id: str) -> bool:
        """Whether somebody asked to see the task's previews."""
        return task_id in self._wanted

    def put(self, task_id: str, picture: bytes) -> None:
        """Keep a task's newest preview; the ones that were put longest ago go when there are too many."""
        if task_id not in self._wanted or len(picture) > MAX_PREVIEW:
            return
        self._drop(task_id)
        self._pictures[task_id] = picture
        self._bytes += len(picture)
        while self._bytes > self._budget:
            self._drop(next(iter(self._pictures)))

    def get(self, task_id: str) -> bytes | None:
        """The task's newest preview, if there is one."""
        return self._pictures.get(task_id)

    def forget(self, task_id: str) -> None:
        """The task has ended."""
        self._wanted.discard(task_id)
        self._drop(task_id)

    def _drop(self, task_id: str) -> None:
        self._bytes -= len(self._pictures.pop(task_id, b""))
