"""A real uvicorn server behind our HTTP front, on a loopback port, and raw sockets to talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from fluxserve.api.http_protocol import Limits, make_protocol

SHORT = Limits(header_seconds=0.4, body_seconds=0.4, send_seconds=0.8, linger_seconds=0.3)
HOST = b"Host: localhost\r\n"
GET = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"


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
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
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
