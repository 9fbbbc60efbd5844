"""The HTTP/1.1 front: uvicorn's parser protocol with deadlines, limits and stricter reading.

A request has to arrive in time, measured by bytes really received, and within its limits; what could be read in two
ways is refused. A refusal is a small JSON error, after which the connection closes.
What it does not know: routes, keys and bodies; the size of a body is the application's limit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

#: uri-host [":" port] of RFC 9110, without the percent escapes and commas that no host of ours has.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a connection may take. Idle connections close after uvicorn's own `timeout_keep_alive`.

    A body is due `body_seconds` after the headers, and later by what has arrived of it at `body_bytes_per_second`;
    bytes beyond `body_credit` earn no more time. `exempt` holds addresses of proxies, which speak for many callers.
    """

    header_seconds: float = 5.0
    body_seconds: float = 10.0
    body_bytes_per_second: int = 64 * 1024
    body_credit: int = 64 * 2**20
    send_seconds: float = 30.0
    linger_seconds: float = 1.0
    max_headers: int = 100
    max_header_bytes: int = 32 * 1024
    max_connections_per_address: int = 1000
    exempt: frozenset[str] = frozenset()


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class FrontProtocol(HttpToolsProtocol):
    """One connection. `make_protocol` makes the subclass that uvicorn is given.

    `_phase` is that of the message being read; `_since` is when the phase began. One timer per connection looks at
    them every few seconds, so that a request arms nothing.
    """

    limits: ClassVar[Limits] = Limits()
    per_address: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, start its watch."""
        super().connection_made(transport)
        self.access_log = False  # Paths carry capabilities and signatures.
        self._phase: Literal["fresh", "headers", "body", "idle"] = "fresh"
        self._since = self._sent_at = self.loop.time()
        self._received = self._unsent = 0
        #: Bytes since the last sign of progress; framing, trailers and blank lines show none.
        self._barren = 0
        self._is_refused = False
        self._address = caller_of(self.client[0]) if self.client and self.client[0] not in self.limits.exempt else ""
        self._period = min(self.limits.header_seconds, self.limits.body_seconds)
        self._timer = self.loop.call_later(self._period, self._watch)
        if self._address:
            self.per_address[self._address] += 1
            if self.per_address[self._address] > self.limits.max_connections_per_address:
                self._refuse(429, "Too many connections from your address.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._timer.cancel()
        if self._address:
            self.per_address[self._address] -= 1
            if not self.per_address[self._address]:
                del self.per_address[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser. After a refusal what still arrives is dropped, so that the client can read the answer."""
        if self._is_refused:
            return
        self._barren += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, _Refused):
                cause = _Refused(400, "The request is not valid HTTP/1.1.")
            self._refuse(cause.status, cause.message)
        else:
            if self._barren > self.limits.max_header_bytes:
                self._refuse(431, "The request's headers are too large.")

    def on_message_begin(self) -> None:
        """The first byte of a request line."""
        self._phase = "headers"
        self._since = self.loop.time()
        self._barren = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Judge the headers, then let uvicorn start the application."""
        self._judge()
        if self.parser.should_upgrade():
            return
        self._ahead = self.cycle
        super().on_headers_complete()
        # Trailers go into a list of their own: the application already reads the headers.
        self.headers = []
        self._phase = "body"
        self._since = self.loop.time()
        self._received = self._barren = 0

    def on_body(self, body: bytes) -> None:
        """Body bytes, which earn time."""
        self._received += len(body)
        self._barren = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is here."""
        if self._phase != "body":
            return
        super().on_message_complete()
        self._phase = "idle"
        self._barren = 0
        if self.cycle.response_complete:
            # The rest of a body that was answered early: idle only now.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one in the middle of a request has its own deadline."""
        if self._phase == "idle" and self.cycle.response_complete:
            super().timeout_keep_alive_handler()

    def resume_writing(self) -> None:
        """The client has taken most of what was sent; of an answer in parts the next one follows at once."""
        self._sent_at = self.loop.time()
        super().resume_writing()

    def _judge(self) -> None:
        size, hosts, version = len(self.url), [], self.parser.get_http_version()
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"host":
                hosts.append(value)
            elif name == b"transfer-encoding" and version != "1.1":
                raise _Refused(400, "Transfer-Encoding needs HTTP/1.1.")
        if len(self.headers) > self.limits.max_headers or size > self.limits.max_header_bytes:
            raise _Refused(431, "The request's headers are too large.")
        if version not in ("1.1", "1.0"):
            raise _Refused(400, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if len(hosts) != 1 and (hosts or version == "1.1"):
            raise _Refused(400, "A request needs exactly one Host header.")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise _Refused(400, "The Host header is not a host name.")
        if self.parser.get_method() == b"CONNECT":
            raise _Refused(400, "This is not a proxy.")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again without its offer, because the parser takes its body for the other protocol.

        Java's HTTP client offers h2c with the first POST to every server.
        """
        line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([line, *headers, b"\r\n", rest]))

    def _watch(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._unsent:
            self._sent_at = now
        self._unsent = unsent
        if now - self._sent_at > self.limits.send_seconds:
            self.transport.abort()
            return
        if self.flow.read_paused:
            # We keep the client waiting, not the client us.
            self._since, self._received = now, 0
        due = self._due(now)
        if due <= now:
            self._refuse_late()
            due = now + self._period
        self._timer = self.loop.call_later(min(due - now, self._period), self._watch)

    def _due(self, now: float) -> float:
        if self._is_refused or self._phase == "idle" or self.transport.is_closing():
            return now + self._period
        if self._phase != "body":
            return self._since + self.limits.header_seconds
        earned = min(self._received, self.limits.body_credit) / self.limits.body_bytes_per_second
        return self._since + self.limits.body_seconds + earned

    def _refuse_late(self) -> None:
        if self._phase == "fresh":  # Not a byte of a request: nobody to tell.
            self.transport.close()
        else:
            self._refuse(408, f"The request's {self._phase} did not arrive in time.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer an error and close, behind the answers that earlier requests still get."""
        self._is_refused = True
        self._unset_keepalive_if_required()
        is_own = self._phase == "body"
        if is_own and self.pipeline:
            # Refused while it still waits for its turn: the request ahead becomes the last.
            self.pipeline.popleft()
            self.cycle, is_own = self._ahead, False
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and not is_own:
            self.cycle.keep_alive = False
        elif is_own and self.cycle.response_started:
            self.transport.close()
        else:
            if is_answering:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._answer(status, message)

    def _answer(self, status: int, message: str) -> None:
        body = json.dumps({"detail": message, "message": message, "status_code": status}).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        # Closing with unread bytes would reset the connection and the client could lose the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(self.limits.linger_seconds, self.transport.abort)
        else:
            self.transport.close()


def make_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`; its connections are counted together."""

    class Limited(FrontProtocol):
        pass

    Limited.limits = limits
    Limited.per_address = Counter()
    return Limited


def caller_of(address: str) -> str:
    """Who is counted: an IPv4 address or an IPv6 /64, the least that one caller is given."""
    if ":" not in address:
        return address
    v6 = ipaddress.IPv6Address(address.partition("%")[0])
    return str(v6.ipv4_mapped or ipaddress.IPv6Network((int(v6), 64), strict=False))
