"""What `details` says of a task that is not drawn yet: how many come before it, and when it may be ready."""

from __future__ import annotations

import pytest
from inprocess import WORKER, Json, Server

from fluxserve.api.about import NOT_NOW
from fluxserve.api.bfl import NOT_SERVED
from fluxserve.catalogue import MODELS

PREFIXES = ("/v1", "/flux/v1")


def details(server: Server, task: Json) -> dict[str, object]:
    """Those of a task that polls as Pending."""
    body = server.poll(task)
    assert body["status"] == "Pending"
    return dict(body["details"] or {})


def hire(server: Server) -> None:
    """A worker that draws every model comes."""
    server.run(server.service.welcome(WORKER, dict.fromkeys(MODELS, "f")))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_task_that_waits_is_told_how_many_are_drawn_before_it(server: Server, prefix: str) -> None:
    tasks = [server.submit(path=f"{prefix}/flux-dev") for _ in range(3)]
    assert [details(server, task) for task in tasks] == [{"queue_position": position} for position in range(3)]
    server.ask("DELETE", f"{prefix}/tasks/{tasks[0]['id']}", key=server.key)
    assert [details(server, task)["queue_position"] for task in tasks[1:]] == [0, 1]


def test_a_shorter_task_of_the_same_key_is_before_longer_ones(server: Server) -> None:
    long = server.submit({"width": 1024, "height": 1024})
    short = server.submit({"steps": 2})
    assert [details(server, task)["queue_position"] for task in (long, short)] == [1, 0]


def test_seconds_are_told_once_a_worker_has_shown_how_fast_it_is_and_only_shrink(server: Server) -> None:
    hire(server)
    first = server.submit()
    assert details(server, first) == {"queue_position": 0}
    server.draw(seconds=6.0)
    tasks = [server.submit() for _ in range(2)]
    assert [details(server, task)["eta_seconds"] for task in tasks] == [6.0, 12.0]
    (record, _) = server.claim()
    assert details(server, tasks[0]) == {"queue_position": 0, "eta_seconds": 6.0}
    server.service.advance(record.id, 14, 28)
    assert details(server, tasks[0]) == {"eta_seconds": 3.0}
    assert details(server, tasks[1]) == {"queue_position": 0, "eta_seconds": 9.0}
    server.draw_claimed(record)
    assert server.poll(tasks[0])["status"] == "Ready"
    assert "eta_seconds" not in server.poll(tasks[0])["details"]


def test_a_task_that_is_handed_out_ahead_has_a_position_and_counts_for_those_behind_it(server: Server) -> None:
    tasks = [server.submit() for _ in range(3)]
    records = server.claim()
    tasks.append(server.submit())
    assert [details(server, task)["queue_position"] for task in tasks] == [0, 1, 2, 3]
    server.service.advance(records[0].id, 1, 28)
    assert "queue_position" not in details(server, tasks[0])
    assert [details(server, task)["queue_position"] for task in tasks[1:]] == [0, 1, 2]


def test_an_equal_request_waits_as_long_as_the_one_that_it_follows(server: Server) -> None:
    tasks = [server.submit({"seed": seed}) for seed in (1, 2, 2)]
    assert [details(server, task)["queue_position"] for task in tasks] == [0, 1, 1]


def served(server: Server) -> tuple[bool | None, bool | None]:
    """Of flux-dev and flux-schnell, as the list of models says."""
    models = {model["id"]: model for model in server.ask("GET", "/v1/models", key=server.key).json()["data"]}
    assert models["flux-dev"]["runs_on"].startswith(NOT_NOW) is (models["flux-dev"]["served"] is False)
    return models["flux-dev"]["served"], models["flux-schnell"]["served"]


def test_a_task_that_no_worker_here_draws_says_so_until_one_comes(server: Server) -> None:
    task = server.submit()
    assert "warnings" not in details(server, task)  # a worker may be on its way
    assert served(server) == (None, None)
    server.run(server.service.welcome(WORKER, {"flux-schnell": "f"}))
    assert details(server, task) == {"warnings": [NOT_SERVED]}  # and no place in a line that nobody serves
    assert served(server) == (False, True)
    server.run(server.service.welcome("another", {"flux-dev": "f"}))
    assert "warnings" not in details(server, task)
