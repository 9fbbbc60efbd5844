"""What the HTTP front reads, and what it refuses because it could be read in two ways or is too large."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import uvicorn
from http_front import CHUNKED, GET, HOST, App, Front, post, read_answer, read_to_end, refusal
from uvicorn.server import ServerState

from fluxserve.api.http_protocol import Limits, make_protocol


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


class Late(asyncio.Transport):
    """Records what is written; goes on delivering after it was closed, as a transport under TLS may."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return b"connection: close" in self.written

    def can_write_eof(self) -> bool:
        return False


def deliver(*parts: bytes) -> tuple[list[str], bytes]:
    """Paths that were executed and what was written, when the parts are received one after another."""

    async def delivered() -> tuple[list[str], bytes]:
        app, transport = App(), Late()
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
        protocol = make_protocol(Limits())(config, ServerState(), {})
        protocol.connection_made(transport)
        for part in parts:
            protocol.data_received(part)
            for _ in range(10):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return app.paths, transport.written

    return asyncio.run(delivered())


def test_bytes_that_a_closing_connection_still_delivers_are_not_executed() -> None:
    paths, written = deliver(GET.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), GET)
    assert paths == ["/a"]
    assert written.startswith(b"HTTP/1.1 200")


def test_a_request_that_breaks_after_its_headers_is_answered_once() -> None:
    broken = CHUNKED.replace(b"chunked", b"gzip").replace(b"/a ", b"/early ", 1)
    assert refusal(deliver(broken + b"\r\nabc")[1])[0] == 400


def test_paths_are_never_logged_because_they_carry_capabilities(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert front.talk(b"GET /secret HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")
        refusal(front.talk(b"GET /secret HTTP/1.1\r\n\r\n"))
    assert "secret" not in caplog.text


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
