"""A request that never became whole makes no task and costs nothing, whatever its caller does instead; raw sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvicorn
from facts import PREFIXES
from inprocess import Server

from fluxserve.api.http_protocol import Limits, make_protocol
from fluxserve.app.listeners import HttpServer

#: Valid JSON, so that nothing but the missing bytes can refuse it.
BODY = b'{"prompt": "x"}'
SHORT = Limits(header_seconds=0.3, body_seconds=0.3, linger_seconds=0.1)
FRAMINGS = {
    "short of its length": (b"Content-Length: 100\r\n", BODY),
    "without its last chunk": (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n" % (len(BODY), BODY)),
    "with half of its last chunk": (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)),
    "with a broken chunk": (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\nxyz\r\n" % (len(BODY), BODY)),
}
LEAVING: dict[str, Callable[[asyncio.StreamWriter], None]] = {
    "says nothing more": lambda _: None,
    "closes its half": lambda writer: writer.write_eof(),
    "closes": lambda writer: writer.close(),
    "resets": lambda writer: writer.transport.abort(),
}


async def talk(app: Server, data: bytes, leave: Callable[[asyncio.StreamWriter], None]) -> bytes:
    """What a server on a socket answers to these bytes; it has ended, and its requests with it, when this returns."""
    listener = socket.create_server(("127.0.0.1", 0))
    http = HttpServer(uvicorn.Config(app.app, http=make_protocol(SHORT), ws="none", lifespan="off", log_config=None))
    serving = asyncio.create_task(http.serve([listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(data)
    await writer.drain()
    leave(writer)
    answer = b""
    try:
        while not answer.endswith(b"}") and (part := await reader.read(65536)):
            answer += part
    except ConnectionError:
        pass
    writer.close()
    http.should_exit = True
    await serving
    return answer


def submit(prefix: str, key: str, framing: bytes, body: bytes) -> bytes:
    return f"POST {prefix}/flux-dev HTTP/1.1\r\nHost: flux.test\r\nX-Key: {key}\r\n".encode() + framing + b"\r\n" + body


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING.keys())
@pytest.mark.parametrize(("framing", "body"), FRAMINGS.values(), ids=FRAMINGS.keys())
def test_a_request_that_was_cut_off_is_not_accepted(
    server: Server, prefix: str, leave: Callable[[asyncio.StreamWriter], None], framing: bytes, body: bytes
) -> None:
    key = server.new_key(grant=10_000)
    answer = server.run(talk(server, submit(prefix, key, framing, body), leave))
    assert b" 200 " not in answer
    assert (server.balance(key), len(server.service.views)) == (10_000, 0)


def test_a_whole_request_is_accepted_in_the_same_way(server: Server) -> None:
    key = server.new_key(grant=10_000)
    length = b"Content-Length: %d\r\n" % len(BODY)
    answer = server.run(talk(server, submit("/v1", key, length, BODY), LEAVING["says nothing more"]))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert (server.balance(key), len(server.service.views)) == (7500, 1)


def test_a_caller_that_was_told_408_may_try_again_and_pays_once(server: Server) -> None:
    key = server.new_key(grant=10_000)
    late = submit("/v1", key, b"Content-Length: 100\r\n", BODY)
    assert server.run(talk(server, late, LEAVING["says nothing more"])).startswith(b"HTTP/1.1 408 ")
    assert server.ask("POST", "/v1/flux-dev", key=key, body=BODY).status_code == 200
    assert (server.balance(key), len(server.service.views)) == (7500, 1)
