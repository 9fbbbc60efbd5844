"""Waypoints: one for each task, kept under its claim, first for workers that can go on from it, gone with its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from builders import (
    NOW,
    PATIENCE_S,
    cancellation,
    claim_request,
    claimed,
    claimed_one,
    completion,
    failure,
    generation,
    in_event_loop,
    loss,
    new_key,
    new_waypoint,
    submission,
    submitted,
)
from fluxserve.store.base import Failure, Store, TaskRecord
from fluxserve.tasks.task import MAX_ATTEMPTS

Open = Callable[[], Store]


async def running(store: Store) -> TaskRecord:
    """A task that w1 draws."""
    await submitted(store, await store.create_key(new_key()))
    return await claimed_one(store)


async def waiting(store: Store, *, fingerprint: str = "f1") -> TaskRecord:
    """A task that was written down and then lost its worker, at NOW."""
    task = await running(store)
    assert await store.keep_waypoints([new_waypoint(task, fingerprint=fingerprint)]) == [True]
    await store.release_many([loss(task, suspected=False)])
    return task


async def ids_for(store: Store, fingerprint: str, *, now: float = NOW, limit: int = 4) -> list[str]:
    """The tasks that a new worker of this fingerprint gets."""
    request = claim_request(f"w-{fingerprint}-{now}", fingerprint=fingerprint, now=now, limit=limit)
    return [record.id for record in (await store.claim_many([request]))[0]]


@in_event_loop
async def test_a_waypoint_takes_the_place_of_the_one_before(store: Store) -> None:
    task = await running(store)
    first, second = (new_waypoint(task, step=step) for step in (5, 9))
    assert await store.keep_waypoints([first]) == [True]
    assert await store.waypoints() == [first.waypoint]
    assert await store.keep_waypoints([second]) == [True]
    assert await store.waypoints() == [second.waypoint]


@in_event_loop
async def test_waypoints_are_there_after_a_restart_the_oldest_first(opener: Open) -> None:
    store = opener()
    await submitted(store, await store.create_key(new_key()), count=3)
    records = await claimed(store, limit=3)
    new = [new_waypoint(record, now=NOW - number) for number, record in enumerate(records)]
    await store.keep_waypoints(new)
    await store.close()
    again = opener()
    assert await again.waypoints() == [one.waypoint for one in reversed(new)]
    await again.close()


@in_event_loop
async def test_a_waypoint_of_a_lost_claim_is_refused(store: Store) -> None:
    task = await running(store)
    kept = new_waypoint(task, step=5)
    await store.keep_waypoints([kept])
    await store.release_many([loss(task)])
    late = new_waypoint(task, step=9)
    assert await store.keep_waypoints([late]) == [False]
    assert await claimed_one(store, "w2")
    assert await store.keep_waypoints([late, new_waypoint(replace(task, id="unknown"))]) == [False, False]
    assert await store.waypoints() == [kept.waypoint]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "given up", "ended by the server"])
@in_event_loop
async def test_the_end_of_a_task_is_the_end_of_its_waypoint(store: Store, end: str) -> None:
    task = await running(store)
    await store.keep_waypoints([new_waypoint(task)])
    if end == "completed":
        await store.complete_many([completion(task)])
    elif end == "failed":
        await store.fail_many([failure(task)])
    elif end == "cancelled":
        await store.cancel_many([cancellation(task)])
    elif end == "ended by the server":
        await store.fail_many([Failure(task_id=task.id, fence=None, reason=failure(task).reason, drawn=0.0, now=NOW)])
    else:
        for _ in range(MAX_ATTEMPTS):
            assert len(await store.waypoints()) == 1
            await store.release_many([loss(task)])
            task = (await claimed(store) or [task])[0]
    assert await store.waypoints() == []
    assert await store.keep_waypoints([new_waypoint(task, step=9)]) == [False]


@in_event_loop
async def test_a_waypoint_that_was_replaced_cannot_be_dropped(store: Store) -> None:
    task = await running(store)
    first, second = (new_waypoint(task, step=step) for step in (5, 9))
    await store.keep_waypoints([first])
    await store.keep_waypoints([second])
    assert await store.drop_waypoints([first.waypoint]) == [False]
    assert await store.waypoints() == [second.waypoint]
    assert await store.drop_waypoints([second.waypoint, second.waypoint]) == [True, False]
    assert await store.waypoints() == []


# Claims


@in_event_loop
async def test_a_task_that_was_written_down_waits_for_a_worker_of_its_fingerprint(store: Store) -> None:
    task = await waiting(store)
    assert await ids_for(store, "f2") == []
    assert await ids_for(store, "f1") == [task.id]


@in_event_loop
async def test_a_task_that_waited_long_enough_goes_to_any_worker(store: Store) -> None:
    task = await waiting(store)
    assert await ids_for(store, "f2", now=NOW + PATIENCE_S - 1) == []
    assert await ids_for(store, "f2", now=NOW + PATIENCE_S) == [task.id]


@in_event_loop
async def test_the_wait_begins_when_the_worker_was_lost_and_not_when_the_waypoint_was_written(store: Store) -> None:
    task = await running(store)
    await store.keep_waypoints([new_waypoint(task)])
    await store.release_many([loss(task, suspected=False, now=NOW + 500)])
    assert await ids_for(store, "f2", now=NOW + 500 + PATIENCE_S - 1) == []
    assert await ids_for(store, "f2", now=NOW + 500 + PATIENCE_S) == [task.id]


@in_event_loop
async def test_a_task_whose_waypoint_was_dropped_waits_for_nobody(store: Store) -> None:
    task = await waiting(store)
    await store.drop_waypoints(await store.waypoints())
    assert await ids_for(store, "f2") == [task.id]


@in_event_loop
async def test_a_fingerprint_counts_for_the_model_that_it_is_named_for(store: Store) -> None:
    task = await waiting(store)
    request = claim_request("w2")
    swapped = {model: "f1" if model != task.generation.model else "f2" for model in request.models}
    assert await store.claim_many([replace(request, fingerprints=swapped)]) == [[]]
    assert await store.claim_many([replace(request, fingerprints={})]) == [[]]
    only = {task.generation.model: "f1"}
    ((record,),) = await store.claim_many([replace(request, fingerprints=only)])
    assert record.id == task.id


@in_event_loop
async def test_others_are_handed_out_past_a_task_that_waits_for_its_kind_of_worker(store: Store) -> None:
    task = await waiting(store)
    entry = await store.create_key(new_key())
    later = [record.id for record in await submitted(store, entry, count=2)]
    assert await ids_for(store, "f2", limit=8) == later
    assert await ids_for(store, "f1", limit=8) == [task.id]


@in_event_loop
async def test_a_batch_takes_only_tasks_that_its_worker_may_have(store: Store) -> None:
    entry = await store.create_key(new_key())
    await submitted(store, entry, count=3)
    first, second, third = await claimed(store, limit=3)
    await store.keep_waypoints([new_waypoint(first, fingerprint="f1"), new_waypoint(second, fingerprint="f2")])
    await store.release_many([loss(task, suspected=False) for task in (first, second, third)])
    assert await ids_for(store, "f2") == [second.id, third.id]
    assert await ids_for(store, "f1") == [first.id]


@in_event_loop
async def test_a_task_without_a_waypoint_is_anybodys(store: Store) -> None:
    entry = await store.create_key(new_key())
    (answer,) = await store.submit_many([submission(entry, drawing=generation())])
    assert answer.record is not None
    assert await ids_for(store, "f9") == [answer.record.id]


@in_event_loop
async def test_of_a_waypoint_and_an_outcome_at_once_no_waypoint_is_left(store: Store) -> None:
    task = await running(store)
    await asyncio.gather(
        *[store.keep_waypoints([new_waypoint(task, step=step)]) for step in range(1, 9)],
        store.complete_many([completion(task)]),
        *[store.keep_waypoints([new_waypoint(task, step=step)]) for step in range(9, 18)],
    )
    assert await store.waypoints() == []
