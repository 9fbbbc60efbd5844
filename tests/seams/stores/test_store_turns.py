"""Fair turns as a store hands them out: by predicted work, by the keys' weights, and short tasks before long ones."""

from __future__ import annotations

from builders import (
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
)
from fluxserve.store.base import Kept, KeyEntry, Offer, Store, TaskRecord
from fluxserve.tasks.task import MAX_ATTEMPTS, State

SHORT, LONG = 50.0, 1000.0


async def accepted(store: Store, entry: KeyEntry, *works: float) -> list[TaskRecord]:
    """A task of each work, in this order."""
    answers = await store.submit_many([submission(entry, work=work) for work in works])
    return [answer.record for answer in answers if answer.record is not None]


async def work_of_claims(store: Store, entries: list[KeyEntry], total: float) -> list[float]:
    """How much work of each key is handed out, of `total` in all, to workers that hold one task each."""
    got = dict.fromkeys((entry.key.id for entry in entries), 0.0)
    number = 0
    while sum(got.values()) < total:
        record = await claimed_one(store, f"w{number}")
        got[record.key_id] += record.work
        number += 1
    return list(got.values())


@in_event_loop
async def test_a_record_says_its_turn_and_its_work(store: Store) -> None:
    first, second = await accepted(store, await store.create_key(new_key()), LONG, LONG)
    assert (first.work, second.turn - first.turn) == (LONG, LONG)
    assert await store.get_many([second.id]) == [second]


@in_event_loop
async def test_a_short_task_is_claimed_before_longer_ones_of_its_key_that_came_before_it(store: Store) -> None:
    entry = await store.create_key(new_key())
    *long, short = await accepted(store, entry, *[LONG] * 20, SHORT)
    assert [record.id for record in await claimed(store, limit=3)] == [short.id, long[0].id, long[1].id]


@in_event_loop
async def test_tasks_of_like_length_of_one_key_are_claimed_in_the_order_of_their_coming(store: Store) -> None:
    entry = await store.create_key(new_key())
    first, second = await accepted(store, entry, 400.0, 300.0)
    assert [record.id for record in await claimed(store, limit=2)] == [first.id, second.id]


@in_event_loop
async def test_a_key_of_long_tasks_gets_no_more_work_done_than_one_of_short_ones(store: Store) -> None:
    keys = [await store.create_key(new_key(account=name)) for name in ("long", "short")]
    await accepted(store, keys[0], *[LONG] * 20)
    await accepted(store, keys[1], *[SHORT] * 200)
    long, short = await work_of_claims(store, keys, 10 * LONG)
    assert abs(long - short) <= LONG + SHORT


@in_event_loop
async def test_keys_get_work_done_by_their_weights(store: Store) -> None:
    weights = (0.5, 1.0, 2.0)
    keys = [await store.create_key(new_key(account=f"w{weight}", weight=weight)) for weight in weights]
    for entry in keys:
        await accepted(store, entry, *[LONG] * 40)
    got = await work_of_claims(store, keys, 35 * LONG)
    shares = [work / weight for work, weight in zip(got, weights, strict=True)]
    assert max(shares) - min(shares) <= 2 * LONG / min(weights)


@in_event_loop
async def test_a_key_remembers_its_weight(store: Store) -> None:
    made = await store.create_key(new_key(weight=2.5))
    assert made.key.weight == 2.5
    assert [entry.key.weight for entry in await store.keys()] == [2.5]


@in_event_loop
async def test_newcomers_start_where_the_work_is_and_not_where_claims_ahead_are(store: Store) -> None:
    flood, newcomer = [await store.create_key(new_key(account=name)) for name in ("flood", "new")]
    await accepted(store, flood, *[LONG] * 20)
    held = await claimed(store, "w1", limit=4) + await claimed(store, "w1", limit=4)
    (short,) = await accepted(store, newcomer, SHORT)
    assert short.turn < held[0].turn


