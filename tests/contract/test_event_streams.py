"""`/tasks/{id}/events`: what is told and in which order, who may listen, how many, and how a stream ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from calls import Call, Event, waits
from facts import PREFIXES
from inprocess import Json, Server
from shapes import COMETAPI, RESULT, is_error

from fluxserve.api import DIALECTS
from fluxserve.api.events import Events
from fluxserve.api.polls import Polls
from fluxserve.service.service import Lost

PAGE = "https://app.example.com"
STRANGER = "00000000-0000-4000-8000-000000000007"


def follow(server: Server, task: Json, prefix: str = "/v1", query: str = "", **headers: str) -> Call:
    """A stream that has begun."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    call = Call(server, f"{prefix}/tasks/{task['id']}/events{query}", key=server.key, headers=named)
    status, told = call.begin()
    assert status == 200
    assert told["content-type"] == "text/event-stream; charset=utf-8"
    assert told["cache-control"] == "no-store"
    return call


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_task_is_told_from_its_queue_to_its_result(server: Server, prefix: str) -> None:
    task = server.submit()
    stream = follow(server, task, prefix)
    assert stream.block() == "retry: 1000"
    pending = {
        "id": task["id"], "status": "Pending", "result": None, "progress": 0, "details": None, "preview": None,
    }  # fmt: skip
    first = {"details": {"queue_position": 0}}
    assert stream.event() == Event("status", "1", pending | first)
    (record,) = server.claim()
    assert stream.event() == Event("status", "2", pending | first)
    for number, step in enumerate((7, 14, 28), start=3):
        server.service.advance(record.id, step, 28)
        assert stream.event() == Event("progress", str(number), pending | {"progress": step / 28})
    server.draw_claimed(record)
    last = stream.event()
    assert (last.name, last.id, last.data["status"]) == ("result", "end", "Ready")
    assert last.data.keys() == server.poll(task).keys()
    assert server.ask("GET", last.data["result"]["sample"]).status_code == 200
    assert stream.is_over()
    assert len(server.service.watches) == 0


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_word_for_a_running_task_is_that_of_polls(serve: Callable[..., Server], prefix: str) -> None:
    server = serve(processing_status=True)
    stream = follow(server, server.submit(), prefix)
    assert stream.event().data["status"] == "Pending"
    server.claim()
    assert stream.event().data["status"] == "Processing"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_task_that_has_ended_is_told_by_its_result_alone(server: Server, prefix: str) -> None:
    ready, cancelled = server.submit(), server.submit()
    server.ask("DELETE", f"/v1/tasks/{cancelled['id']}", key=server.key)
    server.draw()
    for task, status in ((ready, "Ready"), (cancelled, "Error")):
        stream = follow(server, task, prefix)
        event = stream.event()
        assert (event.name, event.data["status"]) == ("result", status)
        assert stream.is_over()


def test_a_cancelled_and_a_failed_task_end_their_streams(server: Server) -> None:
    cancelled, failed = server.submit(), server.submit()
    streams = [follow(server, task) for task in (cancelled, failed)]
    for stream in streams:
        assert stream.event().name == "status"
    server.ask("DELETE", f"/v1/tasks/{cancelled['id']}", key=server.key)
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    ends = [[event for event in rest(stream) if event.name == "result"] for stream in streams]
    assert [[event.data["details"]["error"] for event in end] for end in ends] == [
        ["cancelled"], ["The device ran out of memory."],
    ]  # fmt: skip


def rest(stream: Call) -> list[Event]:
    """Every event to the end."""
    events = [stream.event()]
    while events[-1].name != "result":
        events.append(stream.event())
    assert stream.is_over()
    return events


def test_a_task_that_goes_back_in_the_queue_is_told_so(server: Server) -> None:
    stream = follow(server, server.submit())
    (record,) = server.claim()
    server.service.advance(record.id, 14, 28)
    while stream.event().data["progress"] != 0.5:
        pass
    server.run(server.service.release([Lost(task_id=record.id, fence=record.fence, step=14)]))
    event = stream.event()
    assert (event.name, event.data["progress"]) == ("status", 0)


