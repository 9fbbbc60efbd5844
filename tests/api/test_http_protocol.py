"""The HTTP front against raw sockets: a real uvicorn server on a loopback port, with short deadlines."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from fluxserve.api.http_protocol import FrontProtocol, Limits, make_protocol

SHORT = Limits(header_seconds=0.4, body_seconds=0.4, send_seconds=0.8, linger_seconds=0.3)
HOST = b"Host: localhost\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"


def post(body: bytes, headers: bytes = b"", length: int | None = None) -> bytes:
    size = str(len(body) if length is None else length).encode()
    return b"POST /a HTTP/1.1\r\n" + HOST + headers + b"Content-Length: " + size + b"\r\n\r\n" + body


class App:
    """Answers with what it was asked; `/early` without reading, `/lazy` reads and `/held` answers after `/release`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        path = scope["path"]
        body = b""
        if path == "/lazy":
            await self.released.wait()
        while path != "/early":
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.paths.append(path)
        if path == "/held":
            await self.released.wait()
        if path == "/release":
            self.released.set()
        names = [name.decode() for name, _ in scope["headers"]]
        answer = json.dumps({"path": path, "size": len(body), "headers": names}).encode()
        answer += b" " * (32 * 2**20 if path == "/big" else 0)
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 401 if path == "/early" else 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer, "more_body": False})


