"""Outcomes: only under the claim that still holds, settled or refunded once, in the outbox once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from builders import (
    DRAWN,
    NOW,
    QUARANTINED,
    REASON,
    claimed_one,
    completion,
    failure,
    in_event_loop,
    loss,
    new_key,
    quarantining,
    submission,
    submitted,
)
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.store.base import Failure, Store, TaskRecord
from fluxserve.tasks.task import MAX_ATTEMPTS, Attempts, State

Ended = tuple[TaskRecord | None, ...]
GRANT = 10_000
COST = 2500


async def balance(store: Store, key: ApiKey) -> int | None:
    """What the key's account has left."""
    return next(entry.balance for entry in await store.keys() if entry.key.id == key.id)


async def running(store: Store) -> tuple[TaskRecord, ApiKey]:
    """A claimed task of an account with GRANT credits, of which COST are reserved."""
    entry = await store.create_key(new_key(credits_=GRANT))
    await store.submit_many([submission(entry, cost=COST)])
    return await claimed_one(store), entry.key


@in_event_loop
async def test_a_completed_task_is_ready_and_has_paid_its_price(store: Store) -> None:
    task, key = await running(store)

    (ready,) = await store.complete_many([completion(task, object_name="ab/c.jpeg", now=NOW + 9)])

    assert ready is not None
    assert (ready.state, ready.object_name, ready.drawn) == (State.READY, "ab/c.jpeg", DRAWN)
    assert (ready.finished_at, ready.worker_id, ready.reason) == (NOW + 9, None, None)
    assert await store.get_many([task.id]) == [ready]
    assert await balance(store, key) == GRANT - COST
    assert await store.active() == []


@pytest.mark.parametrize(
    ("used", "left"),
    [
        (None, GRANT - COST),
        (COST, GRANT - COST),
        (1000, GRANT - 1000),
        (0, GRANT),
        (COST + 1, GRANT - COST),
        (-5, GRANT),
    ],
)
@in_event_loop
async def test_what_was_not_used_goes_back_and_never_more_is_taken_than_was_reserved(
    store: Store, used: int | None, left: int
) -> None:
    task, key = await running(store)
    await store.complete_many([completion(task, used=used)])
    assert await balance(store, key) == left


@in_event_loop
async def test_a_failed_task_ends_in_error_with_its_reason_and_its_credits_back(store: Store) -> None:
    task, key = await running(store)

    (failed,) = await store.fail_many([failure(task, now=NOW + 9)])

    assert failed is not None
    assert (failed.state, failed.reason, failed.finished_at) == (State.ERROR, REASON, NOW + 9)
    assert (failed.worker_id, failed.object_name, failed.drawn) == (None, None, None)
    assert await store.get_many([task.id]) == [failed]
    assert await balance(store, key) == GRANT


