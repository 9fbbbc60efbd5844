"""The deadlines of the HTTP front and its limit of connections, with slow and silent clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import threading
import time
from contextlib import ExitStack

import pytest
import uvicorn
from http_front import CHUNKED, GET, HOST, SHORT, App, Front, drip, post, read_answer, read_to_end, refusal
from uvicorn.server import ServerState

from fluxserve.api.http_protocol import FrontProtocol, Limits, caller_of, make_protocol

pytestmark = pytest.mark.alone


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


def test_the_rest_of_a_body_that_was_answered_early_is_followed_by_the_idle_deadline(front: Front) -> None:
    with front.connect() as connection:
        connection.sendall(post(b"x" * 130_000, length=130_001).replace(b"/a ", b"/early ", 1))
        assert read_answer(connection)[0] == 401
        assert_silent(connection, 1.3)  # Longer than the idle deadline, shorter than what the body earned.
        connection.sendall(b"x")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 4


def test_a_body_earns_time_by_the_bytes_that_arrive(front: Front) -> None:
    body = b"x" * (12 * 16 * 1024)
    with front.connect() as connection:
        connection.sendall(GET)  # Used before: no deadline of idle connections may strike either.
        assert read_answer(connection)[0] == 200
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


def test_a_body_that_waits_for_us_is_not_late() -> None:
    server = Front(Limits(header_seconds=0.4, body_seconds=0.4, body_bytes_per_second=2**30), "uvloop")
    try:
        with server.connect() as connection:
            connection.sendall(post(b"x" * 1_000_000).replace(b"/a ", b"/lazy ", 1))
            assert_silent(connection, 1.5)
            release(server)
            assert read_answer(connection)[1]["size"] == 1_000_000
    finally:
        server.stop()


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


class Skipping(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


class Filling(asyncio.Transport):
    """A transport of which only the size of its buffer matters."""

    unsent = 0
    is_aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_aborted


@pytest.mark.parametrize("is_read", [True, False], ids=["a slow reader stays", "one who reads nothing is let go"])
def test_who_takes_part_after_part_is_not_late_however_much_is_unsent(is_read: bool) -> None:
    loop = Skipping()

    async def watched() -> bool:
        app, transport = App(), Filling()
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None)
        protocol = make_protocol(Limits())(config, ServerState(), {})
        protocol.connection_made(transport)
        protocol.data_received(GET.replace(b"/a", b"/held"))
        protocol.pause_writing()
        for period in range(20):
            # Each part leaves and the next one is there before anybody looks: what is unsent only grows.
            transport.unsent = 100_000 + (period if is_read else 0)
            if is_read:
                protocol.resume_writing()
                protocol.pause_writing()
            loop.skipped += 5.1
            for _ in range(4):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        app.released.set()
        for _ in range(4):
            await asyncio.sleep(0)
        return transport.is_aborted

    with contextlib.closing(loop):
        assert loop.run_until_complete(watched()) is not is_read


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


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_an_ipv6_network_counts_as_one_caller(address: str, caller: str) -> None:
    assert caller_of(address) == caller


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
