"""What callers see of moderation, in both dialects: a refused request is a task that has ended, and costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from inprocess import Json, Server
from posting import Post

from fluxserve.engine.fake import MAGENTA
from fluxserve.service.acceptance import UNMODERATED
from fluxserve.tasks.task import State
from sample_pictures import PNG

DIALECTS = [("/v1", "/v1/get_result"), ("/flux/v1", "/flux/v1/get_result")]
#: What the rules take for a wish for nudity; a tolerance of 6 lets it through.
REFUSED = "a nude woman"
NEVER = "a naked schoolgirl"


@pytest.mark.parametrize(("prefix", "result"), DIALECTS)
def test_a_refused_prompt_is_a_task_that_has_ended(server: Server, prefix: str, result: str) -> None:
    task = server.submit({"prompt": REFUSED}, f"{prefix}/flux-dev")
    assert task["cost"] == 0
    answer = server.ask("GET", result, key=server.key, query={"id": str(task["id"])}).json()
    assert (answer["status"], answer["result"], answer["cost"]) == ("Request Moderated", None, 0.0)
    assert answer["details"] == {"Moderation Reasons": ["sexual", "nudity"], "moderated": "prompt"}
    assert server.claim() == []


def test_it_is_free_for_whoever_has_nothing_left_and_leaves_the_books_in_order(server: Server) -> None:
    server.key = server.new_key(grant=2500, max_active=1)
    before = server.balance(server.key)
    tasks = [server.submit({"prompt": REFUSED}) for _ in range(3)]
    assert server.balance(server.key) == before
    assert [server.record(task).state for task in tasks] == [State.REQUEST_MODERATED] * 3
    assert server.faults() == []
    server.submit()  # what was refused takes no place among the unfinished tasks of the key


@pytest.mark.parametrize(
    ("tolerance", "status"), [(0, "Request Moderated"), (2, "Request Moderated"), (5, "Pending"), (6, "Pending")]
)
def test_a_caller_may_tolerate_more(server: Server, tolerance: int, status: str) -> None:
    task = server.submit({"prompt": REFUSED, "safety_tolerance": tolerance})
    assert server.poll(task)["status"] == status


@pytest.mark.parametrize("tolerance", range(7))
def test_nobody_may_tolerate_what_endangers_children(server: Server, tolerance: int) -> None:
    details = server.poll(server.submit({"prompt": NEVER, "safety_tolerance": tolerance}))["details"]
    assert "child_safety" in details["Moderation Reasons"]


def test_with_a_picture_no_more_is_tolerated_than_at_2(server: Server) -> None:
    fields: Json = {"prompt": REFUSED, "input_image": PNG, "safety_tolerance": 6}
    task = server.submit_with("/v1/flux-kontext-pro", {"X-Key": server.key}, fields)
    assert server.poll(task)["status"] == "Request Moderated"
    assert list((server.folder / "inputs").rglob("*.png")) == []


def test_a_retry_gets_the_refused_task_and_a_list_shows_it(server: Server) -> None:
    first, second = (server.post("/v1/flux-dev", {"prompt": REFUSED}, Idempotency_Key="k1").json() for _ in range(2))
    assert first["id"] == second["id"]
    (listed,) = server.ask("GET", "/v1/tasks?status=Request+Moderated", key=server.key).json()["tasks"]
    assert (listed["id"], listed["cost"], listed["progress"]) == (first["id"], 0.0, None)


def test_switched_off_nothing_is_refused_and_a_tolerance_says_so(serve: Callable[..., Server]) -> None:
    server = serve(moderation="off")
    task = server.submit({"prompt": NEVER, "safety_tolerance": 0})
    assert server.poll(task)["status"] == "Pending"
    assert UNMODERATED in server.poll(task)["details"]["warnings"]


def test_equal_requests_share_a_picture_only_where_they_tolerate_the_same(server: Server) -> None:
    fields: Json = {"prompt": "a red apple", "seed": 1}
    first, other = server.submit(fields), server.submit({**fields, "safety_tolerance": 5})
    assert [server.record(task).state for task in (first, other)] == [State.QUEUED] * 2


@pytest.mark.parametrize(("prefix", "result"), DIALECTS)
def test_a_refused_picture_is_a_task_without_one_and_costs_nothing(server: Server, prefix: str, result: str) -> None:
    server.key = server.new_key(grant=10_000)
    task = server.submit({"prompt": MAGENTA}, f"{prefix}/flux-dev")
    server.draw()
    answer = server.ask("GET", result, key=server.key, query={"id": str(task["id"])}).json()
    assert (answer["status"], answer["result"], answer["cost"]) == ("Content Moderated", None, 0.0)
    assert answer["details"] == {"Moderation Reasons": ["sexual"], "moderated": "picture"}
    assert server.balance(server.key) == 10_000
    assert [path for path in (server.folder / "results").rglob("*") if path.is_file()] == []
    assert server.faults() == []


def test_where_the_operator_charges_for_it_the_answer_says_so(serve: Callable[..., Server]) -> None:
    server = serve(moderation_refund=False)
    task = server.submit({"prompt": MAGENTA})
    server.draw()
    assert server.poll(task)["cost"] == task["cost"] > 0


def test_those_who_asked_the_same_get_the_same_answer(server: Server) -> None:
    tasks = [server.submit({"prompt": MAGENTA, "seed": 1}) for _ in range(3)]
    server.draw()
    assert [server.poll(task)["status"] for task in tasks] == ["Content Moderated"] * 3
    again = server.submit({"prompt": MAGENTA, "seed": 1})
    assert server.poll(again)["status"] == "Pending"  # a refused picture is kept for nobody


@pytest.mark.parametrize(("prompt", "status"), [(REFUSED, "Request Moderated"), (MAGENTA, "Content Moderated")])
def test_a_webhook_tells_of_it(post: Callable[..., Post], prompt: str, status: str) -> None:
    here = post()
    here.ready(prompt=prompt)
    here.deliver()
    told = json.loads(here.receiver.seen[0].body)
    assert (told["status"], told["result"]) == (status, None)
    assert told["details"]["Moderation Reasons"]
