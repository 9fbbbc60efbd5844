"""Tasks whose pictures are still to be fetched: kept with what they ask for, then placed and priced like any other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import (
    DRAWN,
    NOW,
    REASON,
    cancellation,
    claimed,
    completion,
    generation,
    in_event_loop,
    new_key,
    preparation,
    prepared,
    submission,
)
from conftest import Open
from fluxserve.catalogue import InputPicture, Size
from fluxserve.store.base import Failure, Kept, KeyEntry, PageRequest, Store, TaskRecord
from fluxserve.store.submissions import KeptInput
from fluxserve.tasks.task import State

RICH = 10_000


async def accepted(store: Store, entry: KeyEntry, *, cost: int = 1500) -> TaskRecord:
    """A task that is being prepared."""
    (outcome,) = await store.submit_many([submission(entry, preparation=preparation(), cost=cost)])
    assert outcome.record is not None
    return outcome.record


async def balance(store: Store) -> int | None:
    """Of the only account."""
    (entry,) = await store.keys()
    return entry.balance


@in_event_loop
async def test_what_a_task_is_prepared_from_outlives_a_restart(opener: Open) -> None:
    store = opener()
    task = await accepted(store, await store.create_key(new_key()))
    await store.close()
    again = opener()
    assert task.state is State.PREPARING
    assert [record.state for record in await again.active()] == [State.PREPARING]
    assert await again.preparations([task.id, "gone"]) == [preparation(), None]
    assert await claimed(again) == []
    await again.close()


@in_event_loop
async def test_a_prepared_task_has_its_place_its_pictures_and_its_price(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=RICH))
    task = await accepted(store, entry)
    assert await balance(store) == RICH - 1500
    named = InputPicture(name="image_prompt", size=Size(64, 64), sha256="00")
    drawing = replace(generation(size=Size(256, 256)), pictures=(named,))
    kept = KeptInput(task_id=task.id, name="image_prompt", object_name="a.png", size=9)
    (record,) = await store.prepare_many([prepared(task, drawing=drawing, cost=1200, inputs=(kept,))])
    assert record is not None
    assert (record.state, record.generation, record.cost) == (State.QUEUED, drawing, 1200)
    assert (record.warnings, record.created_at) == (("prepared",), NOW)
    assert record.turn > task.turn
    assert await balance(store) == RICH - 1200
    assert await store.inputs() == [kept]
    assert await store.preparations([task.id]) == [None]
    (claim,) = await claimed(store)
    await store.complete_many([completion(claim)])
    assert await balance(store) == RICH - 1200


@in_event_loop
async def test_never_more_is_taken_than_was_reserved(store: Store) -> None:
    task = await accepted(store, await store.create_key(new_key(credits_=RICH)), cost=1500)
    (record,) = await store.prepare_many([prepared(task, cost=9000)])
    assert record is not None
    assert (record.cost, await balance(store)) == (1500, RICH - 1500)


@pytest.mark.parametrize("was_prepared", [False, True])
@pytest.mark.parametrize("end", ["cancelled", "failed"])
@in_event_loop
async def test_whoever_ends_it_gets_back_all_of_it_once(store: Store, end: str, was_prepared: bool) -> None:
    task = await accepted(store, await store.create_key(new_key(credits_=RICH)))
    if was_prepared:
        await store.prepare_many([prepared(task, cost=1000)])
    if end == "cancelled":
        (record,) = await store.cancel_many([cancellation(task)])
    else:
        (record,) = await store.fail_many([Failure(task_id=task.id, fence=None, reason=REASON, drawn=0.0, now=NOW)])
    assert record is not None
    assert record.state.is_final
    assert await balance(store) == RICH
    assert await store.preparations([task.id]) == [None]
    assert await store.prepare_many([prepared(task)]) == [None]
    assert await balance(store) == RICH


@in_event_loop
async def test_a_task_is_prepared_once(store: Store) -> None:
    task = await accepted(store, await store.create_key(new_key(credits_=RICH)))
    first, second = await store.prepare_many([prepared(task, cost=1000), prepared(task, cost=500)])
    assert first is not None
    assert second is None
    assert await balance(store) == RICH - 1000


@in_event_loop
async def test_a_prepared_task_follows_an_equal_one_and_another_has_its_picture(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=RICH))
    (leader,) = await store.submit_many([submission(entry, recipe=b"r")])
    follower, late = await accepted(store, entry), await accepted(store, entry)
    (record,) = await store.prepare_many([prepared(follower, recipe=b"r")])
    assert record is not None
    assert record.state is State.FOLLOWING
    (claim,) = await claimed(store, limit=9)
    assert leader.record is not None
    assert claim.id == leader.record.id
    kept = Kept(fingerprint="f1", size=5, budget=100)
    (done,) = await store.complete_many([completion(claim, kept=kept)])
    assert done is not None
    assert [one.id for one in done.followers] == [follower.id]
    (answered,) = await store.prepare_many([prepared(late, recipe=b"r", fingerprints=("f1",))])
    assert answered is not None
    assert (answered.state, answered.object_name) == (State.READY, done.object_name)
    assert answered.drawn is not None
    assert answered.drawn.drawn_by == DRAWN.drawn_by
    assert await balance(store) == RICH - 3000


@in_event_loop
async def test_a_preparing_task_counts_as_unfinished_and_is_listed(store: Store) -> None:
    entry = await store.create_key(new_key())
    task = await accepted(store, entry)
    (refused,) = await store.submit_many([submission(entry, max_active=1)])
    assert refused.record is None
    page = await store.page(PageRequest(account_id=task.account_id, states=(State.PREPARING,), limit=5))
    assert [record.id for record in page.records] == [task.id]
