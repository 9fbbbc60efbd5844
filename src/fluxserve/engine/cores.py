"""Cores that the workers of a machine lend each other: who works while others are idle may use theirs too.

A worker that works holds a lock on one of the files here, and counts how many are held. So whatever ends a process
gives its core back, and nobody has to be asked.
What it does not know: threads, what the work is.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

#: More workers than this are never started for a machine's cores, so no more can work at once.
MOST_WORKERS = 16


class Cores:
    """One worker's view; `count` cores, in `folder` the locks of all workers. Without a folder it has one core."""

    def __init__(self, folder: Path | None, count: int) -> None:
        self._folder = folder
        self._count = count
        self._slots: list[int] = []
        self._own: int | None = None

    def share(self) -> int:
        """From now on this worker works; how many cores fall to each that does."""
        if self._own is None:
            self._slots = self._slots or self._opened()
            self._own = next((slot for slot in self._slots if _lock(slot, fcntl.LOCK_EX)), None)
        if self._own is None:
            return 1
        return max(1, self._count // (1 + sum(self._is_held(slot) for slot in self._slots if slot != self._own)))

    def rest(self) -> None:
        """This worker is idle."""
        if self._own is not None:
            fcntl.flock(self._own, fcntl.LOCK_UN)
            self._own = None

    def _opened(self) -> list[int]:
        """Descriptors of the files, which are closed with the process; none where they cannot be had."""
        if self._folder is None or self._count == 1:
            return []
        files = [self._folder / f"{number}.lock" for number in range(min(self._count, MOST_WORKERS))]
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return [os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for file in files]
        except OSError:
            return []

    @staticmethod
    def _is_held(slot: int) -> bool:
        """Whether another worker has it. To look is to share it for a moment; who would take it then takes the next."""
        if not _lock(slot, fcntl.LOCK_SH):
            return True
        fcntl.flock(slot, fcntl.LOCK_UN)
        return False


def _lock(slot: int, kind: int) -> bool:
    try:
        fcntl.flock(slot, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
