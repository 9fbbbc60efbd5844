"""Equal requests: one is drawn, those that come meanwhile follow it, later ones are answered with its picture."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from test_store_outcomes import balance

from builders import (
    DRAWN,
    NOW,
    QUARANTINED,
    REASON,
    cancellation,
    claimed,
    claimed_one,
    completion,
    failure,
    generation,
    in_event_loop,
    loss,
    new_key,
    quarantining,
    submission,
    submitted,
)
from fluxserve.catalogue import Size
from fluxserve.store.base import Failure, Kept, KeyEntry, Offer, Picture, Store, TaskRecord, Verdict
from fluxserve.tasks.task import MAX_ATTEMPTS, State

Open = Callable[[], Store]
RECIPE, OTHER = b"a recipe", b"another recipe"
HERE = ("the weights of today",)
GRANT, COST = 10_000, 1000
OBJECT = "ab/picture.jpeg"


def kept(*, fingerprint: str = HERE[0], size: int = 100, budget: int = 1000) -> Kept:
    """A picture that may answer others."""
    return Kept(fingerprint=fingerprint, size=size, budget=budget)


async def ask(
    store: Store,
    entry: KeyEntry,
    *,
    recipe: bytes | None = RECIPE,
    fingerprints: tuple[str, ...] = HERE,
    max_active: int | None = None,
    now: float = NOW,
) -> TaskRecord:
    """An accepted request."""
    new = submission(
        entry, cost=COST, recipe=recipe, fingerprints=fingerprints, max_active=max_active, request_hash=b"", now=now
    )
    (answer,) = await store.submit_many([new])
    assert answer.verdict is Verdict.ACCEPTED
    assert answer.record is not None
    return answer.record


async def draw(
    store: Store, entry: KeyEntry, recipe: bytes, *, size: int = 100, budget: int = 1000, now: float = NOW
) -> TaskRecord:
    """A request that was drawn and answers equal ones from now on."""
    await ask(store, entry, recipe=recipe, now=now)
    task = await claimed_one(store)
    (record,) = await store.complete_many([completion(task, kept=kept(size=size, budget=budget), now=now)])
    assert record is not None
    return record


async def now_is(store: Store, *tasks: TaskRecord) -> list[State]:
    """The tasks' states as they are written down."""
    records = await store.get_many([task.id for task in tasks])
    return [record.state for record in records if record is not None]


async def answers(store: Store, entry: KeyEntry, recipe: bytes, *, now: float = NOW) -> bool:
    """Whether a request is answered undrawn. One that is not is ended at once."""
    record = await ask(store, entry, recipe=recipe, now=now)
    if record.state is State.READY:
        return True
    await store.cancel_many([cancellation(record)])
    return False


