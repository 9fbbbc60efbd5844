"""Webhooks in the store: begun with the end of their task, counted, replayed, listed, and kept as long as needed."""

from __future__ import annotations

import pytest

from builders import (
    NOW,
    cancellation,
    claimed_one,
    completion,
    failure,
    in_event_loop,
    new_key,
    submission,
    submitted,
)
from fluxserve.store.base import KeyEntry, Store, TaskRecord
from fluxserve.store.deliveries import Attempted, Delivery, DeliveryPageRequest, DeliveryState, Replay

URL = "https://hooks.test/x"
EVERY_STATE = tuple(DeliveryState)


async def ended(
    store: Store, entry: KeyEntry, *, end: str = "ready", now: float = NOW, url: str | None = URL
) -> TaskRecord:
    """A task with a webhook that has ended."""
    await store.submit_many([submission(entry, webhook_url=url)])
    task = await claimed_one(store)
    if end == "ready":
        await store.complete_many([completion(task, now=now)])
    elif end == "failed":
        await store.fail_many([failure(task, now=now)])
    else:
        await store.cancel_many([cancellation(task, now=now)])
    return task


def attempted(task: TaskRecord, state: DeliveryState, *, due_at: float | None = None, now: float = NOW) -> Attempted:
    """An attempt that a receiver answered with 500, or took."""
    status = 200 if state is DeliveryState.DELIVERED else 500
    return Attempted(task_id=task.id, state=state, due_at=due_at, status=status, problem=None, now=now)


async def listed(store: Store, entry: KeyEntry, states: tuple[DeliveryState, ...] = EVERY_STATE) -> list[Delivery]:
    """All of the account's."""
    page = await store.deliveries(DeliveryPageRequest(account_id=entry.key.account_id, states=states, limit=100))
    assert page.end is None
    return list(page.deliveries)


@pytest.mark.parametrize("end", ["ready", "failed", "cancelled"])
@in_event_loop
async def test_a_task_that_ends_however_it_does_begins_its_one_delivery(store: Store, end: str) -> None:
    entry = await store.create_key(new_key())
    task = await ended(store, entry, end=end, now=NOW + 5)
    assert await store.waiting_deliveries() == [
        Delivery(
            task_id=task.id, account_id=entry.key.account_id, url=URL, state=DeliveryState.WAITING, attempts=0,
            created_at=NOW + 5, due_at=NOW + 5, tried_at=None, status=None, problem=None, ended_at=None,
        )
    ]  # fmt: skip
    assert await store.sealed_secrets([task.id, "unknown"]) == ["sealed", None]


@in_event_loop
async def test_a_task_without_a_webhook_begins_none(store: Store) -> None:
    await ended(store, await store.create_key(new_key()), url=None)
    assert await store.waiting_deliveries() == []


@in_event_loop
async def test_an_unfinished_task_has_none_yet(store: Store) -> None:
    entry = await store.create_key(new_key())
    await store.submit_many([submission(entry, webhook_url=URL)])
    await claimed_one(store)
    assert await store.waiting_deliveries() == []


@in_event_loop
async def test_attempts_are_counted_until_one_is_the_last(store: Store) -> None:
    entry = await store.create_key(new_key())
    task = await ended(store, entry)
    (again,) = await store.record_attempts([attempted(task, DeliveryState.WAITING, due_at=NOW + 9, now=NOW + 1)])
    assert again is not None
    assert (again.attempts, again.due_at, again.tried_at, again.status) == (1, NOW + 9, NOW + 1, 500)
    (done,) = await store.record_attempts([attempted(task, DeliveryState.DELIVERED, now=NOW + 10)])
    assert done is not None
    assert (done.attempts, done.due_at, done.ended_at, done.status) == (2, None, NOW + 10, 200)
    assert await store.waiting_deliveries() == []
    # What comes after the end, from an attempt that was begun twice, changes nothing.
    assert await store.record_attempts([attempted(task, DeliveryState.DEAD)]) == [None]
    assert await listed(store, entry) == [done]


@in_event_loop
async def test_a_replay_begins_anew_and_only_for_its_own_account(store: Store) -> None:
    entry, other = [await store.create_key(new_key(account=name)) for name in ("a", "b")]
    task = await ended(store, entry)
    await store.record_attempts([attempted(task, DeliveryState.DEAD)])
    replays = [Replay(task_id=task.id, account_id=owner.key.account_id, now=NOW + 50) for owner in (other, entry)]
    refused, again = await store.replay_many(replays)
    assert refused is None
    assert again is not None
    assert (again.state, again.attempts, again.due_at, again.ended_at) == (DeliveryState.WAITING, 0, NOW + 50, None)
    assert await store.waiting_deliveries() == [again]


@in_event_loop
async def test_a_list_holds_the_account_s_own_newest_first_in_pages_and_by_state(store: Store) -> None:
    entry, other = [await store.create_key(new_key(account=name)) for name in ("a", "b")]
    tasks = [await ended(store, entry) for _ in range(5)]
    await ended(store, other)
    await store.record_attempts([attempted(tasks[1], DeliveryState.DEAD), attempted(tasks[3], DeliveryState.DELIVERED)])
    assert [one.task_id for one in await listed(store, entry)] == [task.id for task in reversed(tasks)]
    assert [one.task_id for one in await listed(store, entry, (DeliveryState.DEAD,))] == [tasks[1].id]
    found, before = [], None
    while True:
        page = await store.deliveries(
            DeliveryPageRequest(account_id=entry.key.account_id, states=EVERY_STATE, limit=2, before=before)
        )
        found += [one.task_id for one in page.deliveries]
        if (before := page.end) is None:
            break
    assert found == [task.id for task in reversed(tasks)]


@in_event_loop
async def test_picture_and_task_stay_until_their_webhook_is_out_and_as_long_after_as_any(store: Store) -> None:
    entry = await store.create_key(new_key())
    task = await ended(store, entry, now=NOW)
    assert await store.old_pictures(NOW + 1000, 10) == []
    assert await store.delete_old(NOW + 1000, 10) == 0
    await store.record_attempts([attempted(task, DeliveryState.DELIVERED, now=NOW + 500)])
    assert await store.old_pictures(NOW + 500, 10) == []
    assert len(await store.old_pictures(NOW + 501, 10)) == 1
    assert await store.delete_old(NOW + 500, 10) == 0
    assert await store.delete_old(NOW + 501, 10) == 1
    assert await listed(store, entry) == []


@in_event_loop
async def test_tasks_without_webhooks_leave_in_full_batches_beside_one_that_stays(store: Store) -> None:
    entry = await store.create_key(new_key())
    await ended(store, entry, now=NOW)
    for _ in range(3):
        await submitted(store, entry)
        await store.complete_many([completion(await claimed_one(store), now=NOW + 1)])
    assert await store.delete_old(NOW + 2, 2) == 2
    assert await store.delete_old(NOW + 2, 2) == 1
    assert await store.delete_old(NOW + 2, 2) == 0