@in_event_loop
async def test_newcomers_start_where_the_most_advanced_worker_is(store: Store) -> None:
    flood, newcomer = [await store.create_key(new_key(account=name)) for name in ("flood", "new")]
    await accepted(store, flood, *[LONG] * 20)
    slow = await claimed_one(store, "slow")
    fast = [await claimed_one(store, f"fast{number}") for number in range(10)]
    (short,) = await accepted(store, newcomer, SHORT)
    assert slow.turn < short.turn < fast[-1].turn


@in_event_loop
async def test_a_claim_may_ask_for_lower_turns_alone(store: Store) -> None:
    entry = await store.create_key(new_key())
    first, second, _ = await accepted(store, entry, LONG, LONG, LONG)
    (none,) = await store.claim_many([claim_request("w1", limit=3, before=first.turn)])
    (two,) = await store.claim_many([claim_request("w1", limit=3, before=second.turn + 1)])
    assert none == []
    assert [record.id for record in two] == [first.id, second.id]


@in_event_loop
async def test_a_task_that_lost_its_worker_keeps_its_turn(store: Store) -> None:
    (task,) = await accepted(store, await store.create_key(new_key()), LONG)
    (again,) = await store.release_many([loss(await claimed_one(store), suspected=False)])
    assert again is not None
    assert again.turn == task.turn


@in_event_loop
async def test_a_task_that_is_followed_from_an_earlier_place_moves_up_whole(store: Store) -> None:
    flood, other = [await store.create_key(new_key(account="a")) for _ in range(2)]
    await accepted(store, flood, *[LONG] * 5)
    (leader, follower) = [
        (await store.submit_many([submission(entry, work=LONG, recipe=b"r")]))[0].record for entry in (flood, other)
    ]
    assert leader is not None
    assert follower is not None
    (moved,) = await store.get_many([leader.id])
    assert moved is not None
    assert moved.turn == follower.turn < leader.turn


# What ends undrawn


async def next_turn(store: Store, entry: KeyEntry, work: float = LONG) -> float:
    """Where the key's next task ends."""
    (task,) = await accepted(store, entry, work)
    return task.turn


@in_event_loop
async def test_a_key_that_cancelled_all_it_had_waiting_owes_nothing(store: Store) -> None:
    entry = await store.create_key(new_key())
    tasks = await accepted(store, entry, *[LONG] * 24)
    await store.cancel_many([cancellation(task) for task in tasks])
    assert await next_turn(store, entry) == LONG


@in_event_loop
async def test_what_waits_behind_a_cancelled_task_of_its_flow_moves_up_and_is_told_of(store: Store) -> None:
    entry = await store.create_key(new_key())
    first, second, short, third = await accepted(store, entry, LONG, LONG, SHORT, LONG)
    (ended,) = await store.cancel_many([cancellation(first)])
    assert ended is not None
    assert dict(ended.moved) == {second.id: LONG, third.id: third.turn - LONG}
    moved = await store.get_many([second.id, short.id, third.id])
    assert [task.turn for task in moved if task is not None] == [LONG, short.turn, third.turn - LONG]


@in_event_loop
async def test_what_a_worker_holds_keeps_the_turn_that_it_was_told(store: Store) -> None:
    entry = await store.create_key(new_key())
    *_, third = await accepted(store, entry, LONG, LONG, LONG)
    first, _ = await claimed(store, limit=2)
    (ended,) = await store.cancel_many([cancellation(first)])
    assert ended is not None
    assert [task_id for task_id, _ in ended.moved] == [third.id]


@in_event_loop
async def test_what_was_drawn_of_a_cancelled_or_failed_task_is_paid_for(store: Store) -> None:
    for end, again in ((store.cancel_many, cancellation), (store.fail_many, failure)):
        entry = await store.create_key(new_key())
        await accepted(store, entry, LONG)
        task = await claimed_one(store)
        before = task.turn
        await end([again(task, drawn=0.75)])  # type: ignore[operator]
        assert abs(await next_turn(store, entry) - (before + 0.75 * LONG)) < 1e-6
        for left in await store.active():
            await store.cancel_many([cancellation(left)])


