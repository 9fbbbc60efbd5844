"""Previews over HTTP: for those who ask and may look, until the task's end, within a budget."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from calls import Call
from facts import PREFIXES
from inprocess import Json, Server
from shapes import is_error

from fluxserve.engine.fake import FINGERPRINT

PICTURE = b"\xff\xd8 a small picture"


def polled(server: Server, task: Json, prefix: str = "/v1", more: str = "&preview=true") -> Json:
    """The task as a poll shows it."""
    answer = server.ask("GET", f"{prefix}/get_result?id={task['id']}{more}", key=server.key)
    assert answer.status_code == 200
    return dict(answer.json())


def shown(picture: bytes) -> Json:
    """A preview as the wire shows it."""
    return {"media_type": "image/jpeg", "data": base64.b64encode(picture).decode()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_preview_is_shown_to_those_who_ask_until_the_task_ends(server: Server, prefix: str) -> None:
    task = server.submit()
    wanted: list[str] = []
    server.service.on_previews_wanted.append(wanted.append)
    assert polled(server, task, prefix, "")["preview"] is None
    assert wanted == []
    for _ in range(2):
        assert polled(server, task, prefix)["preview"] is None
    assert wanted == [task["id"]]
    (record,) = server.claim()
    server.service.show_preview(record.id, PICTURE)
    assert polled(server, task, prefix)["preview"] == shown(PICTURE)
    for other in ("", "&preview=false", "&preview=0"):
        assert polled(server, task, prefix, other)["preview"] is None
    server.draw_claimed(record)
    assert polled(server, task, prefix)["preview"] is None
    server.service.show_preview(record.id, PICTURE)
    assert server.service.previews.get(record.id) is None
    assert wanted == [task["id"]]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_stream_tells_each_new_preview_to_those_who_asked(server: Server, prefix: str) -> None:
    task = server.submit()
    url = f"{prefix}/tasks/{task['id']}/events"
    plain, seeing = (Call(server, url + query, key=server.key) for query in ("", "?preview=true"))
    for stream in (plain, seeing):
        assert stream.begin()[0] == 200
        assert stream.event().name == "status"
    (record,) = server.claim()
    server.service.show_preview(record.id, PICTURE)
    told = [seeing.event() for _ in range(2)]
    assert sorted(event.name for event in told) == ["preview", "status"]
    assert [event.data["preview"] for event in told if event.name == "preview"] == [shown(PICTURE)]
    server.service.show_preview(record.id, PICTURE + b"!")
    assert seeing.event().data["preview"] == shown(PICTURE + b"!")
    server.draw_claimed(record)
    assert [plain.event().name for _ in range(2)] == ["status", "result"]
    last = seeing.event()
    assert (last.name, last.data["preview"]) == ("result", None)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_preview_that_is_neither_true_nor_false_is_a_422(shared: Server, prefix: str) -> None:
    task = shared.submit()
    for word in ("", "maybe", "2", "tru", "null"):
        for url in (f"{prefix}/get_result?id={task['id']}&preview={word}", f"{prefix}/tasks/x/events?preview={word}"):
            answer = shared.ask("GET", url, key=shared.key)
            is_error(answer, 422, prefix)
            assert answer.json()["detail"][0]["loc"] == ["query", "preview"]
    for word in ("true", "True", "TRUE", "1", "false", "False", "0"):
        assert polled(shared, task, prefix, f"&preview={word}")["status"] == "Pending"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_who_may_not_look_asks_for_nothing(server: Server, prefix: str) -> None:
    task = server.submit()
    for key in (None, "wrong", server.new_key()):
        for path in (f"get_result?id={task['id']}&preview=true", f"tasks/{task['id']}/events?preview=true"):
            assert server.ask("GET", f"{prefix}/{path}", key=key).json().get("preview") is None
    assert not server.service.previews.is_wanted(str(task["id"]))


def test_the_preview_is_seen_through_a_polling_url(server: Server) -> None:
    task = server.submit()
    url = f"{task['polling_url']}&preview=true"
    server.ask("GET", url)
    server.service.show_preview(str(task["id"]), PICTURE)
    assert server.ask("GET", url).json()["preview"] == shown(PICTURE)


def test_where_there_is_no_memory_for_previews_there_are_none(serve: Callable[..., Server]) -> None:
    server = serve(preview_memory=0)
    task = server.submit()
    assert polled(server, task)["preview"] is None
    assert not server.service.previews.is_wanted(str(task["id"]))
    server.service.show_preview(str(task["id"]), PICTURE)
    assert polled(server, task)["preview"] is None


def test_a_follower_shows_its_leaders_preview_and_its_watchers_are_told(server: Server) -> None:
    server.run(server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
    leader, follower = (server.submit({"seed": 7}) for _ in range(2))
    wanted: list[str] = []
    server.service.on_previews_wanted.append(wanted.append)
    assert polled(server, follower)["preview"] is None
    assert wanted == [leader["id"]]
    stream = Call(server, f"/v1/tasks/{follower['id']}/events?preview=true", key=server.key)
    assert stream.begin()[0] == 200
    assert stream.event().name == "status"
    server.service.show_preview(str(leader["id"]), PICTURE)
    assert stream.event().data["preview"] == shown(PICTURE)
    for task in (leader, follower):
        assert polled(server, task)["preview"] == shown(PICTURE)
