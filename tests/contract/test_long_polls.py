"""get_result with `wait`: who waits for what, for how long, and what becomes of those who go away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest
from calls import Call, waits
from facts import PREFIXES
from inprocess import Json, Server
from shapes import is_error

LONG = "&wait=60"


def poll(server: Server, task: Json, more: str = LONG, prefix: str = "/v1") -> Call:
    """A poll that has begun."""
    return Call(server, str(task["polling_url"]).replace("http://flux.test/v1", prefix) + more)


def answer_of(call: Call) -> Json:
    """The answer, once it comes; a 200."""
    status, _ = call.begin()
    assert status == 200
    return dict(json.loads(call.whole()))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_waiting_poll_answers_at_the_end_as_any_poll_would(server: Server, prefix: str) -> None:
    task = server.submit()
    call = poll(server, task, prefix=prefix)
    waits(server)
    (record,) = server.claim()
    server.service.advance(record.id, 7, 28)
    server.draw_claimed(record)
    answer = answer_of(call)
    assert answer["status"] == "Ready"
    assert answer.keys() == server.poll(task).keys()
    assert server.ask("GET", answer["result"]["sample"]).status_code == 200
    assert len(server.service.watches) == 0


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_cancelled_and_a_failed_task_end_a_wait_too(server: Server, prefix: str) -> None:
    cancelled, failed = server.submit(), server.submit()
    calls = [poll(server, task, prefix=prefix) for task in (cancelled, failed)]
    waits(server, 2)
    server.ask("DELETE", f"/v1/tasks/{cancelled['id']}", key=server.key)
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    errors = [answer_of(call)["details"]["error"] for call in calls]
    assert errors == ["cancelled", "The device ran out of memory."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_task_that_has_ended_is_answered_at_once(server: Server, prefix: str) -> None:
    task = server.submit()
    server.draw()
    began = time.monotonic()
    assert answer_of(poll(server, task, prefix=prefix))["status"] == "Ready"
    assert time.monotonic() - began < 30


def test_after_its_time_a_poll_answers_the_task_as_it_is(server: Server) -> None:
    task = server.submit()
    (record,) = server.claim()
    began = time.monotonic()
    call = poll(server, task, "&wait=0.3")
    waits(server)
    server.service.advance(record.id, 7, 28)
    answer = answer_of(call)
    assert time.monotonic() - began >= 0.3
    assert (answer["status"], answer["progress"]) == ("Pending", 0.25)


@pytest.mark.parametrize("wait", ["0", "0.0", "-0", "0e5"])
def test_a_wait_of_nothing_is_an_ordinary_poll(shared: Server, wait: str) -> None:
    task = shared.submit()
    assert answer_of(poll(shared, task, f"&wait={wait}"))["status"] == "Pending"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("wait", "kind"),
    [
        ("60.01", "less_than_equal"), ("61", "less_than_equal"), ("1e3", "less_than_equal"),
        ("1e999", "less_than_equal"), ("-1", "greater_than_equal"), ("-0.1", "greater_than_equal"),
        ("", "float_parsing"), ("x", "float_parsing"), ("nan", "float_parsing"), ("inf", "float_parsing"),
        ("1_0", "float_parsing"), ("0x1", "float_parsing"), ("5s", "float_parsing"), ("%D9%A3", "float_parsing"),
    ],
)  # fmt: skip
def test_a_wait_that_cannot_be_is_a_422(shared: Server, prefix: str, wait: str, kind: str) -> None:
    task = shared.submit()
    answer = shared.ask("GET", f"{prefix}/get_result?id={task['id']}&wait={wait}", key=shared.key)
    is_error(answer, 422, prefix)
    (item,) = answer.json()["detail"]
    assert (item["type"], item["loc"]) == (kind, ["query", "wait"])


def test_who_may_not_look_does_not_wait(server: Server) -> None:
    task = server.submit()
    unknown = server.ask("GET", f"/v1/get_result?id={task['id']}{LONG}", key=server.new_key())
    assert (unknown.status_code, unknown.json()["status"]) == (404, "Task not found")
    is_error(server.ask("GET", f"/v1/get_result?id={task['id']}{LONG}"), 401)
    assert len(server.service.watches) == 0


def test_a_caller_that_hangs_up_is_let_go_at_once(server: Server) -> None:
    call = poll(server, server.submit())
    waits(server)
    call.hang_up()
    assert len(server.service.watches) == 0


def test_a_stopping_server_lets_everybody_go_with_the_task_as_it_is(server: Server) -> None:
    task = server.submit()
    call = poll(server, task)
    waits(server)
    server.service.watches.end()
    assert answer_of(call)["status"] == "Pending"
    assert answer_of(poll(server, task))["status"] == "Pending"


def test_a_thousand_waiting_polls_take_no_thread_and_are_all_answered(serve: Callable[..., Server]) -> None:
    server = serve()
    tasks = [server.submit() for _ in range(50)]
    before = threading.active_count()
    calls = [poll(server, tasks[number % 50]) for number in range(1000)]
    waits(server, 50)
    assert threading.active_count() == before
    assert server.poll(tasks[0])["status"] == "Pending"
    server.draw()
    assert [answer_of(call)["status"] for call in calls] == ["Ready"] * 1000
    assert len(server.service.watches) == 0
