"""What polls see is in memory: all that is unfinished, and the newest that is finished."""

from __future__ import annotations

from dataclasses import replace

from builders import NOW, generation
from fluxserve.service.views import Views
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import Attempts, State


def record(task_id: str, state: State = State.QUEUED) -> TaskRecord:
    """A task as the store answers it."""
    return TaskRecord(
        id=task_id, account_id="a", key_id="k", state=state, generation=generation(), warnings=("w",), dialect="bfl",
        origin="", webhook_url=None, cost=0, turn=1.0, work=1.0, fence=0, attempts=Attempts(), worker_id=None,
        recipe=None, repeatable=False, created_at=NOW, started_at=None, finished_at=None, object_name=None, drawn=None,
        reason=None, refusal=None,
    )  # fmt: skip


def test_only_unfinished_tasks_count() -> None:
    views = Views()
    views.put(record("a"))
    views.put(record("b", State.RUNNING))
    views.put(record("c", State.READY))
    assert len(views) == 2
    views.put(record("b", State.ERROR))
    assert len(views) == 1


def test_a_finished_task_keeps_its_record_and_an_unfinished_one_does_not() -> None:
    views = Views()
    assert views.put(record("a")).record is None
    ready = record("a", State.READY)
    assert views.put(ready).record == ready
    seen = views.get("a")
    assert seen is not None
    assert (seen.state, seen.warnings, seen.account_id) == (State.READY, ("w",), "a")


def test_the_finished_tasks_that_were_looked_at_last_stay() -> None:
    views = Views(finished_views=2)
    for task_id in ("a", "b"):
        views.put(record(task_id, State.READY))
    assert views.get("a") is not None
    views.put(record("c", State.READY))
    assert [views.get(task_id) is not None for task_id in ("a", "b", "c")] == [True, False, True]


def test_unfinished_tasks_always_stay() -> None:
    views = Views(finished_views=1)
    for number in range(10):
        views.put(record(f"active-{number}"))
        views.put(record(f"done-{number}", State.READY))
    assert all(views.get(f"active-{number}") for number in range(10))


def test_finished_tasks_are_forgotten_when_some_were_deleted() -> None:
    views = Views()
    views.put(record("a"))
    views.put(record("b", State.READY))
    views.forget_finished()
    assert views.get("a") is not None
    assert views.get("b") is None


def test_only_a_running_task_advances() -> None:
    views = Views()
    views.advance("unknown", 1, 2)
    waiting = views.put(record("a"))
    views.advance("a", 1, 2)
    assert waiting.progress == 0
    running = views.put(replace(record("a"), state=State.RUNNING))
    views.advance("a", 1, 2)
    assert running.progress == 0.5
    views.advance("a", 0, 0)
    assert running.progress == 0


def equal(task_id: str, state: State, recipe: bytes = b"r") -> TaskRecord:
    """A task that has to do with equal ones."""
    return replace(record(task_id, state), recipe=recipe, repeatable=True)


def test_followers_show_what_their_leader_shows() -> None:
    views = Views()
    early = views.put(equal("early", State.FOLLOWING))
    leader = views.put(equal("leader", State.QUEUED))
    other = views.put(equal("other", State.FOLLOWING, b"another recipe"))
    views.put(equal("leader", State.RUNNING))
    views.advance("leader", 1, 4)
    late = views.put(equal("late", State.FOLLOWING))
    assert [view.progress for view in (early, late, other, leader)] == [0.25, 0.25, 0, 0]
    views.put(equal("leader", State.QUEUED))
    assert [view.progress for view in (early, late)] == [0, 0]


def test_a_follower_that_takes_its_leaders_place_leads_the_others() -> None:
    views = Views()
    for task_id, state in (("a", State.RUNNING), ("b", State.FOLLOWING), ("c", State.FOLLOWING)):
        views.put(equal(task_id, state))
    assert (len(views), views.following) == (3, 2)
    views.put(equal("a", State.CANCELLED))
    views.put(equal("b", State.RUNNING))
    views.advance("b", 1, 2)
    follower = views.get("c")
    assert follower is not None
    assert (follower.progress, len(views), views.following) == (0.5, 2, 1)
    views.put(equal("b", State.READY))
    views.put(equal("c", State.READY))
    assert (len(views), views.following) == (0, 0)
