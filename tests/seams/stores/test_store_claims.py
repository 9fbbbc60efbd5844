"""Claims: fair turns between keys, tasks that can be drawn together, one worker for each task."""

from __future__ import annotations

import asyncio

from builders import (
    EVERY_MODEL,
    LEASE_S,
    NOW,
    claim_request,
    claimed,
    claimed_one,
    generation,
    in_event_loop,
    loss,
    new_key,
    submission,
    submitted,
)
from fluxserve.catalogue import Generation, Size
from fluxserve.store.base import KeyEntry, Lease, Store
from fluxserve.tasks.task import SUSPECT_AFTER, State

SMALL = generation(size=Size(256, 256))
LARGE = generation(size=Size(1024, 1024))
RARE = generation(size=Size(320, 256))
SCHNELL = generation(model="flux-schnell")


async def queue(store: Store, entry: KeyEntry, drawings: list[Generation]) -> list[str]:
    """The ids of one new task for each drawing."""
    answers = await store.submit_many([submission(entry, drawing=drawing) for drawing in drawings])
    return [answer.record.id for answer in answers if answer.record is not None]


async def ids_in_turn(store: Store, count: int, *, limit: int = 1) -> list[str]:
    """The next `count` tasks as workers get them, each claim by a new worker."""
    ids: list[str] = []
    while len(ids) < count and (records := await claimed(store, f"w{len(ids)}", limit=limit)):
        ids += [record.id for record in records]
    return ids


@in_event_loop
async def test_a_claim_hands_out_a_running_task_under_a_new_fence_and_a_lease(store: Store) -> None:
    (task,) = await submitted(store, await store.create_key(new_key()))

    record = await claimed_one(store, "w7", now=NOW + 3)

    assert (record.id, record.state, record.worker_id) == (task.id, State.RUNNING, "w7")
    assert (record.fence, record.started_at) == (1, NOW + 3)
    assert await store.get_many([task.id]) == [record]
    assert await store.lapsed(NOW + 3 + LEASE_S) == []
    assert await store.lapsed(NOW + 4 + LEASE_S) == [record]


@in_event_loop
async def test_an_empty_queue_gives_nothing(store: Store) -> None:
    assert await claimed(store) == []


@in_event_loop
async def test_a_key_is_served_first_come_first_served(store: Store) -> None:
    ids = await queue(store, await store.create_key(new_key()), [SMALL] * 10)
    assert await ids_in_turn(store, 10) == ids


@in_event_loop
async def test_a_key_that_comes_while_another_floods_the_queue_waits_its_turn_and_no_longer(store: Store) -> None:
    flood = await queue(store, await store.create_key(new_key(account="a")), [SMALL] * 1000)
    started = await ids_in_turn(store, 5)
    late = await queue(store, await store.create_key(new_key(account="b")), [SMALL] * 10)

    served = await ids_in_turn(store, 20)

    assert started == flood[:5]
    assert [id_ for id_ in served if id_ in late] == late
    assert [id_ for id_ in served if id_ not in late] == flood[5:15]


@in_event_loop
async def test_batches_of_one_size_do_not_put_a_newcomer_behind_the_flood(store: Store) -> None:
    drawings = [RARE, *[SMALL, LARGE] * 250, RARE]
    await queue(store, await store.create_key(new_key(account="a")), drawings)
    assert len(await claimed(store, "w", limit=4)) == 2  # the first and the very last task of the flood

    (late,) = await queue(store, await store.create_key(new_key(account="b")), [SCHNELL])

    assert late in await ids_in_turn(store, 4)


@in_event_loop
async def test_a_key_that_was_idle_saves_up_no_turns(store: Store) -> None:
    idle = await store.create_key(new_key(account="idle"))
    busy = await store.create_key(new_key(account="busy"))
    await queue(store, busy, [SMALL] * 50)
    await ids_in_turn(store, 50)
    of_busy = await queue(store, busy, [SMALL] * 4)
    of_idle = await queue(store, idle, [SMALL] * 4)

    served = await ids_in_turn(store, 8)

    assert sorted(served) == sorted(of_busy + of_idle)
    assert {served[index] in of_idle for index in (0, 1)} == {True, False}
    assert {served[index] in of_idle for index in (2, 3)} == {True, False}


@in_event_loop
async def test_one_claim_holds_only_tasks_that_can_be_drawn_together(store: Store) -> None:
    entry = await store.create_key(new_key())
    small_1, large_1, small_2, _schnell, small_3 = await queue(store, entry, [SMALL, LARGE, SMALL, SCHNELL, SMALL])
    assert [record.id for record in await claimed(store, limit=8)] == [small_1, small_2, small_3]
    assert [record.id for record in await claimed(store, limit=8)] == [large_1]


@in_event_loop
async def test_one_claim_holds_at_most_its_limit(store: Store) -> None:
    ids = await queue(store, await store.create_key(new_key()), [SMALL] * 5)
    assert [record.id for record in await claimed(store, limit=3)] == ids[:3]
    assert await claimed(store, limit=0) == []
    assert await claimed(store, limit=-1) == []
    assert [record.id for record in await claimed(store, limit=3)] == ids[3:]


