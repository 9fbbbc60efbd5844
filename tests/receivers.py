"""A small HTTP server whose behaviour is a function, and an outbound client whose network ends there."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore
import trustme

from fluxserve.delivery.addresses import Address, Allowance
from fluxserve.delivery.outbound import Outbound

#: Some address that is public, and belongs to nobody who would hear of these tests: none of them leaves this machine.
PUBLIC = "93.184.215.14"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Behave = Callable[[Seen, asyncio.StreamWriter], Awaitable[None]]


async def answer_ok(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """A receiver as it should be."""
    writer.write(OK)


def says(answer: bytes) -> Behave:
    """Always these bytes."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return behave


def status(code: int, **headers: str) -> Behave:
    """Always this status."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return says(f"HTTP/1.1 {code} X\r\n{lines}content-length: 0\r\n\r\n".encode())


async def resets(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Hangs up without a word."""
    writer.transport.abort()


async def never_answers(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Takes the request and stays silent until the other end goes."""
    await asyncio.Event().wait()


async def drips(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """A byte now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.01)


@dataclass
class Receiver:
    """What listens on a port of this machine."""

    behave: Behave
    port: int = 0
    connections: int = 0
    #: Bytes of answers that the system has taken.
    written: int = 0
    seen: list[Seen] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            seen = Seen(method, path, headers, body)
            self.seen.append(seen)
            await self.behave(seen, writer)
            await writer.drain()
        writer.close()
        self.serving.discard(task)


@asynccontextmanager
async def receiving(behave: Behave = answer_ok, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A receiver on a free port."""
    receiver = Receiver(behave)
    if tls is not None:
        tls.sni_callback = lambda _socket, name, _context: receiver.names.append(name)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(receiver.serving):
            task.cancel()
        await asyncio.gather(*receiver.serving, return_exceptions=True)


@dataclass
class Network:
    """Names and routes of a test: whatever is dialled ends at `port` on this machine, and is written down."""

    port: int
    zone: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: For some addresses another port.
    routes: Mapping[str, int] = field(default_factory=dict)
    dialled: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def resolve(self, host: str, _port: int) -> Sequence[Address]:
        """The zone's answer, or nothing."""
        self.asked.append(host)
        if host not in self.zone:
            raise OSError
        return [ipaddress.ip_address(text) for text in self.zone[host]]

    async def dial(self, address: Address, port: int) -> httpcore.AsyncNetworkStream:
        """A real connection, to here."""
        self.dialled.append(str(address))
        port = self.routes.get(str(address), self.port)
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", port, timeout=5.0)

    def client(self, *allowed: str, trust: trustme.CA | None = None) -> Outbound:
        """An outbound client in this network."""
        tls = ssl.create_default_context()
        if trust is not None:
            trust.configure_trust(tls)
        return Outbound(
            allowance=Allowance.parse(allowed), tls=tls, resolves=self.resolve, dials=self.dial,
            is_own=lambda _: False,
        )  # fmt: skip


def server_tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    """What a server of this name shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context
