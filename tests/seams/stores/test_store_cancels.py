"""Cancelling: once, by its own account, refunded, and exactly one of it and any other end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest
from test_store_outcomes import COST, GRANT, all_outcomes_of, balance, running

from builders import NOW, cancellation, claimed, completion, in_event_loop, loss, new_key, submission
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.store.base import Store, TaskRecord, Verdict
from fluxserve.tasks.task import State

Begin = Callable[[Store], Coroutine[object, object, tuple[TaskRecord, ApiKey]]]


async def queued(store: Store) -> tuple[TaskRecord, ApiKey]:
    """A waiting task of an account with GRANT credits, of which COST are reserved."""
    entry = await store.create_key(new_key(credits_=GRANT))
    (answer,) = await store.submit_many([submission(entry, cost=COST)])
    assert answer.record is not None
    return answer.record, entry.key


@pytest.mark.parametrize("begin", [queued, running])
@in_event_loop
async def test_a_cancelled_task_has_ended_and_its_credits_are_back(store: Store, begin: Begin) -> None:
    task, key = await begin(store)

    (cancelled,) = await store.cancel_many([cancellation(task, now=NOW + 9)])

    assert cancelled is not None
    assert (cancelled.state, cancelled.finished_at, cancelled.worker_id) == (State.CANCELLED, NOW + 9, None)
    assert (cancelled.object_name, cancelled.drawn, cancelled.reason) == (None, None, None)
    assert await store.get_many([task.id]) == [cancelled]
    assert await store.active() == []
    assert await claimed(store) == []
    assert await balance(store, key) == GRANT


@pytest.mark.parametrize("begin", [queued, running])
@in_event_loop
async def test_a_task_is_cancelled_once_and_nothing_happens_to_it_any_more(store: Store, begin: Begin) -> None:
    task, key = await begin(store)

    first, second = await store.cancel_many([cancellation(task), cancellation(task)])

    assert first is not None
    assert second is None
    assert await all_outcomes_of(store, task) == (None, None, None)
    assert await store.get_many([task.id]) == [first]
    assert await balance(store, key) == GRANT


@in_event_loop
async def test_a_ready_task_stays_ready_and_paid_for(store: Store) -> None:
    task, key = await running(store)
    (ready,) = await store.complete_many([completion(task)])
    assert await store.cancel_many([cancellation(task)]) == [None]
    assert await store.get_many([task.id]) == [ready]
    assert await balance(store, key) == GRANT - COST


@in_event_loop
async def test_a_task_that_went_back_in_the_queue_can_be_cancelled_and_is_not_drawn_again(store: Store) -> None:
    task, key = await running(store)
    await store.release_many([loss(task)])
    (cancelled,) = await store.cancel_many([cancellation(task)])
    assert cancelled is not None
    assert cancelled.fence == task.fence
    assert await claimed(store) == []
    assert await balance(store, key) == GRANT


@in_event_loop
async def test_no_other_account_can_cancel_a_task(store: Store) -> None:
    task, key = await running(store)
    stranger = (await store.create_key(new_key(account="bob"))).key
    assert await store.cancel_many([cancellation(task, account_id=stranger.account_id)]) == [None]
    assert await store.get_many([task.id]) == [task]
    assert await balance(store, key) == GRANT - COST


@in_event_loop
async def test_an_unknown_task_is_none_and_its_neighbour_is_cancelled(store: Store) -> None:
    task, key = await running(store)
    unknown, known = await store.cancel_many([cancellation(replace(task, id="no-such-task")), cancellation(task)])
    assert unknown is None
    assert known is not None
    assert await balance(store, key) == GRANT


@in_event_loop
async def test_of_a_cancellation_and_a_picture_at_once_exactly_one_wins(store: Store) -> None:
    for first_is_picture in (True, False) * 5:
        task, key = await running(store)
        before = await balance(store, key)
        assert before is not None
        ends = [store.complete_many([completion(task)]), store.cancel_many([cancellation(task)])]
        outcomes = await asyncio.gather(*(ends if first_is_picture else reversed(ends)))
        (record,) = await store.get_many([task.id])
        assert [outcome for (outcome,) in outcomes if outcome is not None] == [record]
        assert record is not None
        assert await balance(store, key) == before + (COST if record.state is State.CANCELLED else 0)


@in_event_loop
async def test_a_cancelled_task_makes_room_for_another_of_its_key(store: Store) -> None:
    entry = await store.create_key(new_key())
    (first,) = await store.submit_many([submission(entry, max_active=1)])
    assert first.record is not None
    (refused,) = await store.submit_many([submission(entry, max_active=1)])
    assert refused.verdict is Verdict.TOO_MANY_ACTIVE
    await store.cancel_many([cancellation(first.record)])
    (accepted,) = await store.submit_many([submission(entry, max_active=1)])
    assert accepted.verdict is Verdict.ACCEPTED


@in_event_loop
async def test_a_cancelled_task_is_still_the_one_of_its_idempotency_key(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    (first,) = await store.submit_many([submission(entry, cost=COST, idempotency_key="k")])
    assert first.record is not None
    (cancelled,) = await store.cancel_many([cancellation(first.record)])
    (again,) = await store.submit_many([submission(entry, cost=COST, idempotency_key="k")])
    assert (again.verdict, again.record) == (Verdict.REPLAYED, cancelled)
    assert await balance(store, entry.key) == GRANT