@in_event_loop
async def test_what_a_lost_worker_had_drawn_is_paid_for_too(store: Store) -> None:
    entry = await store.create_key(new_key())
    await accepted(store, entry, LONG)
    (task,) = await store.release_many([loss(await claimed_one(store), step=generation().steps // 2, suspected=False)])
    assert task is not None
    await store.cancel_many([cancellation(task)])
    assert abs(await next_turn(store, entry) - 1.5 * LONG) < 1e-6


@in_event_loop
async def test_a_quarantined_task_gives_nothing_back(store: Store) -> None:
    entry = await store.create_key(new_key())
    await accepted(store, entry, LONG)
    for _ in range(MAX_ATTEMPTS):
        (task,) = await store.release_many([loss(await claimed_one(store))])
    assert task is not None
    assert task.state is State.ERROR
    assert await next_turn(store, entry) == 2 * LONG


async def equal(store: Store, *entries: KeyEntry) -> list[TaskRecord]:
    """Equal long tasks, one of each key: the first leads."""
    answers = await store.submit_many([submission(entry, work=LONG, recipe=b"r") for entry in entries])
    return [answer.record for answer in answers if answer.record is not None]


@in_event_loop
async def test_a_drawing_that_goes_on_for_a_follower_stays_paid_for_and_is_not_paid_twice(store: Store) -> None:
    entry = await store.create_key(new_key())
    leader, follower, last = await equal(store, entry, entry, entry)
    await store.cancel_many([cancellation(leader)])
    assert await next_turn(store, entry) == 2 * LONG
    await store.cancel_many([cancellation(last), cancellation(follower)])
    assert await next_turn(store, entry) == 2 * LONG  # the one of before has moved up


@in_event_loop
async def test_what_is_drawn_again_for_a_follower_is_paid_again(store: Store) -> None:
    entry = await store.create_key(new_key())
    await equal(store, entry, entry)
    await store.cancel_many([cancellation(await claimed_one(store), drawn=0.75)])
    assert abs(await next_turn(store, entry) - 2.75 * LONG) < 1e-6


@in_event_loop
async def test_a_follower_that_goes_on_where_its_cancelled_leader_stood_pays_for_the_rest_alone(store: Store) -> None:
    entry = await store.create_key(new_key())
    _, follower = await equal(store, entry, entry)
    leader = await claimed_one(store)
    await store.keep_waypoints([new_waypoint(leader, step=21, steps=28)])
    await store.cancel_many([cancellation(leader, drawn=0.75)])
    assert [(kept.task_id, kept.step) for kept in await store.waypoints()] == [(follower.id, 21)]
    assert await next_turn(store, entry) == 2 * LONG
    assert (await claimed_one(store)).id == follower.id


@in_event_loop
async def test_a_follower_of_a_failed_task_starts_over(store: Store) -> None:
    entry = await store.create_key(new_key())
    await equal(store, entry, entry)
    leader = await claimed_one(store)
    await store.keep_waypoints([new_waypoint(leader)])
    await store.fail_many([failure(leader)])
    assert await store.waypoints() == []


@in_event_loop
async def test_whoever_moves_a_task_up_pays_for_it_and_the_key_before_gets_its_turn_back(store: Store) -> None:
    flood, other = [await store.create_key(new_key(account="a")) for _ in range(2)]
    await accepted(store, flood, *[LONG] * 5)
    leader, follower = await equal(store, flood, other)
    assert (leader.turn, follower.turn) == (6 * LONG, LONG)
    assert await next_turn(store, flood) == 6 * LONG
    await store.cancel_many([cancellation(leader), cancellation(follower)])
    assert await next_turn(store, other) == LONG


@in_event_loop
async def test_a_task_that_is_answered_while_it_waits_gives_its_turn_back(store: Store) -> None:
    entry = await store.create_key(new_key())
    await equal(store, entry)
    first = await claimed_one(store)
    kept = Kept(fingerprint="f1", size=1, budget=10)
    await store.complete_many([completion(first, kept=kept)])
    await equal(store, entry)
    (answered,) = await store.answer_many([Offer(model="flux-dev", fingerprints=("f1",), now=first.created_at)])
    assert [task.state for task in answered] == [State.READY]
    assert await next_turn(store, entry) == 2 * LONG
