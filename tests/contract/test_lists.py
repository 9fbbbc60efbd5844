"""The list of one's own tasks: what an entry holds, pages, filters, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from facts import PREFIXES
from inprocess import NOW, Json, Server
from shapes import is_error

BODY = b'{"prompt": "x", "width": 256, "height": 256}'


def listed(server: Server, key: str, prefix: str = "/v1", **query: str) -> Json:
    """One page."""
    answer = server.ask("GET", f"{prefix}/tasks", key=key, query=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = dict(answer.json())
    assert list(body) == ["tasks", "next_cursor"]
    return body


def ids(page: Json) -> list[str]:
    """The ids of a page."""
    return [task["id"] for task in page["tasks"]]


def submit(server: Server, key: str, model: str = "flux-dev", count: int = 1) -> list[str]:
    """New tasks of a key, newest first."""
    answers = [server.ask("POST", f"/v1/{model}", key=key, body=BODY) for _ in range(count)]
    return [answer.json()["id"] for answer in reversed(answers)]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_entry_says_what_where_and_how_far_a_task_is(server: Server, prefix: str) -> None:
    (waiting,), (running,) = submit(server, server.key, "flux-schnell"), submit(server, server.key)
    server.run(server.service.claim("w", ("flux-dev",), 1, {}))
    server.service.advance(running, 7, 28)
    page = listed(server, server.key, prefix)
    assert page["next_cursor"] is None
    first, second = page["tasks"]
    assert first | {"polling_url": ""} == {
        "id": running, "model": "flux-dev", "status": "Pending", "created_at": NOW, "cost": 2.5, "progress": 0.25,
        "polling_url": "",
    }  # fmt: skip
    assert (second["id"], second["model"], second["progress"], second["cost"]) == (waiting, "flux-schnell", 0, 0.3)
    assert str(first["polling_url"]).startswith(f"http://flux.test{prefix}/get_result?")
    assert server.poll(first)["progress"] == 0.25


def test_an_ended_task_has_its_word_its_charge_and_no_progress(server: Server) -> None:
    cancelled, failed, ready = submit(server, server.key, count=3)
    first, second, _ = server.claim()
    server.draw_claimed(first)
    server.fail(second, "The device ran out of memory.")
    server.ask("DELETE", f"/v1/tasks/{cancelled}", key=server.key)
    told = [
        (task["id"], task["status"], task["cost"], task["progress"]) for task in listed(server, server.key)["tasks"]
    ]
    assert told == [(cancelled, "Error", 0, None), (failed, "Error", 0, None), (ready, "Ready", 2.5, None)]


def test_pages_follow_each_other_and_end(server: Server) -> None:
    tasks = submit(server, server.key, count=5)
    first = listed(server, server.key, limit="2")
    second = listed(server, server.key, limit="2", cursor=first["next_cursor"])
    submit(server, server.key)
    third = listed(server, server.key, "/flux/v1", limit="2", cursor=second["next_cursor"])
    assert [ids(first), ids(second), ids(third)] == [tasks[:2], tasks[2:4], tasks[4:]]
    assert third["next_cursor"] is None


def test_fifty_are_a_page_and_two_hundred_the_most(server: Server) -> None:
    tasks = submit(server, server.key, count=201)
    assert ids(listed(server, server.key)) == tasks[:50]
    assert ids(listed(server, server.key, cursor="", status="")) == tasks[:50]
    assert ids(listed(server, server.key, limit="200")) == tasks[:200]
    assert ids(listed(server, server.key, limit="1")) == tasks[:1]


def test_an_account_sees_its_own_tasks_and_no_others(server: Server) -> None:
    alice, also_alice, bob = (server.new_key(account=name) for name in ("alice", "alice", "bob"))
    (first,), (second,), (third,) = submit(server, alice), submit(server, bob), submit(server, also_alice)
    for key in (alice, also_alice):
        assert ids(listed(server, key)) == [third, first]
    assert ids(listed(server, bob)) == [second]
    assert ids(listed(server, server.new_key())) == []


def test_a_filter_leaves_the_tasks_that_polls_show_with_its_word(server: Server) -> None:
    waiting, running, failed, ready = submit(server, server.key, count=4)
    first, second, _ = server.run(server.service.claim("w", ("flux-dev",), 3, {}))
    server.draw_claimed(first)
    server.fail(second, "The device ran out of memory.")
    for word, expected in {
        "Pending": [waiting, running], "Ready": [ready], "Error": [failed], "Processing": [],
        "Request Moderated": [], "Content Moderated": [],
    }.items():  # fmt: skip
        assert ids(listed(server, server.key, status=word)) == expected
        for id_ in expected:
            polled = server.ask("GET", "/v1/get_result", key=server.key, query={"id": id_})
            assert polled.json()["status"] == word


def test_where_running_tasks_are_processing_the_list_and_its_filter_say_so_too(serve: Callable[..., Server]) -> None:
    server = serve(processing_status=True)
    waiting, running = submit(server, server.key, count=2)
    server.run(server.service.claim("w", ("flux-dev",), 1, {}))
    assert [task["status"] for task in listed(server, server.key)["tasks"]] == ["Pending", "Processing"]
    assert ids(listed(server, server.key, status="Pending")) == [waiting]
    assert ids(listed(server, server.key, status="Processing")) == [running]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("limit", "", "int_parsing"),
        ("limit", "0", "greater_than_equal"), ("limit", "201", "less_than_equal"), ("limit", "-1", "int_parsing"),
        ("limit", "1.0", "int_parsing"), ("limit", "x", "int_parsing"), ("limit", "٣", "int_parsing"),
        ("limit", "9" * 5000, "int_parsing"), ("limit", " 5", "int_parsing"),
        ("status", "ready", "literal_error"), ("status", "Task not found", "literal_error"),
        ("status", "cancelled", "literal_error"), ("status", "é" * 5000, "literal_error"),
        ("cursor", "x", "cursor"), ("cursor", "é", "cursor"), ("cursor", "A" * 32, "cursor"),
        ("cursor", "A" * 5000, "cursor"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_parameter_that_cannot_be_is_a_422_that_names_it(
    shared: Server, prefix: str, name: str, value: str, kind: str
) -> None:
    answer = shared.ask("GET", f"{prefix}/tasks", key=shared.key, query={name: value})
    error = is_error(answer, 422, prefix)
    assert str(error["message"]).startswith(f"{name}: Input should be ")
    (item,) = answer.json()["detail"]
    assert (item["type"], item["loc"]) == (kind, ["query", name])
    assert len(answer.content) < 2000


def test_a_cursor_is_good_for_its_account_alone_and_in_one_spelling(server: Server) -> None:
    other = server.new_key()
    submit(server, other, count=2)
    submit(server, server.key, count=2)
    cursor = str(listed(server, server.key, limit="1")["next_cursor"])
    assert len(ids(listed(server, server.key, cursor=cursor))) == 1
    flipped = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for wrong in (flipped, cursor[:-1], cursor + "=", cursor + "AAAA", cursor.swapcase(), f" {cursor}"):
        is_error(server.ask("GET", "/v1/tasks", key=server.key, query={"cursor": wrong}), 422)
    is_error(server.ask("GET", "/v1/tasks", key=other, query={"cursor": cursor}), 422)


def test_a_cursor_does_not_tell_how_many_tasks_there_are(server: Server) -> None:
    submit(server, server.key, count=3)
    first = listed(server, server.key, limit="1")
    second = listed(server, server.key, limit="1", cursor=first["next_cursor"])
    raw = [base64.urlsafe_b64decode(page["next_cursor"])[:8] for page in (first, second)]
    assert all(int.from_bytes(part) > 2**32 for part in raw)
    assert sum(one == other for one, other in zip(*raw, strict=True)) < 6


@pytest.mark.parametrize("prefix", PREFIXES)
def test_other_and_repeated_parameters_are_tolerated_but_not_any_number_of_them(shared: Server, prefix: str) -> None:
    tolerated = shared.ask("GET", f"{prefix}/tasks?x&limit=1&limit=x&_=1&%ff=%fe&status=", key=shared.key)
    assert tolerated.status_code == 200
    is_error(shared.ask("GET", f"{prefix}/tasks?" + "a=1&" * 101, key=shared.key), 422, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_list_needs_a_key_before_anything_else(shared: Server, prefix: str) -> None:
    for key in (None, "wrong"):
        is_error(shared.ask("GET", f"{prefix}/tasks?limit=x", key=key), 401, prefix)
        is_error(shared.ask("PATCH", f"{prefix}/tasks", key=key), 401, prefix)


def test_a_long_page_costs_no_finished_task_its_place_in_memory(server: Server) -> None:
    submit(server, server.key, count=3)
    server.draw()
    server.service.views.forget_finished()
    listed(server, server.key)
    assert all(server.service.views.get(id_) is None for id_ in ids(listed(server, server.key)))
