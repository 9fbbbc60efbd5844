"""A load generator: keep-alive connections that each send one request after another, on raw sockets.

It counts answers by status and keeps every latency, so that percentiles are of all requests, not of samples.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast


@dataclass(slots=True)
class Tally:
    """What came back. Latencies in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class _Connection(asyncio.Protocol):
    def __init__(self, tally: Tally, next_request: Callable[[], bytes | None], keep_bodies: bool) -> None:
        self._tally = tally
        self._next = next_request
        self._keep = keep_bodies
        self._buffer = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        request = self._next()
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        start = self._buffer.index(b"content-length: ") + 16
        length = int(self._buffer[start : self._buffer.index(b"\r", start)])
        if len(self._buffer) < head + 4 + length:
            return
        self._tally.latencies.append(time.perf_counter() - self._sent_at)
        self._tally.statuses[int(self._buffer[9:12])] += 1
        if self._keep:
            self._tally.bodies.append(self._buffer[head + 4 : head + 4 + length])
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the signature is asyncio's
        if not self.done.done():
            self.done.set_result(None)


async def run(
    port: int, requests: Sequence[bytes], *, connections: int, total: int, keep_bodies: bool = False
) -> Tally:
    """Send `total` requests, taken from `requests` in turn, over so many connections."""
    tally = Tally()
    sent = 0

    def next_request() -> bytes | None:
        nonlocal sent
        if sent == total:
            return None
        sent += 1
        return requests[sent % len(requests)]

    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    pairs = [
        await loop.create_connection(lambda: _Connection(tally, next_request, keep_bodies), "127.0.0.1", port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in pairs))
    tally.seconds = time.perf_counter() - began
    return tally


def post(path: str, key: str, body: bytes) -> bytes:
    """A submit."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Key: {key}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def get(path: str, key: str | None = None) -> bytes:
    """A poll."""
    authorization = f"X-Key: {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n".encode()
