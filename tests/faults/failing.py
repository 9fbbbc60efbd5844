"""Calls that fail: the n-th of all that one server makes of its database, its files, its engine or a connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import msgspec

from fluxserve.catalogue import Generation
from fluxserve.engine.base import NO_PICTURES, Event, Pixels
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings
from fluxserve.worker import protocol


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


@dataclass
class Relay:
    """Stands between a server and its workers, and cuts the connection at a message: it arrives, or it is lost."""

    port: int
    calls: Calls
    delivers: bool
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        ways = [
            asyncio.create_task(self._carry(one, other, name))
            for one, other, name in ((reader, server_writer, "to the server"), (server_reader, writer, "from it"))
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):  # from `close`
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, server_writer):
                end.transport.abort()
            for way in ways:
                way.cancel()
            self._carrying.discard(task)
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        while (body := await protocol.read_frame(reader)) is not None:
            cut = self.calls.fails(f"{name}: {_kind(body)}")
            if self.delivers or not cut:
                writer.write(len(body).to_bytes(4, "big") + body)
                with contextlib.suppress(OSError):
                    await writer.drain()
            if cut:
                await asyncio.sleep(0.01 if self.delivers else 0.0)  # what was written leaves before the end
                return

    async def close(self) -> None:
        """End every connection."""
        for task in list(self._carrying):
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)


def _kind(body: bytes) -> str:
    return str(msgspec.msgpack.decode(body)["type"])
