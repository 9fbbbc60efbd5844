"""Callers vanish in submits, waiting polls and downloads (R17): what they asked for is drawn, and nothing stays."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from servers import MakeServer, Server, until

MIB = 2**20
#: Closing so sends a reset, as a caller does whose machine is gone.
RESET = struct.pack("ii", 1, 0)


def vanish(server: Server, request: bytes, *, after: int) -> None:
    """Send a request, take so many bytes of its answer, and be gone."""
    host, _, port = urlsplit(server.url).netloc.partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        line.sendall(request)
        if after:
            line.recv(after)


def request(server: Server, method: str, path: str, body: bytes = b"") -> bytes:
    lines = (f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"X-Key: {server.key}", f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def held(server: Server) -> tuple[int, int]:
    """Open files of the server process, and its memory."""
    assert server.process is not None
    folder = Path(f"/proc/{server.process.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return len(list((folder / "fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE")


def test_callers_that_vanish_leave_nothing_and_get_what_they_asked_for(
    make_server: MakeServer, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 1000 if long else 100
    server = make_server(workers="1").start()
    ready = server.submit("a red apple", output_format="png")
    server.wait(ready)
    assert server.stop() == 0
    server.start(ready=False, workers="0").wait_until_answers()
    sample = str(server.poll(ready)["result"]["sample"])  # type: ignore[index]
    waiting = server.submit("waits as long as nobody draws")
    body = json.dumps({"prompt": "gone", "width": 256, "height": 256}).encode()
    ways = (
        (request(server, "POST", "/v1/flux-dev", body), 0),
        (request(server, "POST", "/v1/flux-dev", body + b" " * 99)[:-99], 0),  # cut off: never a task
        (request(server, "GET", f"/v1/get_result?id={waiting}&wait=20"), 0),
        (request(server, "GET", urlsplit(sample).path), 100),
    )
    files, _ = held(server)
    for sent, after in ways:  # what grows once, grows here
        for _ in range(20):
            vanish(server, sent, after=after)
    until(lambda: held(server)[0] <= files + 5, 20.0, "the first ones are gone")
    memory = held(server)[1]
    for number in range(count):
        sent, after = ways[number % len(ways)]
        vanish(server, sent, after=after)
    until(lambda: held(server)[0] <= files + 5, 20.0, "the connections are closed")
    left, grown = held(server)[0] - files, held(server)[1] - memory
    assert grown < 20 * MIB
    tasks = "SELECT count(*) FROM tasks WHERE json_extract(generation, '$.prompt') = 'gone'"
    assert server.stop() == 0
    ((begun,),) = server.rows(tasks)
    assert 0 < begun <= 20 + count // 4  # type: ignore[operator]
    server.start()
    until(lambda: server.rows(f"{tasks} AND state = 'ready'") == [(begun,)], 20.0, "what was accepted is drawn")
    assert server.command("fsck").returncode == 0
    assert "Traceback" not in server.log
    with capsys.disabled():
        print(f"\n  {count} callers vanished: {left:+} open files, {grown / MIB:+.1f} MiB")