@in_event_loop
async def test_a_queued_task_can_be_failed_by_the_server_but_not_under_a_fence(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    (task,) = await submitted(store, entry)

    assert await store.fail_many([failure(task)]) == [None]
    (failed,) = await store.fail_many([Failure(task_id=task.id, fence=None, reason=REASON, drawn=0.0, now=NOW)])

    assert failed is not None
    assert failed.state is State.ERROR
    assert await balance(store, entry.key) == GRANT
    assert await claimed_nothing(store)


async def claimed_nothing(store: Store) -> bool:
    """Nothing waits for a worker."""
    return all(record.state is State.RUNNING for record in await store.active())


async def all_outcomes_of(store: Store, task: TaskRecord) -> Ended:
    """Every outcome there is, under the claim that `task` shows, in batches of one."""
    (completed,) = await store.complete_many([completion(task, object_name="late.jpeg")])
    (failed,) = await store.fail_many([failure(task)])
    (released,) = await store.release_many([loss(task)])
    return completed, failed, released


@in_event_loop
async def test_no_outcome_of_a_lost_claim_is_taken_while_the_task_waits(store: Store) -> None:
    task, key = await running(store)
    (queued,) = await store.release_many([loss(task)])

    assert await all_outcomes_of(store, task) == (None, None, None)

    assert await store.get_many([task.id]) == [queued]
    assert await balance(store, key) == GRANT - COST


@in_event_loop
async def test_no_outcome_of_a_lost_claim_is_taken_while_another_worker_draws(store: Store) -> None:
    task, _ = await running(store)
    await store.release_many([loss(task)])
    current = await claimed_one(store, "w2")

    assert await all_outcomes_of(store, task) == (None, None, None)
    assert await store.get_many([task.id]) == [current]

    (ready,) = await store.complete_many([completion(current, object_name="right.jpeg")])
    assert ready is not None
    assert ready.object_name == "right.jpeg"


@in_event_loop
async def test_an_outcome_under_a_fence_that_was_never_given_is_refused(store: Store) -> None:
    task, _ = await running(store)
    assert await all_outcomes_of(store, replace(task, fence=task.fence + 1)) == (None, None, None)
    assert await store.get_many([task.id]) == [task]


@pytest.mark.parametrize("first", ["completed", "failed"])
@in_event_loop
async def test_a_finished_task_never_changes_again(store: Store, first: str) -> None:
    task, key = await running(store)
    (final,) = (
        await store.complete_many([completion(task)])
        if first == "completed"
        else await store.fail_many([failure(task)])
    )
    left = await balance(store, key)

    assert await all_outcomes_of(store, task) == (None, None, None)
    assert await store.fail_many([Failure(task_id=task.id, fence=None, reason=REASON, drawn=0.0, now=NOW)]) == [None]

    assert await store.get_many([task.id]) == [final]
    assert await balance(store, key) == left


@in_event_loop
async def test_the_same_outcome_twice_in_one_batch_counts_once(store: Store) -> None:
    task, key = await running(store)
    first, second = await store.complete_many([completion(task), completion(task)])
    assert first is not None
    assert second is None
    assert await balance(store, key) == GRANT - COST


@in_event_loop
async def test_of_many_outcomes_at_once_one_wins(store: Store) -> None:
    task, key = await running(store)

    ends = await asyncio.gather(
        *[store.complete_many([completion(task)]) for _ in range(10)],
        *[store.fail_many([failure(task)]) for _ in range(10)],
        *[store.release_many([loss(task)]) for _ in range(10)],
    )

    assert sum(record is not None for (record,) in ends) == 1
    (now,) = await store.get_many([task.id])
    assert now is not None
    assert await balance(store, key) == (GRANT if now.state is State.ERROR else GRANT - COST)


@in_event_loop
async def test_outcomes_of_unknown_tasks_are_refused_and_their_neighbours_taken(store: Store) -> None:
    task, _ = await running(store)
    stranger = replace(task, id="no-such-task")
    assert await all_outcomes_of(store, stranger) == (None, None, None)
    unknown, known = await store.complete_many([completion(stranger), completion(task)])
    assert unknown is None
    assert known is not None


@in_event_loop
async def test_a_lost_task_goes_back_in_the_queue_and_keeps_its_reservation(store: Store) -> None:
    task, key = await running(store)

    (queued,) = await store.release_many([loss(task, step=5)])

    assert queued is not None
    assert (queued.state, queued.worker_id, queued.fence) == (State.QUEUED, None, task.fence)
    assert queued.attempts == Attempts(spoiled=1, best_step=5)
    assert await store.active() == [queued]
    assert await balance(store, key) == GRANT - COST


@in_event_loop
async def test_a_task_that_spoils_its_last_attempt_is_quarantined_and_refunded(store: Store) -> None:
    task, key = await running(store)
    assert await store.quarantined() == []
    for _ in range(MAX_ATTEMPTS - 1):
        (queued,) = await store.release_many([loss(task)])
        assert queued is not None
        assert queued.state is State.QUEUED
        task = await claimed_one(store)

    (given_up,) = await store.release_many([quarantining(loss(task, now=NOW + 9))])

    assert given_up is not None
    assert (given_up.state, given_up.reason, given_up.finished_at) == (State.ERROR, QUARANTINED, NOW + 9)
    assert given_up.attempts.spoiled == MAX_ATTEMPTS
    assert await store.get_many([task.id]) == [given_up]
    assert await balance(store, key) == GRANT
    assert await store.quarantined() == [given_up]


@in_event_loop
async def test_the_newest_quarantined_task_comes_first_and_those_that_failed_otherwise_are_none(store: Store) -> None:
    entry = await store.create_key(new_key())
    poisons = [(await submitted(store, entry))[0].id for _ in range(2)]
    for number, poison in enumerate(poisons):
        for _ in range(MAX_ATTEMPTS):
            task = await claimed_one(store)
            assert task.id == poison
            await store.release_many([quarantining(loss(task, now=NOW + number))])
    await submitted(store, entry)
    await store.fail_many([failure(await claimed_one(store))])
    assert [record.id for record in await store.quarantined()] == poisons[::-1]


@in_event_loop
async def test_a_loss_after_new_progress_is_the_first_of_its_kind(store: Store) -> None:
    task, _ = await running(store)
    for step in range(1, 3 * MAX_ATTEMPTS):
        (queued,) = await store.release_many([loss(task, step=step)])
        assert queued is not None
        assert queued.attempts == Attempts(spoiled=1, best_step=step)
        task = await claimed_one(store)


@in_event_loop
async def test_new_progress_does_not_save_a_task_that_ends_its_worker_alone(store: Store) -> None:
    task, _ = await running(store)
    for step in (5, 5, 6):
        (released,) = await store.release_many([loss(task, step=step)])
        assert released is not None
        if released.state is State.QUEUED:
            task = await claimed_one(store)
    assert (released.state, released.attempts) == (State.ERROR, Attempts(spoiled=3, best_step=6))


@in_event_loop
async def test_progress_made_twice_counts_once(store: Store) -> None:
    task, _ = await running(store)
    for spoiled in range(1, MAX_ATTEMPTS):
        (queued,) = await store.release_many([loss(task, step=5)])
        assert queued is not None
        assert queued.attempts == Attempts(spoiled=spoiled, best_step=5)
        task = await claimed_one(store)


@in_event_loop
async def test_a_loss_that_is_not_the_tasks_fault_never_counts(store: Store) -> None:
    task, _ = await running(store)
    for _ in range(3 * MAX_ATTEMPTS):
        (queued,) = await store.release_many([loss(task, suspected=False)])
        assert queued is not None
        assert queued.attempts.spoiled == 0
        task = await claimed_one(store)


@in_event_loop
async def test_a_refused_loss_counts_no_attempt(store: Store) -> None:
    task, _ = await running(store)
    for _ in range(2 * MAX_ATTEMPTS):
        assert await store.release_many([loss(replace(task, fence=task.fence + 1))]) == [None]
    assert await store.get_many([task.id]) == [task]
