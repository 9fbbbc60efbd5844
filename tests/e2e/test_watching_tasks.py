"""Long polls, streams of events and previews on real servers with real workers."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from servers import MakeServer, Server, until

from fluxserve.client import Client, Progress, Result

STEPS = 8


def client_of(server: Server) -> Client:
    """The client that comes with fluxserve."""
    return Client(server.url, server.key)


def test_a_client_sees_every_step_previews_and_the_result(make_server: MakeServer) -> None:
    server = make_server(fake_latency="3", fake_steps=str(STEPS)).start()
    with client_of(server) as client:
        task = client.create("flux-dev", "a red apple", {"width": 512, "height": 256})
        *progress, result = client.events(task, previews=True, timeout=60)
        assert isinstance(result, Result)
        assert client.download(result).media_type == "image/jpeg"
    steps = [news.progress for news in progress if isinstance(news, Progress)]
    assert steps == sorted(steps)
    assert {step * STEPS for step in steps} <= set(range(STEPS + 1))
    assert len(set(steps)) >= STEPS - 1
    previews = {news.preview for news in progress if isinstance(news, Progress)} - {None}
    assert len(previews) >= 2
    for preview in previews:
        with Image.open(BytesIO(preview or b"")) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("JPEG", (64, 32))


def test_one_held_poll_answers_with_the_picture(make_server: MakeServer) -> None:
    server = make_server(fake_latency="1").start()
    task_id = server.submit("a red apple")
    with server.client() as http:
        answer = http.get("/flux/v1/get_result", params={"id": task_id, "wait": "30"}, timeout=40)
    assert answer.json()["status"] == "Ready"


def test_a_stopped_server_lets_streams_and_held_polls_go(make_server: MakeServer) -> None:
    server = make_server(workers="0").start(ready=False).wait_until_answers()
    task_id = server.submit("waits for ever")
    begun = threading.Event()

    def listen() -> list[str]:
        with server.client() as http, http.stream("GET", f"/v1/tasks/{task_id}/events", timeout=40) as answer:
            lines = []
            for line in answer.iter_lines():  # a stream that is torn off raises
                lines.append(line)
                begun.set()
            return lines

    def hold() -> object:
        with server.client() as http:
            return http.get("/v1/get_result", params={"id": task_id, "wait": "60"}, timeout=70).json()["status"]

    with ThreadPoolExecutor(2) as callers:
        listening, held = callers.submit(listen), callers.submit(hold)
        assert begun.wait(20)
        until(lambda: connections(server) >= 2, 20.0, "both callers are connected")
        assert server.stop() == 0
        assert [line for line in listening.result(20) if line.startswith("event:")] == ["event: status"]
        assert held.result(20) == "Pending"
    assert "Traceback" not in server.log


def test_who_follows_a_running_task_hears_of_its_end_although_the_server_stops(make_server: MakeServer) -> None:
    server = make_server(fake_latency="4", fake_steps=str(STEPS), drain="120").start()
    task_id = server.submit("a red apple")
    server.wait_until_running(task_id)
    with server.client() as http, http.stream("GET", f"/v1/tasks/{task_id}/events", timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "retry: 1000"
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        events = [line for line in lines if line.startswith("event:")]
    assert events[-1] == "event: result"
    assert server.process.wait(60) == 0


def connections(server: Server) -> int:
    """Open sockets of the server process beyond those that it listens on."""
    assert server.process is not None
    files = Path(f"/proc/{server.process.pid}/fd").iterdir()
    links = [str(file.readlink()) for file in files if file.is_symlink()]
    return sum(link.startswith("socket:") for link in links) - 3


def test_callers_that_vanish_leave_their_places_and_no_open_files(make_server: MakeServer) -> None:
    server = make_server(workers="0", max_account_streams="10").start(ready=False).wait_until_answers()
    task_id = server.submit("waits for ever")
    url, headers = f"{server.url}/v1/tasks/{task_id}/events", {"x-key": server.key}

    def follow(stack: ExitStack) -> int:
        line = stack.enter_context(httpx.Client(timeout=20))
        return stack.enter_context(line.stream("GET", url, headers=headers)).status_code

    before = connections(server)
    for _ in range(5):
        with ExitStack() as stack:
            assert [follow(stack) for _ in range(10)] == [200] * 10
            assert follow(stack) == 429
        until(lambda: connections(server) <= before, 20.0, "the connections are closed")
    with ExitStack() as stack:
        assert follow(stack) == 200