def test_whoever_comes_back_is_told_how_the_task_is_now(server: Server) -> None:
    task = server.submit()
    (record,) = server.claim()
    server.service.advance(record.id, 14, 28)
    for last in ("1", "77", "end", "x" * 1000):
        stream = follow(server, task, Last_Event_ID=last)
        event = stream.event()
        assert (event.name, event.id, event.data["progress"]) == ("status", "1", 0.5)
        stream.hang_up()
    server.draw_claimed(record)
    assert follow(server, task, Last_Event_ID="1").event().name == "result"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_browser_that_has_seen_the_end_is_told_not_to_come_back(server: Server, prefix: str) -> None:
    task = server.submit()
    server.draw()
    answer = server.ask("GET", f"{prefix}/tasks/{task['id']}/events", key=server.key, headers={"Last-Event-ID": "end"})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_capability_of_the_polling_url_may_listen_and_nobody_else(server: Server, prefix: str) -> None:
    task, other = server.submit(), server.submit()
    url = f"{prefix}/tasks/{task['id']}/events"
    capability = str(task["polling_url"]).partition("&t=")[2]
    call = Call(server, f"{url}?t={capability}")
    assert call.begin()[0] == 200
    call.hang_up()
    wrong = str(other["polling_url"]).partition("&t=")[2]
    for query in ("", f"?t={wrong}", "?t="):
        is_error(server.ask("GET", url + query), 401, prefix)
    is_error(server.ask("GET", url, key="wrong"), 401, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_another_accounts_stream_looks_like_that_of_an_unknown_task_and_like_a_poll(
    server: Server, prefix: str
) -> None:
    task, other = server.submit(), server.new_key()
    for id_ in (task["id"], STRANGER, "x", "%00"):
        answer = server.ask("GET", f"{prefix}/tasks/{id_}/events?preview=true", key=other)
        polled = server.ask("GET", f"{prefix}/get_result?id={id_}", key=other)
        assert (answer.status_code, answer.json()) == (polled.status_code, polled.json())
        assert answer.status_code == (200 if prefix == COMETAPI else 404)
        assert list(answer.json())[: len(RESULT)] == RESULT
    assert not server.service.previews.is_wanted(str(task["id"]))


def test_a_caller_that_hangs_up_frees_its_place(serve: Callable[..., Server]) -> None:
    server = serve(max_streams=1)
    task = server.submit()
    for _ in range(3):
        stream = follow(server, task)
        assert stream.event().name == "status"
        stream.hang_up()
        assert len(server.service.watches) == 0


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_account_has_so_many_streams_and_the_server_too(serve: Callable[..., Server], prefix: str) -> None:
    server = serve(max_streams=3, max_account_streams=2)
    task, key = server.submit(), server.new_key()
    mine = [follow(server, task, prefix) for _ in range(2)]
    url = f"{prefix}/tasks/{task['id']}/events"
    refused = server.ask("GET", url, key=server.key)
    is_error(refused, 429, prefix)
    assert refused.headers["retry-after"] == "2"
    theirs = server.ask("POST", "/v1/flux-dev", key=key, body=b'{"prompt": "x"}').json()
    Call(server, f"{prefix}/tasks/{theirs['id']}/events", key=key)
    waits(server, 2)
    third = server.new_key()
    another = server.ask("POST", "/v1/flux-dev", key=third, body=b'{"prompt": "x"}').json()
    full = server.ask("GET", f"{prefix}/tasks/{another['id']}/events", key=third)
    is_error(full, 503, prefix)
    assert full.headers["retry-after"] == "2"
    mine[0].hang_up()
    assert follow(server, task, prefix).event().name == "status"
    assert server.poll(task)["status"] == "Pending"


def test_streams_can_be_turned_off(serve: Callable[..., Server]) -> None:
    server = serve(max_streams=0)
    is_error(server.ask("GET", f"/v1/tasks/{server.submit()['id']}/events", key=server.key), 503)


def test_a_stream_with_nothing_to_say_says_so(server: Server) -> None:
    polls = Polls(server.service, server.signer, lambda: server.now)
    events = Events(server.service, polls, heartbeat=0.02)
    task = server.submit()
    path = f"/v1/tasks/{task['id']}/events"
    bfl = next(dialect for dialect in DIALECTS if dialect.name == "bfl")

    async def app(scope: object, receive: object, send: object) -> None:
        await events(scope, receive, send, bfl, task["id"])  # type: ignore[arg-type]

    stream = Call(server, path, key=server.key, app=app)
    assert stream.begin()[0] == 200
    assert stream.event().name == "status"
    assert [stream.block() for _ in range(3)] == [": nothing new"] * 3
    server.claim()
    assert stream.event().name == "status"


def test_a_stopping_server_ends_its_streams_cleanly(server: Server) -> None:
    task = server.submit()
    stream = follow(server, task)
    assert stream.event().name == "status"
    server.service.watches.end()
    assert stream.is_over()
    late = follow(server, task)
    assert late.event().name == "status"
    assert late.is_over()


def test_a_caller_that_does_not_read_misses_steps_and_nothing_is_kept_for_it(server: Server) -> None:
    stream = follow(server, server.submit())
    assert stream.event().name == "status"
    stream.stop_reading()
    (record,) = server.claim()
    assert stream.event().name == "status"
    for step in range(1, 29):
        server.service.advance(record.id, step, 28)
        server.poll({"polling_url": f"/v1/get_result?id={record.id}&t={server.signer.capability(record.id)}"})
    assert not stream.has_more()
    stream.read_on()
    event = stream.event()
    assert (event.name, event.data["progress"]) == ("progress", 1)


def test_a_listed_page_may_listen(serve: Callable[..., Server]) -> None:
    server = serve(cors_origins=PAGE)
    task = server.submit()
    path = f"/v1/tasks/{task['id']}/events"
    asked = server.ask("OPTIONS", path, headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, PAGE)
    _, headers = Call(server, path, key=server.key, headers={"Origin": PAGE}).begin()
    assert (headers["access-control-allow-origin"], headers["vary"]) == (PAGE, "Origin")
    _, headers = Call(server, path, key=server.key, headers={"Origin": "https://evil.example.com"}).begin()
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_head_has_the_headers_of_a_stream_and_takes_no_place(server: Server, prefix: str) -> None:
    call = Call(server, f"{prefix}/tasks/{server.submit()['id']}/events", key=server.key, method="HEAD")
    assert call.begin() == (200, call_headers())
    assert call.whole() == ""
    assert len(server.service.watches) == 0


def call_headers() -> dict[str, str]:
    return {
        "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
        "x-content-type-options": "nosniff", "x-accel-buffering": "no",
    }  # fmt: skip
