"""Requests of OpenAI's images API are held: who vanishes pays nothing, and a server that ends tells or loses nobody."""

from __future__ import annotations

import base64
import json
import socket
import threading
from urllib.parse import urlsplit

import httpx
from servers import NO_TLS, MakeServer, Server, until

PATH = "/v1/images/generations"
BODY = {"prompt": "a red apple", "size": "256x256", "quality": "low"}


def begin(server: Server, key: str, n: int = 1) -> socket.socket:
    """A request on a line of its own, which nothing has answered yet."""
    host, _, port = urlsplit(server.url).netloc.partition(":")
    line = socket.create_connection((host, int(port)))
    body = json.dumps({**BODY, "n": n}).encode()
    head = (f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {key}", f"Content-Length: {len(body)}")
    line.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)
    return line


def states(server: Server) -> list[object]:
    return [state for (state,) in server.rows("SELECT state FROM tasks ORDER BY rowid")]


def key_of(server: Server, given: str) -> str:
    made = server.command("keys", "create", "test", "--credits", given)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()[-1]


def left(server: Server, key: str) -> float:
    with server.client(key) as client:
        return float(client.get("/v1/credits").json()["credits"])


def test_the_tasks_of_callers_that_vanish_are_cancelled_and_paid_back(make_server: MakeServer) -> None:
    server = make_server(fake_latency="30", workers="1").start()
    key = key_of(server, "10")
    line = begin(server, key, n=3)
    until(lambda: "running" in states(server) and len(states(server)) == 3, 10.0, "one is drawn")
    assert left(server, key) < 10
    line.close()
    until(lambda: states(server) == ["cancelled"] * 3, 10.0, "all are cancelled")
    assert left(server, key) == 10
    assert server.stop() == 0
    assert server.command("fsck").returncode == 0


def test_a_server_that_stops_tells_its_callers_to_come_again(make_server: MakeServer) -> None:
    server = make_server(fake_latency="30", workers="1", drain="0").start()
    with begin(server, server.key) as line:
        until(lambda: "running" in states(server), 10.0, "it is drawn")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        answer = line.makefile("rb").read()
        stopping.join()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"error"' in answer
    assert states(server) == ["cancelled"]


def test_what_a_killed_server_held_is_drawn_by_the_next_one(make_server: MakeServer) -> None:
    server = make_server(fake_latency="2", workers="1").start()
    with begin(server, server.key):
        until(lambda: states(server) != [], 10.0, "it is there")
        server.kill()
    server.start()
    until(lambda: states(server) == ["ready"], 20.0, "it is drawn")
    assert server.command("fsck").returncode == 0


def test_mini_streams_previews_of_what_it_draws(make_server: MakeServer) -> None:
    server = make_server(engine="diffusion", workers="1").start()
    headers = {"authorization": f"Bearer {server.key}"}
    fields = {**BODY, "model": "flux-dev", "quality": "high", "stream": True, "partial_images": 3}
    answer = httpx.post(server.url + PATH, headers=headers, json=fields, timeout=60, verify=NO_TLS)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    *partials, last = events
    assert last["type"] == "image_generation.completed"
    assert base64.b64decode(last["b64_json"]).startswith(b"\x89PNG")
    assert partials
    assert all(base64.b64decode(partial["b64_json"]).startswith(b"\xff\xd8") for partial in partials)
