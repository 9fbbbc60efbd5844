"""Calls that fail: the n-th of all that one server makes of its database, its files, its engine or a connection."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from fluxserve.catalogue import Generation
from fluxserve.engine.base import NO_PICTURES, Event, Pixels
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings


@dataclass
class Calls:
    """Counts calls while it is armed; those whose numbers are in `failing`, from 0 on, fail."""

    failing: range = range(0)
    armed: bool = False
    made: list[str] = field(default_factory=list)

    def fails(self, what: str) -> bool:
        """Count a call."""
        if not self.armed:
            return False
        self.made.append(what)
        return len(self.made) - 1 in self.failing

    @property
    def failed(self) -> list[str]:
        """What the calls were that failed."""
        return self.made[self.failing.start : self.failing.stop]


class FailingConnection:
    """A database connection whose statements fail as they do on a disk that cannot be written or read."""

    def __init__(self, connection: sqlite3.Connection, calls: Calls) -> None:
        self._connection = connection
        self._calls = calls

    def execute(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> sqlite3.Cursor:
        """Run one statement, or fail before it does anything."""
        if self._calls.fails(" ".join(sql.split()[:3])):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self._connection.execute(sql, parameters)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


class FailingEngine(FakeEngine):
    """An engine that breaks: not as drawing may fail, but as nobody expects."""

    def __init__(self, settings: Settings, calls: Calls) -> None:
        super().__init__(settings)
        self._calls = calls

    def _call(self, what: str) -> None:
        if self._calls.fails(what):
            raise RuntimeError(what)

    def admit(
        self,
        ref: str,
        generation: Generation,
        waypoint: bytes | None = None,
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        turn: float = 0.0,
        flow: str = "",
    ) -> None:
        """Take it in."""
        self._call("admit")
        super().admit(ref, generation, waypoint, pictures=pictures, turn=turn, flow=flow)

    def step(self) -> Sequence[Event]:
        """Advance."""
        self._call("step")
        return super().step()

    def save(self, ref: str) -> bytes | None:
        """Write down."""
        self._call("save")
        return super().save(ref)

    def warm(self) -> None:
        """Begin."""
        self._call("warm")
        super().warm()


#: What storages do with files, each call of the system by the name of its first argument.
FILE_CALLS = ("open", "fsync", "replace", "unlink", "mkdir")


@contextmanager
def failing_files(calls_of: Mapping[Path, Calls]) -> Iterator[None]:
    """Calls of the operating system on files below these folders fail, every other as on a disk that is full."""

    def wrapped(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(target: object, *arguments: object, **words: object) -> object:
            path = _path(target)
            calls = next((one for folder, one in calls_of.items() if path.startswith(f"{folder}/")), None)
            if calls is not None and calls.fails(name):
                first = calls.failing
                code = (errno.EIO, errno.ENOSPC)[(first.start + len(first) // 2) % 2]
                raise OSError(code, os.strerror(code))
            return call(target, *arguments, **words)

        return run

    with contextlib.ExitStack() as stack:
        for name in FILE_CALLS:
            stack.enter_context(mock.patch.object(os, name, wrapped(name, getattr(os, name))))
        yield


def _path(target: object) -> str:
    if isinstance(target, int):
        with contextlib.suppress(OSError):
            return str(Path(f"/proc/self/fd/{target}").readlink())
        return ""
    return os.fspath(target)  # type: ignore[call-overload, no-any-return]
