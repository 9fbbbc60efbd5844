"""What stands between a server and those who connect to it: a network as it is at its worst."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
from failing import Calls

from fluxserve.worker import protocol


class Front:
    """Carries each connection on to a port of this machine; it ends for both when either way ends."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.connections = 0
        self._carrying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Front]:
        """On a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(self._carrying):
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError):  # nobody listens there
                theirs = await asyncio.open_connection("127.0.0.1", self.target)
                await self._join((reader, writer), theirs)
        finally:
            writer.transport.abort()
            self._carrying.discard(task)

    async def _join(
        self,
        ours: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        theirs: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        ways = [
            asyncio.create_task(self.carry(ours[0], theirs[1], "to the server")),
            asyncio.create_task(self.carry(theirs[0], ours[1], "from the server")),
        ]
        try:
            with contextlib.suppress(asyncio.CancelledError):  # whoever listens no more
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            theirs[1].transport.abort()
            ours[1].transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    @abstractmethod
    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Carry one way of a connection until it is to end."""


class Relay(Front):
    """Carries message by message, and cuts the connection at one: it arrives, or it is lost."""

    def __init__(self, port: int, calls: Calls, *, delivers: bool) -> None:
        super().__init__(port)
        self._calls = calls
        self._delivers = delivers

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Until the message that fails."""
        while (body := await protocol.read_frame(reader)) is not None:
            cut = self._calls.fails(f"{way}: {msgspec.msgpack.decode(body)['type']}")
            if self._delivers or not cut:
                writer.write(len(body).to_bytes(4, "big") + body)
                with contextlib.suppress(OSError):
                    await writer.drain()
            if cut:
                await asyncio.sleep(0.01 if self._delivers else 0.0)  # what was written leaves before the end
                return


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How a network is. Seconds, bytes, bytes a second.

    `latency` comes before each piece, and up to `jitter` on top; a piece is at most `piece` bytes. After a number of
    bytes that is drawn from `ends` a way ends: with a reset, or, where it `falls_silent`, the connection is silent
    for so long and then goes on; where it is `half_closed`, this way ends as if all were said.
    """

    latency: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    piece: int = 65536
    ends: tuple[int, int] | None = None
    falls_silent: float = 0.0
    half_closed: bool = False


class FaultProxy(Front):
    """Carries bytes through a weather; chance is seeded."""

    def __init__(self, port: int, weather: Weather, rng: random.Random) -> None:
        super().__init__(port)
        self._weather = weather
        self._rng = rng

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:  # noqa: ARG002
        """Until the other end goes, or the weather ends it; both ways are alike."""
        weather, rng = self._weather, self._rng
        left = rng.randint(*weather.ends) if weather.ends else None
        with contextlib.suppress(OSError):
            while data := await reader.read(rng.randint(1, weather.piece)):
                if weather.latency:
                    await asyncio.sleep(weather.latency + weather.jitter * rng.random())
                if weather.rate:
                    await asyncio.sleep(len(data) / weather.rate)
                writer.write(data)
                await writer.drain()
                if left is None or (left := left - len(data)) > 0:
                    continue
                if weather.half_closed:
                    writer.write_eof()
                    await asyncio.Event().wait()  # the other way goes on until somebody has enough
                if not weather.falls_silent:
                    return
                await asyncio.sleep(weather.falls_silent)
                left = None