@in_event_loop
async def test_a_worker_gets_only_models_that_it_draws(store: Store) -> None:
    entry = await store.create_key(new_key())
    (dev, schnell) = await queue(store, entry, [SMALL, SCHNELL])

    none, other, both = await store.claim_many(
        [
            claim_request("w1", models=()),
            claim_request("w2", models=("flux-schnell",)),
            claim_request("w3", models=EVERY_MODEL),
        ]
    )

    assert none == []
    assert [record.id for record in other] == [schnell]
    assert [record.id for record in both] == [dev]


@in_event_loop
async def test_workers_that_claim_at_once_never_get_the_same_task(store: Store) -> None:
    ids = await queue(store, await store.create_key(new_key()), [SMALL] * 60)

    claims = await asyncio.gather(*[store.claim_many([claim_request(f"w{n}", limit=4)]) for n in range(20)])

    held = [record.id for claim in claims for record in claim[0]]
    assert sorted(held) == sorted(ids)


@in_event_loop
async def test_a_task_that_lost_its_worker_comes_before_younger_ones(store: Store) -> None:
    first, second = await queue(store, await store.create_key(new_key()), [SMALL, SMALL])
    await store.release_many([loss(await claimed_one(store), suspected=False)])
    again = await claimed_one(store)
    assert (again.id, again.fence, again.started_at) == (first, 2, NOW)
    assert (await claimed_one(store)).id == second


@in_event_loop
async def test_a_task_that_was_lost_once_is_still_drawn_beside_others(store: Store) -> None:
    ids = await queue(store, await store.create_key(new_key()), [SMALL] * 4)
    await store.release_many([loss(await claimed_one(store))])
    assert [record.id for record in await claimed(store, "w1", limit=4)] == ids


async def suspected(store: Store) -> None:
    """The head of the queue is lost as often as makes it a suspect."""
    for _ in range(SUSPECT_AFTER):
        await store.release_many([loss(await claimed_one(store, "w1"))])


@in_event_loop
async def test_a_suspect_task_is_claimed_alone(store: Store) -> None:
    suspect, *others = await queue(store, await store.create_key(new_key()), [SMALL] * 4)
    await suspected(store)

    assert [record.id for record in await claimed(store, "w1", limit=4)] == [suspect]
    assert [record.id for record in await claimed(store, "w2", limit=4)] == others


@in_event_loop
async def test_a_suspect_task_further_back_is_left_out_of_a_batch(store: Store) -> None:
    first, suspect, third = await queue(store, await store.create_key(new_key()), [SMALL] * 3)
    for _ in range(SUSPECT_AFTER):
        records = await claimed(store, "w1", limit=2)
        await store.release_many([loss(records[1]), loss(records[0], suspected=False)])

    assert [record.id for record in await claimed(store, "w1", limit=4)] == [first, third]
    assert [record.id for record in await claimed(store, "w2", limit=4)] == [suspect]


@in_event_loop
async def test_a_suspect_task_shares_its_worker_with_no_other(store: Store) -> None:
    entry = await store.create_key(new_key())
    (suspect,) = await queue(store, entry, [SMALL])
    await suspected(store)
    assert [record.id for record in await claimed(store, "w1", limit=4)] == [suspect]
    (later,) = await queue(store, entry, [LARGE])

    assert await claimed(store, "w1", limit=4) == []  # it would die with the suspect
    assert [record.id for record in await claimed(store, "w2", limit=4)] == [later]


@in_event_loop
async def test_a_worker_that_draws_for_others_is_given_no_suspect_task(store: Store) -> None:
    entry = await store.create_key(new_key())
    suspect, other = await queue(store, entry, [SMALL, LARGE])
    await store.release_many([loss(await claimed_one(store, "w1"))])
    again = await claimed_one(store, "w1")
    assert (await claimed_one(store, "w2")).id == other
    await store.release_many([loss(again)])

    assert await claimed(store, "w2", limit=4) == []
    assert [record.id for record in await claimed(store, "w3", limit=4)] == [suspect]


@in_event_loop
async def test_a_heartbeat_prolongs_the_leases_of_its_worker_only(store: Store) -> None:
    await queue(store, await store.create_key(new_key()), [SMALL] * 3)
    await claimed(store, "w1", limit=2)
    other = await claimed_one(store, "w2")

    held = await store.extend_many([Lease(worker_id="w1", until=NOW + 100), Lease(worker_id="nobody", until=NOW + 100)])

    assert held == [2, 0]
    assert await store.lapsed(NOW + 50) == [other]


@in_event_loop
async def test_a_heartbeat_does_not_revive_a_claim_that_was_lost(store: Store) -> None:
    await queue(store, await store.create_key(new_key()), [SMALL])
    await store.release_many([loss(await claimed_one(store, "w1"))])
    assert await store.extend_many([Lease(worker_id="w1", until=NOW + 100)]) == [0]
    assert await store.lapsed(NOW + 1000) == []