class Front:
    """A running server; `talk` sends bytes on a fresh connection and reads to its end."""

    def __init__(self, limits: Limits, loop: str) -> None:
        self.app = App()
        self.protocol = make_protocol(limits)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        config = uvicorn.Config(
            self.app, http=self.protocol, loop=loop, lifespan="off", ws="none", log_config=None, timeout_keep_alive=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(self._socket.getsockname(), timeout=10) as connection:
            yield connection

    def talk(self, data: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(data)
            return read_to_end(connection)


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def read_answer(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """One response and not a byte more, by its Content-Length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = connection.recv(int(fields[b"content-length"]), socket.MSG_WAITALL)
    return int(head.split()[1]), json.loads(body)


def refusal(answer: bytes) -> tuple[int, dict[str, object]]:
    """The one error in `answer`: JSON, and it closes the connection."""
    assert answer.count(b"HTTP/1.1 4") == answer.count(b"HTTP/1.1 2") + 1 == 1, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json" in head
    error = json.loads(body)
    assert error["message"] == error["detail"]
    assert error["status_code"] == int(head.split()[1])
    return error["status_code"], error


def drip(connection: socket.socket, data: bytes, pause: float = 0.05) -> bytes:
    """Send a byte at a time for as long as the server listens; answer what it said meanwhile."""
    connection.settimeout(pause)
    received = b""
    for byte in data:
        try:
            connection.sendall(bytes([byte]))
            part = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            break
        if not part:
            break
        received += part
    return received


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    server = Front(SHORT, request.param)
    yield server
    server.stop()


def test_a_keep_alive_connection_serves_request_after_request(front: Front) -> None:
    with front.connect() as connection:
        for size in (0, 10, 300_000):
            connection.sendall(post(b"x" * size) if size else GET)
            status, body = read_answer(connection)
            assert (status, body["size"]) == (200, size)


def test_a_connection_that_stays_busy_outlives_every_deadline(front: Front) -> None:
    with front.connect() as connection:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            connection.sendall(post(b"abc"))
            assert read_answer(connection)[0] == 200
            connection.settimeout(0.15)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(10)


def test_pipelined_requests_are_all_answered_in_order(front: Front) -> None:
    paths = [b"/%d" % number for number in range(400)]
    requests = b"".join(b"GET %s HTTP/1.1\r\n%s\r\n" % (path, HOST) for path in paths[:-1])
    answer = front.talk(requests + b"GET /last HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    told = [part.split(b'"')[3] for part in answer.split(b"\r\n\r\n")[1:]]
    assert told == [*paths[:-1], b"/last"]


def test_nothing_behind_a_connection_close_is_executed(front: Front) -> None:
    front.app.paths.clear()
    answer = front.talk(b"GET /first HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n" + GET)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert front.app.paths == ["/first"]


def test_broken_bytes_behind_a_request_do_not_replace_its_answer(front: Front) -> None:
    answer = front.talk(GET + b"broken\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("length", [40, 4000, 2_000_000])
def test_a_post_that_offers_h2c_keeps_its_body_and_its_connection(front: Front, length: int) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    with front.connect() as connection:
        connection.sendall(post(b"x" * length, offer) + GET)
        status, body = read_answer(connection)
        assert (status, body["size"]) == (200, length)
        assert "upgrade" not in body["headers"]
        assert read_answer(connection)[0] == 200


def test_an_early_answer_to_a_large_body_reaches_the_client_and_the_connection_goes_on(front: Front) -> None:
    body = b"x" * 5_000_000
    with front.connect() as connection:
        connection.sendall(post(body).replace(b"/a ", b"/early ", 1))
        assert read_answer(connection)[0] == 401
        connection.sendall(GET)
        assert read_answer(connection)[0] == 200
        assert connection.recv(1) == b""  # Idle again: closed by the keep-alive deadline.


def test_expect_100_continue_is_answered_before_the_body(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(post(b"", b"Expect: 100-continue\r\n", length=3))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert read_answer(connection)[1]["size"] == 3


CHUNKED = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    {
        "two Hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: other\r\n\r\n",
        "the same Host twice": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        "two Hosts on HTTP/1.0": b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
        "no Host": b"GET / HTTP/1.1\r\n\r\n",
        "empty Host": b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "list in Host": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "path in Host": b"GET / HTTP/1.1\r\nHost: a/b#\r\n\r\n",
        "user in Host": b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "Content-Length, then Transfer-Encoding": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"),
        "Transfer-Encoding, then Content-Length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        "two Content-Lengths": post(b"abc", b"Content-Length: 3\r\n"),
        "list in Content-Length": post(b"abc").replace(b"Length: 3", b"Length: 3, 3"),
        "signed Content-Length": post(b"abc").replace(b"Length: 3", b"Length: +3"),
        "unknown last coding": CHUNKED.replace(b"chunked", b"gzip") + b"\r\nabc",
        "misspelt coding": CHUNKED.replace(b"chunked", b"xchunked") + b"\r\n0\r\n\r\n",
        "chunked not last": CHUNKED.replace(b"chunked", b"chunked, identity") + b"\r\n0\r\n\r\n",
        "chunked twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunked on HTTP/1.0": CHUNKED.replace(b"/1.1", b"/1.0") + b"\r\n0\r\n\r\n",
        "hexadecimal prefix in a chunk size": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
        "overflowing chunk size": CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "bare LF in a chunk": CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
        "chunk longer than its size": CHUNKED + b"\r\n3\r\nabcdef\r\n0\r\n\r\n",
        "bare LF after the request line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
        "bare LF after a header": b"GET / HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
        "bare CR in a header": b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
        "obs-fold": b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n z\r\n\r\n",
        "space before the colon": b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        "space before the first header": b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
        "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
        "HTTP/0.9": b"GET /\r\n\r\n",
        "HTTP/2.0 request line": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        "bytes beyond ASCII in the path": "GET /é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
        "TLS on the plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_can_be_read_in_two_ways_is_refused(front: Front, request_bytes: tuple[str, bytes]) -> None:
    front.app.paths.clear()
    status, _ = refusal(front.talk(request_bytes[1]))
    assert status == 400
    assert front.app.paths == []


@pytest.mark.parametrize("host", [b"localhost:8808", b"127.0.0.1", b"[::1]:8808", b"flux.example.com", b"a_b-c"])
def test_ordinary_hosts_are_accepted(front: Front, host: bytes) -> None:
    answer = front.talk(b"GET / HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_http_1_0_needs_no_host(front: Front) -> None:
    assert front.talk(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("number", [100, 101, 5000])
def test_a_hundred_headers_are_enough(front: Front, number: int) -> None:
    headers = b"".join(b"a%d: b\r\n" % index for index in range(number - 2))
    answer = front.talk(b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST + headers + b"\r\n")
    assert int(answer.split()[1]) == (200 if number == 100 else 431)


def test_headers_of_32_kilobytes_are_enough(front: Front) -> None:
    def request(size: int) -> bytes:
        rest = len(b"/") + len(b"Host: localhost\r\n") + len(b"Connection: close\r\n") + len(b"X: \r\n")
        return b"GET / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"X: " + b"x" * (size - rest) + b"\r\n\r\n"

    assert front.talk(request(32 * 1024)).startswith(b"HTTP/1.1 200")
    assert refusal(front.talk(request(32 * 1024 + 1)))[0] == 431


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\n" + HOST + b"X: ", b"GET / HTTP/1.1\r\n" + HOST + b"X", b"GET /"],
    ids=["header value", "header name", "request line"],
)
def test_two_megabytes_of_headers_are_refused_while_they_arrive(front: Front, start: bytes) -> None:
    assert refusal(front.talk(start + b"x" * 2_000_000))[0] == 431


@pytest.mark.parametrize(
    "tail",
    [b"0\r\nX-Key: " + b"x" * 2_000_000, b"0\r\n" + b"a: b\r\n" * 300_000, b"1;a=" + b"x" * 2_000_000],
    ids=["trailer", "trailers", "chunk extension"],
)
def test_framing_without_a_body_byte_is_bounded(front: Front, tail: bytes) -> None:
    with front.connect() as connection:
        connection.sendall(CHUNKED + b"\r\n3\r\nabc\r\n" + tail)
        assert refusal(read_to_end(connection))[0] == 431


def test_a_trailer_does_not_become_a_header(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX-Key: forged\r\n\r\n")
        status, body = read_answer(connection)
        assert (status, body["size"]) == (200, 3)
        assert body["headers"] == ["host", "transfer-encoding"]


def test_a_silent_connection_is_closed_without_a_word(front: Front) -> None:
    began = time.monotonic()
    assert front.talk(b"") == b""
    assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("start", [b"", GET], ids=["fresh connection", "used connection"])
def test_blank_lines_do_not_keep_a_connection_open(front: Front, start: bytes) -> None:
    with front.connect() as connection:
        if start:
            connection.sendall(start)
            assert read_answer(connection)[0] == 200
        began = time.monotonic()
        assert drip(connection, b"\r\n" * 100) == b""
        assert time.monotonic() - began < 4


@pytest.mark.parametrize("start", [b"", GET], ids=["first request", "second request"])
def test_dripping_headers_end_at_the_deadline(front: Front, start: bytes) -> None:
    with front.connect() as connection:
        if start:
            connection.sendall(start)
            assert read_answer(connection)[0] == 200
        began = time.monotonic()
        status, error = refusal(drip(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200))
        assert (status, error["message"]) == (408, "The request's headers did not arrive in time.")
        assert 0.3 < time.monotonic() - began < 3


@pytest.mark.parametrize("start", [post(b"abc", length=1000), CHUNKED + b"\r\n"], ids=["length", "chunked"])
def test_a_stalled_body_ends_at_the_deadline(front: Front, start: bytes) -> None:
    began = time.monotonic()
    status, error = refusal(front.talk(start))
    assert (status, error["message"]) == (408, "The request's body did not arrive in time.")
    assert 0.3 < time.monotonic() - began < 3


def test_a_dripping_body_ends_at_the_deadline(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(post(b"", length=10_000))
        began = time.monotonic()
        assert refusal(drip(connection, b"x" * 200))[0] == 408
        assert 0.3 < time.monotonic() - began < 3


def test_a_dripping_body_that_was_answered_early_ends_too(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(post(b"", length=10_000).replace(b"/a ", b"/early ", 1))
        assert read_answer(connection)[0] == 401
        began = time.monotonic()
        assert drip(connection, b"x" * 200) == b""
        assert time.monotonic() - began < 3


def test_a_body_earns_time_by_the_bytes_that_arrive(front: Front) -> None:
    body = b"x" * (12 * 16 * 1024)
    with front.connect() as connection:
        began = time.monotonic()
        connection.sendall(post(b"", length=len(body)))
        connection.settimeout(0.1)
        for part in range(11):  # 160 KB/s: twice the deadline, but never late.
            connection.sendall(body[: 16 * 1024])
            with pytest.raises(TimeoutError):
                connection.recv(1)
            del part
        connection.settimeout(10)
        connection.sendall(body[: 16 * 1024])
        assert read_answer(connection)[1]["size"] == len(body)
        assert time.monotonic() - began > 2 * SHORT.body_seconds


def release(front: Front) -> None:
    answer = front.talk(b"GET /release HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def assert_silent(connection: socket.socket, seconds: float) -> None:
    connection.settimeout(seconds)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)


def test_a_body_that_waits_for_us_is_not_late(front: Front) -> None:
    front.app.released.clear()
    with front.connect() as connection:
        connection.sendall(post(b"x" * 1_000_000).replace(b"/a ", b"/lazy ", 1))
        assert_silent(connection, 3 * SHORT.body_seconds)
        release(front)
        assert read_answer(connection)[1]["size"] == 1_000_000


@pytest.mark.parametrize(
    "late",
    [b"GET /never", post(b"ab", length=3), GET + post(b"ab", length=3)],
    ids=["headers", "body", "body behind another"],
)
def test_a_late_request_behind_a_running_one_leaves_it_its_answer(front: Front, late: bytes) -> None:
    front.app.released.clear()
    front.app.paths.clear()
    with front.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/held") + late)
        assert_silent(connection, 3 * SHORT.header_seconds)
        release(front)
        complete = 1 + late.count(GET)
        assert read_to_end(connection).count(b"HTTP/1.1 200") == complete
        assert len(front.app.paths) == complete + 1


def test_a_client_that_does_not_read_its_answer_is_let_go(front: Front) -> None:
    address = "127.0.0.1"
    with front.connect() as connection:
        connection.sendall(GET.replace(b"/a", b"/big"))
        deadline = time.monotonic() + 8
        waiting = threading.Event()
        while front.protocol.per_address[address] and time.monotonic() < deadline:
            waiting.wait(0.05)
        assert not front.protocol.per_address[address]


def test_connections_of_one_address_are_limited_and_counted_down() -> None:
    server = Front(Limits(max_connections_per_address=3, linger_seconds=0.1), "uvloop")
    try:
        for _ in range(2):
            with ExitStack() as stack:
                allowed = [stack.enter_context(server.connect()) for _ in range(3)]
                for connection in allowed:
                    connection.sendall(GET)
                    assert read_answer(connection)[0] == 200
                assert refusal(server.talk(b""))[0] == 429
            waiting = threading.Event()
            for _ in range(100):
                if server.protocol.per_address:
                    waiting.wait(0.05)
            assert not server.protocol.per_address
    finally:
        server.stop()


def test_a_proxy_may_be_exempt_from_the_connection_limit() -> None:
    server = Front(Limits(max_connections_per_address=1, exempt=frozenset({"127.0.0.1"})), "uvloop")
    try:
        with server.connect() as one, server.connect() as two:
            for connection in (one, two):
                connection.sendall(GET)
                assert read_answer(connection)[0] == 200
    finally:
        server.stop()


def test_the_defaults_are_those_of_the_published_limits() -> None:
    assert issubclass(make_protocol(Limits()), FrontProtocol)
    limits = Limits()
    assert (limits.header_seconds, limits.body_seconds, limits.body_bytes_per_second) == (5, 10, 65536)
    assert (limits.max_headers, limits.max_header_bytes, limits.max_connections_per_address) == (100, 32768, 1000)


def slow_crowd(front: Front, number: int, rounds: int) -> tuple[list[float], float]:
    """Healthy latencies while `number` slow sockets hang on, and how long until the last of those was closed."""
    starts = [b"", b"GET / HTTP/1.1\r\nX: ", post(b"abc", length=1000), b"\r\n"]
    with ExitStack() as stack:
        crowd = [stack.enter_context(front.connect()) for _ in range(number)]
        began = time.monotonic()
        for index, connection in enumerate(crowd):
            connection.sendall(starts[index % len(starts)])
        latencies = []
        for _ in range(rounds):
            sent = time.monotonic()
            assert front.talk(GET.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)).startswith(b"HTTP/1.1 200")
            latencies.append(time.monotonic() - sent)
        for connection in crowd:
            read_to_end(connection)
        return latencies, time.monotonic() - began


def test_slow_sockets_do_not_hurt_healthy_requests(front: Front) -> None:
    latencies, closed_after = slow_crowd(front, number=200, rounds=60)
    assert statistics.median(latencies) < 0.05
    assert closed_after < 5


@pytest.mark.long
def test_five_hundred_slow_sockets_are_all_gone_within_twelve_seconds() -> None:
    server = Front(Limits(), "uvloop")
    try:
        latencies, closed_after = slow_crowd(server, number=500, rounds=1000)
        assert statistics.quantiles(latencies, n=100)[98] < 0.05
        assert closed_after < 12
    finally:
        server.stop()