@in_event_loop
async def test_an_equal_request_is_answered_with_the_picture_that_was_drawn(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    await ask(store, entry)
    done = completion(await claimed_one(store), object_name=OBJECT, kept=kept())
    (first,) = await store.complete_many([done])

    second = await ask(store, entry, now=NOW + 5)

    assert first is not None
    assert (second.state, second.object_name, second.worker_id) == (State.READY, OBJECT, None)
    assert (second.created_at, second.finished_at, second.fence) == (NOW + 5, NOW + 5, 0)
    assert second.drawn == replace(DRAWN, facts={**DRAWN.facts, "cached": True})
    assert second.is_answered
    assert not first.is_answered
    assert await store.get_many([first.id, second.id]) == [first, second]
    assert await store.active() == []
    assert await balance(store, entry.key) == GRANT - 2 * COST


@in_event_loop
async def test_only_an_equal_recipe_drawn_by_the_weights_of_today_is_answered(store: Store) -> None:
    entry = await store.create_key(new_key())
    await draw(store, entry, RECIPE)
    assert not await answers(store, entry, OTHER)
    for fingerprints in ((), ("other weights",), ("other weights", "and others")):
        task = await ask(store, entry, fingerprints=fingerprints)
        assert task.state is State.QUEUED
        await store.cancel_many([cancellation(task)])
    assert (await ask(store, entry, fingerprints=("other weights", *HERE))).state is State.READY


@in_event_loop
async def test_a_request_whose_seed_was_not_asked_for_is_always_drawn_and_answers_others(store: Store) -> None:
    entry = await store.create_key(new_key())
    new = [replace(submission(entry, recipe=RECIPE, fingerprints=HERE), repeatable=False) for _ in range(2)]
    assert [answer.record and answer.record.state for answer in await store.submit_many(new)] == [State.QUEUED] * 2
    first, second = await claimed(store, limit=2)
    await store.complete_many([completion(first, kept=kept())])
    (third,) = await store.submit_many([replace(new[0], id="third")])
    assert third.record is not None
    assert await now_is(store, second, third.record) == [State.RUNNING, State.QUEUED]
    assert await answers(store, entry, RECIPE)


@in_event_loop
async def test_a_request_without_a_recipe_has_nothing_to_do_with_any_other(store: Store) -> None:
    entry = await store.create_key(new_key())
    await submitted(store, entry, count=3)
    tasks = await claimed(store, limit=3)
    assert len(tasks) == 3
    for task in tasks:
        (record,) = await store.complete_many([completion(task, kept=kept())])
        assert record is not None
        assert record.followers == ()
    assert await store.cached_objects() == []


@in_event_loop
async def test_the_newest_weights_that_drew_a_recipe_answer_it(store: Store) -> None:
    entry = await store.create_key(new_key())
    await draw(store, entry, RECIPE)
    await ask(store, entry, fingerprints=("new weights",))
    await store.complete_many([completion(await claimed_one(store), kept=kept(fingerprint="new weights"))])
    assert (await ask(store, entry, fingerprints=("new weights",))).state is State.READY
    assert (await ask(store, entry, fingerprints=HERE)).state is State.QUEUED


@in_event_loop
async def test_an_answered_task_takes_no_place_among_the_unfinished_and_no_turn(store: Store) -> None:
    entry = await store.create_key(new_key(max_active=1))
    await draw(store, entry, RECIPE)
    waiting = await ask(store, entry, recipe=OTHER)
    assert (await ask(store, entry, max_active=1)).state is State.READY
    (refused,) = await store.submit_many([submission(entry, recipe=b"new", fingerprints=HERE, max_active=1)])
    assert refused.verdict is Verdict.TOO_MANY_ACTIVE
    for _ in range(50):
        await ask(store, entry)
    bob = await store.create_key(new_key(account="bob"))
    for number in range(9):
        await ask(store, bob, recipe=b"bob's %d" % number)
    later = await ask(store, entry, recipe=b"later")
    order = [(await claimed_one(store, f"w{n}")).id for n in range(4)]
    assert waiting.id in order[:2]
    assert later.id in order


@in_event_loop
async def test_an_answered_task_is_the_one_of_its_idempotency_key_and_is_paid_for_once(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    await draw(store, entry, RECIPE)
    new = submission(entry, cost=COST, idempotency_key="k", recipe=RECIPE, fingerprints=HERE)
    first, second = await store.submit_many([new, replace(new, id="again")])
    assert (first.verdict, second.verdict) == (Verdict.ACCEPTED, Verdict.REPLAYED)
    assert first.record == second.record
    assert await balance(store, entry.key) == GRANT - 2 * COST


@in_event_loop
async def test_an_account_that_cannot_pay_is_not_answered_either(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=COST))
    await draw(store, entry, RECIPE)
    (answer,) = await store.submit_many([submission(entry, cost=COST, recipe=RECIPE, fingerprints=HERE)])
    assert (answer.verdict, answer.record) == (Verdict.NO_CREDITS, None)
    assert await balance(store, entry.key) == 0


@in_event_loop
async def test_equal_requests_are_drawn_once_and_are_ready_together(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    leader, *followers = [await ask(store, entry, now=NOW + n) for n in range(4)]
    assert [task.state for task in (leader, *followers)] == [State.QUEUED, *[State.FOLLOWING] * 3]
    task = await claimed_one(store)
    assert task.id == leader.id
    assert await claimed(store, "w2", limit=9) == []
    late = await ask(store, entry, now=NOW + 9)

    (ready,) = await store.complete_many([completion(task, object_name=OBJECT, now=NOW + 20)])

    assert ready is not None
    assert [record.id for record in ready.followers] == [task.id for task in (*followers, late)]
    assert list(ready.followers) == await store.get_many([task.id for task in (*followers, late)])
    for record in ready.followers:
        assert (record.state, record.object_name, record.finished_at) == (State.READY, OBJECT, NOW + 20)
        assert record.is_answered
    assert await store.active() == []
    assert await balance(store, entry.key) == GRANT - 5 * COST


@pytest.mark.parametrize("how", ["cancelled", "failed", "failed by the server"])
@in_event_loop
async def test_when_a_leader_ends_without_a_picture_its_first_follower_takes_its_place(store: Store, how: str) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    leader, first, second = [await ask(store, entry) for _ in range(3)]
    behind = await ask(store, entry, recipe=OTHER)
    task = await claimed_one(store)
    assert task.id == leader.id

    if how == "cancelled":
        (ended,) = await store.cancel_many([cancellation(task)])
    elif how == "failed":
        (ended,) = await store.fail_many([failure(task)])
    else:
        (ended,) = await store.fail_many([Failure(task_id=task.id, fence=None, reason=REASON, drawn=0.0, now=NOW)])

    assert ended is not None
    assert ended.state.is_final
    assert [(record.id, record.state) for record in ended.followers] == [(first.id, State.QUEUED)]
    assert await now_is(store, first, second) == [State.QUEUED, State.FOLLOWING]
    assert [(await claimed_one(store, f"w{n}")).id for n in range(2)] == [first.id, behind.id]
    (again,) = await store.get_many([first.id])
    assert again is not None
    (ready,) = await store.complete_many([completion(again, kept=kept())])
    assert ready is not None
    assert [record.id for record in ready.followers] == [second.id]
    assert await balance(store, entry.key) == GRANT - 3 * COST


@in_event_loop
async def test_the_equals_of_a_quarantined_task_end_with_it_and_everybody_is_refunded(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    leader, *followers = [await ask(store, entry) for _ in range(4)]
    other = await ask(store, entry, recipe=OTHER)
    for _ in range(MAX_ATTEMPTS):
        task = await claimed_one(store)
        assert task.id == leader.id
        (ended,) = await store.release_many([quarantining(loss(task))])
    assert ended is not None
    assert (ended.state, ended.reason) == (State.ERROR, QUARANTINED)
    assert [(record.id, record.state) for record in ended.followers] == [(one.id, State.ERROR) for one in followers]
    assert await now_is(store, leader, *followers, other) == [State.ERROR] * 4 + [State.QUEUED]
    assert len(await store.quarantined()) == 4
    assert await balance(store, entry.key) == GRANT - COST
    assert await store.fsck() == []
    assert (await ask(store, entry)).state is State.QUEUED  # who asks again is a task of its own


@in_event_loop
async def test_a_leader_that_lost_its_worker_keeps_its_followers(store: Store) -> None:
    entry = await store.create_key(new_key())
    leader, follower = await ask(store, entry), await ask(store, entry)
    (released,) = await store.release_many([loss(await claimed_one(store))])
    assert released is not None
    assert released.followers == ()
    assert await now_is(store, leader, follower) == [State.QUEUED, State.FOLLOWING]


@in_event_loop
async def test_a_follower_can_be_cancelled_and_its_leader_does_not_notice(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    leader, first, second = [await ask(store, entry) for _ in range(3)]
    (cancelled,) = await store.cancel_many([cancellation(first)])
    assert cancelled is not None
    assert cancelled.followers == ()
    assert await now_is(store, leader, first, second) == [State.QUEUED, State.CANCELLED, State.FOLLOWING]
    (ready,) = await store.complete_many([completion(await claimed_one(store))])
    assert ready is not None
    assert [record.id for record in ready.followers] == [second.id]
    assert await balance(store, entry.key) == GRANT - 2 * COST


@in_event_loop
async def test_a_worker_cannot_end_a_follower(store: Store) -> None:
    entry = await store.create_key(new_key())
    _, follower = await ask(store, entry), await ask(store, entry)
    assert await store.complete_many([completion(follower)]) == [None]
    assert await store.fail_many([failure(follower)]) == [None]
    assert await store.release_many([loss(follower)]) == [None]
    assert await now_is(store, follower) == [State.FOLLOWING]


@in_event_loop
async def test_a_late_picture_answers_nobody(store: Store) -> None:
    entry = await store.create_key(new_key())
    leader, follower = await ask(store, entry), await ask(store, entry)
    stale = await claimed_one(store)
    await store.release_many([loss(stale, suspected=False)])
    assert await store.complete_many([completion(stale, kept=kept())]) == [None]
    assert await now_is(store, leader, follower) == [State.QUEUED, State.FOLLOWING]
    assert await store.cached_objects() == []


@in_event_loop
async def test_equal_requests_that_come_together_are_drawn_once(store: Store) -> None:
    entry = await store.create_key(new_key())
    records = await asyncio.gather(*[ask(store, entry) for _ in range(40)])
    assert sorted(record.state for record in records) == sorted([State.QUEUED, *[State.FOLLOWING] * 39])
    assert len(await claimed(store, limit=99)) == 1


@in_event_loop
async def test_a_follower_counts_as_unfinished(store: Store) -> None:
    entry = await store.create_key(new_key())
    await ask(store, entry, max_active=2)
    await ask(store, entry, max_active=2)
    (refused,) = await store.submit_many([submission(entry, recipe=RECIPE, fingerprints=HERE, max_active=2)])
    assert refused.verdict is Verdict.TOO_MANY_ACTIVE


@in_event_loop
async def test_followers_cost_their_key_no_turn(store: Store) -> None:
    busy = await store.create_key(new_key(account="busy"))
    await ask(store, busy)
    for _ in range(20):
        await ask(store, busy)
    own = await ask(store, busy, recipe=OTHER)
    idle = await store.create_key(new_key(account="idle"))
    others = [await ask(store, idle, recipe=b"r%d" % n) for n in range(5)]
    served = [(await claimed_one(store, f"w{n}")).id for n in range(7)]
    assert served.index(own.id) <= served.index(others[2].id)


@in_event_loop
async def test_a_key_does_not_wait_behind_the_flood_of_another_whose_request_it_shares(store: Store) -> None:
    flood = await store.create_key(new_key(account="alice"))
    polite = await store.create_key(new_key(account="alice"))
    tasks = [await ask(store, flood, recipe=b"r%d" % n) for n in range(30)]
    small = generation(size=Size(256, 256))
    (last,) = await store.submit_many([submission(flood, recipe=RECIPE, fingerprints=HERE, drawing=small)])
    assert last.record is not None
    early = await ask(store, flood)
    follower = await ask(store, polite)
    assert {early.state, follower.state} == {State.FOLLOWING}

    served = [(await claimed_one(store, f"w{n}")).id for n in range(3)]

    assert last.record.id in served[:2]
    assert tasks[0].id in served[:2]
    await store.cancel_many([cancellation(last.record)])
    assert (await claimed_one(store, "w4")).id == early.id


@in_event_loop
async def test_what_waited_for_a_worker_is_answered_when_one_of_the_old_weights_comes(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    first = await draw(store, entry, RECIPE)
    leader, follower = [await ask(store, entry, fingerprints=()) for _ in range(2)]
    other = await ask(store, entry, recipe=OTHER, fingerprints=())

    offers = [
        Offer(model="flux-dev", fingerprints=("new weights",), now=NOW + 1),
        Offer(model="flux-schnell", fingerprints=HERE, now=NOW + 1),
        Offer(model="flux-dev", fingerprints=HERE, now=NOW + 2),
    ]
    nothing, of_another, answered = await store.answer_many(offers)

    assert (nothing, of_another) == ([], [])
    assert [(record.id, record.state, record.finished_at) for record in answered] == [
        (leader.id, State.READY, NOW + 2),
        (follower.id, State.READY, NOW + 2),
    ]
    assert {record.object_name for record in answered} == {first.object_name}
    assert await now_is(store, other) == [State.QUEUED]
    assert await balance(store, entry.key) == GRANT - 4 * COST


@in_event_loop
async def test_what_is_being_drawn_already_is_not_answered_by_an_offer(store: Store) -> None:
    entry = await store.create_key(new_key())
    await draw(store, entry, RECIPE)
    await ask(store, entry, fingerprints=())
    running = await claimed_one(store)
    assert await store.answer_many([Offer(model="flux-dev", fingerprints=HERE, now=NOW)]) == [[]]
    assert await store.complete_many([completion(running, kept=kept())]) != [None]


@in_event_loop
async def test_the_pictures_used_longest_ago_leave_when_the_budget_is_spent(store: Store) -> None:
    entry = await store.create_key(new_key())
    for number in range(3):
        await draw(store, entry, b"r%d" % number, size=300, budget=1000, now=NOW + number)
    assert await answers(store, entry, b"r0", now=NOW + 5)

    await draw(store, entry, b"r3", size=300, budget=1000, now=NOW + 6)

    assert [await answers(store, entry, b"r%d" % number) for number in range(4)] == [True, False, True, True]
    assert len(await store.cached_objects()) == 3


@in_event_loop
async def test_a_picture_over_the_whole_budget_is_not_kept_and_drives_no_other_out(store: Store) -> None:
    entry = await store.create_key(new_key())
    await draw(store, entry, RECIPE, size=500, budget=500)
    await draw(store, entry, OTHER, size=501, budget=500)
    assert [await answers(store, entry, recipe) for recipe in (RECIPE, OTHER)] == [True, False]


@in_event_loop
async def test_a_smaller_budget_holds_with_the_next_picture(store: Store) -> None:
    entry = await store.create_key(new_key())
    for number in range(5):
        await draw(store, entry, b"r%d" % number, size=100, budget=500, now=NOW + number)
    await draw(store, entry, b"r5", size=100, budget=200, now=NOW + 9)
    assert [await answers(store, entry, b"r%d" % number) for number in range(6)] == [False] * 4 + [True, True]


@in_event_loop
async def test_a_picture_is_to_be_deleted_when_the_last_task_that_holds_it_lets_go(store: Store) -> None:
    entry = await store.create_key(new_key())
    first = await draw(store, entry, RECIPE)
    second = await ask(store, entry)
    name = first.object_name or ""
    of_first, of_second = (Picture(task_id=task.id, object_name=name) for task in (first, second))

    assert await store.forget_pictures([of_first, of_first]) == [False, False]
    assert await store.known_objects([name]) == {name}
    third = await ask(store, entry)
    assert (third.state, third.object_name) == (State.READY, name)

    last = Picture(task_id=third.id, object_name=name)
    assert await store.forget_pictures([of_second, last]) == [False, True]
    assert await store.known_objects([name]) == set()
    assert await store.cached_objects() == []
    assert not await answers(store, entry, RECIPE)


@in_event_loop
async def test_a_picture_whose_tasks_are_all_deleted_answers_nobody(store: Store) -> None:
    entry = await store.create_key(new_key())
    await draw(store, entry, RECIPE, now=NOW)
    await ask(store, entry, now=NOW + 10)
    assert await store.delete_old(NOW + 1, 9) == 1
    assert await answers(store, entry, RECIPE, now=NOW + 20)
    assert await store.delete_old(NOW + 30, 9) == 2
    assert await store.cached_objects() == []
    assert not await answers(store, entry, RECIPE)


@in_event_loop
async def test_a_picture_that_was_lost_answers_nobody_and_can_be_drawn_again(store: Store) -> None:
    entry = await store.create_key(new_key())
    task = await draw(store, entry, RECIPE)
    assert await store.cached_objects() == [task.object_name]
    assert await store.forget_cached(["unknown", task.object_name or "", task.object_name or ""]) == [
        False,
        True,
        False,
    ]
    assert not await answers(store, entry, RECIPE)
    await draw(store, entry, RECIPE)
    assert await answers(store, entry, RECIPE)


@in_event_loop
async def test_all_of_it_outlives_a_restart(opener: Open) -> None:
    store = opener()
    entry = await store.create_key(new_key(credits_=GRANT))
    drawn = await draw(store, entry, RECIPE)
    leader, follower = [await ask(store, entry, recipe=OTHER) for _ in range(2)]
    await store.close()

    again = opener()
    assert [record.id for record in await again.active()] == [leader.id, follower.id]
    assert (await ask(again, entry)).object_name == drawn.object_name
    (ready,) = await again.complete_many([completion(await claimed_one(again))])
    assert ready is not None
    assert [record.id for record in ready.followers] == [follower.id]
    assert await again.fsck() == []
    await again.close()
