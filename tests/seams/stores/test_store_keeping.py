"""What the store keeps, for how long, and who may ask: reads, keys, retention, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from builders import (
    NOW,
    claimed,
    claimed_one,
    completion,
    failure,
    in_event_loop,
    new_key,
    submission,
    submitted,
)
from fluxserve.errors import StoreUnavailable
from fluxserve.store.base import KeyEntry, Picture, Store, TaskRecord, Verdict

Open = Callable[[], Store]


async def finished(store: Store, entry: KeyEntry, at: float) -> TaskRecord:
    """A task that became ready at `at`."""
    await store.submit_many([submission(entry, extras={"user": "u1"})])
    (record,) = await store.complete_many([completion(await claimed_one(store), now=at)])
    assert record is not None
    return record


@in_event_loop
async def test_unknown_tasks_are_none_among_known_ones(store: Store) -> None:
    (task,) = await submitted(store, await store.create_key(new_key()))
    assert await store.get_many(["unknown", task.id, ""]) == [None, task, None]


@in_event_loop
async def test_active_tasks_are_all_that_wait_or_run(store: Store) -> None:
    entry = await store.create_key(new_key())
    *_, last = await submitted(store, entry, count=4)
    running = await claimed_one(store)
    await store.complete_many([completion(await claimed_one(store))])
    await store.fail_many([failure(await claimed_one(store))])
    assert [task.id for task in await store.active()] == [running.id, last.id]


@in_event_loop
async def test_everything_is_there_after_a_restart(opener: Open) -> None:
    store = opener()
    entry = await store.create_key(new_key(credits_=10_000))
    await submitted(store, entry, count=3)
    await store.complete_many([completion(await claimed_one(store))])
    running = await claimed_one(store)
    before = await store.active()
    keys = await store.keys()
    await store.close()

    again = opener()

    assert await again.active() == before
    assert await again.keys() == keys
    assert await again.complete_many([completion(running)]) != [None]
    assert await again.fsck() == []
    await again.close()


@in_event_loop
async def test_fair_turns_go_on_after_a_restart(opener: Open) -> None:
    store = opener()
    busy = await store.create_key(new_key(account="busy"))
    newcomer = await store.create_key(new_key(account="newcomer"))
    await submitted(store, busy, count=20)
    await claimed(store, limit=10)
    await store.close()

    again = opener()
    (late,) = await submitted(again, newcomer)
    assert late.id in {(await claimed_one(again, f"w{n}")).id for n in range(3)}
    await again.close()


@in_event_loop
async def test_a_closed_store_refuses_work(opener: Open) -> None:
    store = opener()
    entry = await store.create_key(new_key())
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.submit_many([submission(entry)])


@in_event_loop
async def test_what_was_asked_before_the_close_is_written(opener: Open) -> None:
    store = opener()
    entry = await store.create_key(new_key())
    waiting = [asyncio.create_task(store.submit_many([submission(entry)])) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    answers = [(await call)[0] for call in waiting]

    again = opener()
    assert {record.id for record in await again.active()} == {answer.record.id for answer in answers if answer.record}
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 20
    await again.close()


@in_event_loop
async def test_a_new_key_opens_a_new_account_with_its_grant(store: Store) -> None:
    key = replace(new_key(name="ci", account="alice", credits_=12_500, max_active=24), rate_per_minute=60)

    entry = await store.create_key(key)

    assert (entry.account_name, entry.balance, entry.digest) == ("alice", 12_500, key.digest)
    assert (entry.key.id, entry.key.name, entry.key.created_at) == (key.id, "ci", NOW)
    assert (entry.key.max_active, entry.key.rate_per_minute, entry.key.is_revoked) == (24, 60, False)
    assert await store.keys() == [entry]


@in_event_loop
async def test_an_account_without_a_grant_has_nothing_and_an_unlimited_one_no_balance(store: Store) -> None:
    assert (await store.create_key(new_key(account="poor", credits_=0))).balance == 0
    assert (await store.create_key(new_key(account="rich", credits_=None))).balance is None


@in_event_loop
async def test_keys_of_one_account_share_its_balance_and_grants_add_up(store: Store) -> None:
    first = await store.create_key(new_key(account="alice", credits_=1000))
    second = await store.create_key(new_key(account="alice", credits_=500, now=NOW + 1))
    assert second.key.account_id == first.key.account_id
    assert [entry.balance for entry in await store.keys()] == [1500, 1500]
    await store.submit_many([submission(second, cost=1200)])
    assert [entry.balance for entry in await store.keys()] == [300, 300]


@in_event_loop
async def test_an_account_keeps_its_kind_when_a_key_joins(store: Store) -> None:
    await store.create_key(new_key(account="rich", credits_=None))
    assert (await store.create_key(new_key(account="rich", credits_=500))).balance is None
    await store.create_key(new_key(account="poor", credits_=700))
    assert (await store.create_key(new_key(account="poor", credits_=None))).balance == 700


@in_event_loop
async def test_a_key_that_exists_already_is_refused_and_changes_nothing(store: Store) -> None:
    key = new_key(credits_=1000)
    entry = await store.create_key(key)
    with pytest.raises(StoreUnavailable):
        await store.create_key(replace(key, id="another id", account="another account"))
    with pytest.raises(StoreUnavailable):
        await store.create_key(replace(key, digest=b"another digest"))
    assert await store.keys() == [entry]


@in_event_loop
async def test_a_revoked_key_stays_in_the_list_with_the_time_of_its_first_revocation(store: Store) -> None:
    entry = await store.create_key(new_key())
    other = await store.create_key(new_key(now=NOW + 1))

    revoked = await store.revoke_key(entry.key.id, NOW + 5)
    again = await store.revoke_key(entry.key.id, NOW + 9)

    assert revoked == again
    assert revoked is not None
    assert revoked.key.revoked_at == NOW + 5
    assert await store.keys() == [revoked, other]
    assert await store.revoke_key("unknown", NOW) is None


@in_event_loop
async def test_old_pictures_are_those_of_tasks_that_ended_before_the_cutoff_oldest_first(store: Store) -> None:
    entry = await store.create_key(new_key())
    third, first, second = [await finished(store, entry, at) for at in (NOW + 30, NOW + 10, NOW + 20)]
    await submitted(store, entry)
    await store.fail_many([failure(await claimed_one(store))])

    pictures = await store.old_pictures(NOW + 30, 10)

    assert pictures == [Picture(task_id=t.id, object_name=t.object_name or "") for t in (first, second)]
    assert await store.old_pictures(NOW + 30, 1) == pictures[:1]
    assert [picture.task_id for picture in await store.old_pictures(NOW + 99, 10)] == [first.id, second.id, third.id]


@in_event_loop
async def test_a_forgotten_picture_leaves_its_task(store: Store) -> None:
    task = await finished(store, await store.create_key(new_key()), NOW)
    picture = Picture(task_id=task.id, object_name=task.object_name or "")

    assert await store.forget_pictures([replace(picture, object_name="other"), picture, picture]) == [
        False,
        True,
        False,
    ]

    assert await store.get_many([task.id]) == [replace(task, object_name=None)]
    assert await store.old_pictures(NOW + 99, 10) == []


@in_event_loop
async def test_known_objects_are_those_that_a_task_refers_to(store: Store) -> None:
    task = await finished(store, await store.create_key(new_key()), NOW)
    assert await store.known_objects([task.object_name or "", "orphan.jpeg"]) == {task.object_name}
    assert await store.known_objects([]) == set()


@in_event_loop
async def test_old_tasks_are_deleted_oldest_first_and_the_ledger_stays(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=10_000))
    old_1, old_2, young = [await finished(store, entry, at) for at in (NOW + 1, NOW + 2, NOW + 10)]
    (waiting,) = await submitted(store, entry)

    assert await store.delete_old(NOW + 10, 1) == 1
    assert await store.get_many([old_1.id, old_2.id]) == [None, old_2]
    assert await store.delete_old(NOW + 10, 10) == 1
    assert await store.delete_old(NOW + 10, 10) == 0

    assert await store.get_many([old_2.id, young.id, waiting.id]) == [None, young, waiting]
    assert (await store.keys())[0].balance == 6000  # fsck, after this test, adds the ledger up to the same


@in_event_loop
async def test_sweeps_at_the_same_time_leave_nothing_behind(store: Store) -> None:
    entry = await store.create_key(new_key())
    for _ in range(12):
        await finished(store, entry, NOW)
    deleted = await asyncio.gather(*[store.delete_old(NOW + 1, 2) for _ in range(6)])
    assert deleted == [2] * 6
    assert await store.fsck() == []


@in_event_loop
async def test_an_idempotency_key_is_free_again_when_its_task_is_deleted(store: Store) -> None:
    entry = await store.create_key(new_key())
    await store.submit_many([submission(entry, idempotency_key="k", request_hash=b"one")])
    await store.complete_many([completion(await claimed_one(store), now=NOW)])
    await store.delete_old(NOW + 1, 10)
    (answer,) = await store.submit_many([submission(entry, idempotency_key="k", request_hash=b"two")])
    assert answer.verdict is Verdict.ACCEPTED
