"""Equal requests over HTTP: tasks of their own that share one drawing, and say so."""

from __future__ import annotations

import json

import pytest
from facts import PREFIXES
from inprocess import Json, Server

from fluxserve.engine.fake import FINGERPRINT

BODY = {"prompt": "a red apple", "width": 256, "height": 256, "seed": 7}


@pytest.fixture
def server(server: Server) -> Server:
    """A fresh server that knows what draws."""
    server.run(server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
    return server


def ask(server: Server, prefix: str = "/v1", key: str | None = None, **fields: object) -> Json:
    """An accepted request."""
    body = json.dumps({**BODY, **fields}).encode()
    answer = server.ask("POST", f"{prefix}/flux-dev", key=key or server.key, body=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def bytes_of(server: Server, polled: Json) -> bytes:
    """The picture behind the task's link."""
    answer = server.ask("GET", polled["result"]["sample"])
    assert answer.status_code == 200
    return answer.content


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_second_of_two_equal_requests_is_a_ready_task_of_its_own(server: Server, prefix: str) -> None:
    key = server.new_key(grant=10_000)
    first = ask(server, prefix, key)
    server.draw(3.0)
    server.now += 60
    second = ask(server, prefix, key)

    one, other = server.poll(first), server.poll(second)

    assert first.keys() == second.keys()
    assert (other["status"], other["cost"], other["id"]) == ("Ready", 2.5, second["id"])
    assert other["details"] == {**one["details"], "cached": True}
    assert "cached" not in one["details"]
    times = {name: other["result"][name] - server.now for name in ("start_time", "end_time")}
    assert times == {"start_time": 0, "end_time": 0}
    assert other["result"]["duration"] == 0
    assert bytes_of(server, one) == bytes_of(server, other)
    assert server.balance(key) == 10_000 - 2 * 2500
    assert server.claim() == []


def test_another_dialect_and_fields_that_are_not_drawn_from_make_no_other_request(server: Server) -> None:
    ask(server)
    server.draw()
    assert server.poll(ask(server, "/flux/v1", hobby=1, user="u1"))["details"]["cached"] is True
    assert server.poll(ask(server, webhook_url="https://example.com/hook"))["details"]["cached"] is True


@pytest.mark.parametrize("fields", [{"seed": None}, {"seed": 8}, {"output_format": "png"}, {"height": 288}])
def test_whatever_changes_the_file_is_another_request(server: Server, fields: Json) -> None:
    ask(server)
    server.draw()
    task = ask(server, **fields)
    assert server.poll(task)["status"] == "Pending"
    server.draw()
    assert "cached" not in server.poll(task)["details"]


@pytest.mark.parametrize("processing", [False, True])
def test_a_follower_is_pending_with_the_progress_of_its_leader(serve: object, processing: bool) -> None:
    server: Server = serve(processing_status=processing)  # type: ignore[operator]
    leader, follower = ask(server), ask(server)
    server.claim()
    server.service.advance(leader["id"], 7, 28)
    assert server.poll(follower) == {
        "id": follower["id"], "status": "Pending", "result": None, "progress": 0.25, "details": None, "preview": None,
    }  # fmt: skip
    listed = server.ask("GET", "/v1/tasks", key=server.key, query={"status": "Pending"}).json()["tasks"]
    expected = [follower["id"]] if processing else [follower["id"], leader["id"]]
    assert [(task["id"], task["progress"]) for task in listed] == [(id_, 0.25) for id_ in expected]


def test_cancelling_the_one_that_is_drawn_costs_the_others_nothing(server: Server) -> None:
    key = server.new_key(grant=10_000)
    leader, first, second = (ask(server, key=key) for _ in range(3))
    server.claim()
    server.ask("DELETE", f"/v1/tasks/{leader['id']}", key=key)
    server.ask("DELETE", f"/v1/tasks/{second['id']}", key=key)
    server.draw()
    polled = [server.poll(task) for task in (leader, first, second)]
    assert [(task["status"], task["cost"]) for task in polled] == [("Error", 0.0), ("Ready", 2.5), ("Error", 0.0)]
    assert "cached" not in polled[1]["details"]
    assert server.balance(key) == 10_000 - 2500


def test_accounts_share_nothing(server: Server) -> None:
    keys = [server.new_key(account=name) for name in ("alice", "alice", "bob")]
    of_alice, again, of_bob = (ask(server, key=key) for key in keys)
    assert [record.id for record in server.claim()] == [of_alice["id"], of_bob["id"]]
    assert server.poll(again)["status"] == "Pending"


def test_a_ready_task_that_was_not_drawn_can_be_listed_and_stays_when_it_is_cancelled(server: Server) -> None:
    ask(server)
    server.draw()
    task = ask(server)
    ended = server.ask("POST", f"/v1/tasks/{task['id']}/cancel", key=server.key).json()
    assert ended["status"] == "Ready"
    (newest, _) = server.ask("GET", "/v1/tasks", key=server.key, query={"status": "Ready"}).json()["tasks"]
    assert (newest["id"], newest["cost"], newest["progress"]) == (task["id"], 2.5, None)


def test_each_picture_goes_at_its_own_time(server: Server) -> None:
    first = ask(server)
    server.draw()
    server.now += server.service.settings.picture_retention - 60
    second = ask(server)
    server.now += 120
    server.sweep()
    assert server.poll(first)["result"]["sample"] is None
    assert bytes_of(server, server.poll(second))
    server.now += server.service.settings.picture_retention
    server.sweep()
    assert server.poll(second)["result"]["sample"] is None
    assert server.poll(ask(server))["status"] == "Pending"
