"""Which task's pictures are fetched next: accounts take turns, what was put off waits, what is over goes."""

from __future__ import annotations

import math

from fluxserve.service.preparing import Job, Preparing


def taken(line: Preparing, now: float = 0.0) -> list[str]:
    """All that may be begun now."""
    jobs: list[str] = []
    while (job := line.take(now)) is not None:
        jobs.append(job.task_id)
    return jobs


def one(line: Preparing, now: float = 0.0) -> Job:
    job = line.take(now)
    assert job is not None
    return job


def test_accounts_take_turns_and_none_has_more_than_half_of_the_room() -> None:
    line = Preparing(room=4)
    for number in range(6):
        line.put(f"flood{number}", "flood")
    line.put("one", "other")
    line.put("two", "other")
    assert taken(line) == ["flood0", "one", "flood1", "two"]


def test_a_flood_leaves_half_of_the_room_to_whoever_comes() -> None:
    line = Preparing(room=4)
    for number in range(6):
        line.put(f"flood{number}", "flood")
    assert taken(line) == ["flood0", "flood1"]
    line.put("late", "other")
    assert taken(line) == ["late"]


def test_what_is_done_makes_room() -> None:
    line = Preparing(room=1)
    line.put("a", "x")
    line.put("b", "x")
    line.put("a", "x")
    job = one(line)
    assert taken(line) == []
    line.done(job)
    assert taken(line) == ["b"]


def test_what_was_put_off_waits_for_its_time_and_holds_no_room() -> None:
    line = Preparing(room=1)
    line.put("a", "x")
    line.put("b", "x")
    job = one(line)
    line.again(job, 5.0)
    line.done(job)
    assert line.next_at() == 5.0
    assert taken(line, 4.9) == ["b"]
    line.done(Job(task_id="b", account_id="x"))
    assert one(line, 5.0) is job


def test_what_is_over_is_taken_by_nobody_and_told_once() -> None:
    line = Preparing(room=3)
    for task in "abc":
        line.put(task, task)
    late = one(line)
    line.again(late, 5.0)
    line.done(late)
    under_way = one(line)
    for task in "abc":
        line.drop(task)
        line.drop(task)
    assert len(line) == 0
    assert [job.task_id for job in line.take_over()] == ["a", "c"]
    assert line.take_over() == []
    assert under_way.is_over.is_set()
    line.done(under_way)
    assert taken(line, 9.0) == []
    assert line.next_at() == math.inf
