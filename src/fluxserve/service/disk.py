"""Whether the disk has room for what callers are promised.

What it does not know: what is kept on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from fluxserve.errors import DiskFull

DISK_CHECK_S = 1.0


class DiskGate:
    """Whether the data folder's disk has room; looked up at most once a second."""

    def __init__(self, folder: Path, minimum: int, now: Callable[[], float]) -> None:
        self._folder = folder
        self._minimum = minimum
        self._now = now
        self._checked_at = float("-inf")
        self._low = False

    @property
    def is_low(self) -> bool:
        """Less than the minimum is free, or the folder is out of reach."""
        now = self._now()
        if not 0 <= now - self._checked_at < DISK_CHECK_S:
            self._checked_at = now
            self._low = self._look()
        return self._low

    def _look(self) -> bool:
        try:
            return shutil.disk_usage(self._folder).free < self._minimum
        except OSError:  # renamed away, or its mount has a hiccup
            return True

    def check(self) -> None:
        """Raises DiskFull."""
        if self.is_low:
            raise DiskFull(
                "The server's disk is nearly full or out of reach, so no task can be kept safely. Try again later."
            )
