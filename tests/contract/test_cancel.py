"""Cancelling over HTTP: what it answers in every state, who may, and what becomes of credits and late pictures."""

from __future__ import annotations

import uuid

import pytest
from facts import PREFIXES
from inprocess import WORKER, Json, Server
from shapes import COMETAPI, ERROR, RESULT, is_error

from builders import HARMLESS
from fluxserve.store.base import Drawn, Reason

BODY = b'{"prompt": "x"}'
STRANGER = str(uuid.UUID(int=7, version=4))
#: Both ways to say it.
WAYS = (("POST", "/cancel"), ("DELETE", ""))
DRAWN = Drawn(drawn_by="hand", duration=1.0, scores=HARMLESS)


def cancel(server: Server, prefix: str, task_id: object, key: str | None, way: tuple[str, str] = WAYS[0]) -> Json:
    """The answer's body; the answer is a 200."""
    answer = server.ask(way[0], f"{prefix}/tasks/{task_id}{way[1]}", key=key)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("runs", [False, True], ids=["queued", "running"])
def test_a_cancelled_task_is_an_error_that_says_so_and_costs_nothing(
    server: Server, prefix: str, way: tuple[str, str], runs: bool
) -> None:
    key = server.new_key(grant=10_000)
    task = server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY).json()
    if runs:
        server.claim()
        server.service.advance(task["id"], 7, 28)
    cancelled = {
        "id": task["id"], "status": "Error", "result": None, "progress": None, "details": {"error": "cancelled"},
        "preview": None, "cost": 0.0,
    }  # fmt: skip
    for _ in range(2):
        assert cancel(server, prefix, task["id"], key, way) == cancelled == server.poll(task)
    assert server.balance(key) == 10_000
    assert server.claim() == []


def test_warnings_of_the_request_stay_beside_the_word(server: Server) -> None:
    task = server.submit({"hobby": 1})
    told = ["hobby is not a parameter of flux-dev and was ignored"]
    assert cancel(server, "/v1", task["id"], server.key)["details"] == {"warnings": told, "error": "cancelled"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_task_that_has_ended_stays_as_it_is(server: Server, prefix: str, way: tuple[str, str]) -> None:
    key = server.new_key(grant=10_000)
    ready, failed = (server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY).json() for _ in range(2))
    first, second = server.claim()
    server.draw_claimed(first)
    server.fail(second, "The device ran out of memory.")
    answered = cancel(server, prefix, ready["id"], key, way)
    assert (answered["status"], answered["cost"]) == ("Ready", 2.5)
    assert server.ask("GET", answered["result"]["sample"]).status_code == 200
    assert server.poll(ready)["status"] == "Ready"
    assert cancel(server, prefix, failed["id"], key, way) == server.poll(failed)
    assert server.poll(failed)["details"] == {"error": "The device ran out of memory."}
    assert server.balance(key) == 7500


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_unknown_task_and_another_accounts_look_the_same_and_like_they_do_to_polls(
    server: Server, prefix: str, way: tuple[str, str]
) -> None:
    task = server.submit()
    other = server.new_key()
    for id_ in (STRANGER, task["id"], "x", "%27%3B%20DROP", "%00", "x" * 500):
        answer = server.ask(way[0], f"{prefix}/tasks/{id_}{way[1]}", key=other)
        polled = server.ask("GET", f"{prefix}/get_result?id={id_}", key=other)
        assert (answer.status_code, answer.json()) == (polled.status_code, polled.json())
        assert answer.headers == polled.headers
        assert answer.status_code == (200 if prefix == COMETAPI else 404)
        assert answer.json().keys() == {*RESULT, *(() if prefix == COMETAPI else ERROR)}
    assert server.poll(task)["status"] == "Pending"


def test_any_key_of_the_account_may_cancel(server: Server) -> None:
    first, second = server.new_key(account="both"), server.new_key(account="both")
    task = server.ask("POST", "/v1/flux-dev", key=first, body=BODY).json()
    assert cancel(server, "/flux/v1", task["id"], second)["details"] == {"error": "cancelled"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_whoever_may_only_look_may_not_cancel(server: Server, prefix: str, way: tuple[str, str]) -> None:
    task = server.submit()
    query = str(task["polling_url"]).partition("?")[2]
    for key in (None, "wrong"):
        is_error(server.ask(way[0], f"{prefix}/tasks/{task['id']}{way[1]}?{query}", key=key), 401, prefix)
    assert server.poll(task)["status"] == "Pending"


def test_a_picture_that_comes_too_late_is_refused_and_not_kept(server: Server) -> None:
    task = server.submit()
    (record,) = server.claim()
    cancel(server, "/v1", task["id"], server.key)
    late = server.service.complete(record.id, record.fence, record.generation, b"picture", DRAWN)
    assert server.run(late) is False
    assert list(server.storage.names_older_than(float("inf"))) == []
    reason = Reason(code="DrawingFailed", message="too late")
    assert server.run(server.service.fail(record.id, record.fence, reason)) is False
    assert server.poll(task)["details"] == {"error": "cancelled"}
    assert server.run(server.service.claim(WORKER, ("flux-dev",), 8, {})) == []


def test_a_retried_submit_answers_the_cancelled_task_and_draws_nothing(server: Server) -> None:
    key = server.new_key(grant=10_000)
    first = server.ask("POST", "/v1/flux-dev", key=key, headers={"Idempotency-Key": "k"}, body=BODY).json()
    cancel(server, "/v1", first["id"], key)
    again = server.ask("POST", "/v1/flux-dev", key=key, headers={"Idempotency-Key": "k"}, body=BODY)
    assert again.json() == first
    assert server.poll(first)["details"] == {"error": "cancelled"}
    assert server.claim() == []
    assert server.balance(key) == 10_000


def test_cancelling_makes_room_at_a_keys_limit(server: Server) -> None:
    key = server.new_key(max_active=1)
    task = server.ask("POST", "/v1/flux-dev", key=key, body=BODY).json()
    assert server.ask("POST", "/v1/flux-dev", key=key, body=BODY).status_code == 429
    cancel(server, "/v1", task["id"], key)
    assert server.ask("POST", "/v1/flux-dev", key=key, body=BODY).status_code == 200


def test_a_stopping_server_still_cancels(server: Server) -> None:
    task = server.submit()
    server.service.stop_accepting()
    assert cancel(server, "/v1", task["id"], server.key)["status"] == "Error"


def test_without_its_database_nothing_is_cancelled_and_the_caller_is_told_to_try_again(server: Server) -> None:
    task = server.submit()
    server.lose_database()
    answer = server.ask("DELETE", f"/v1/tasks/{task['id']}", key=server.key)
    is_error(answer, 503)
    assert answer.headers["retry-after"] == "1"
    assert server.poll(task)["status"] == "Pending"
