"""Input pictures in the store: named with their task, in one transaction, and gone with its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import (
    NOW,
    cancellation,
    claimed_one,
    completion,
    failure,
    generation,
    in_event_loop,
    loss,
    new_key,
    quarantining,
    submission,
)
from fluxserve.catalogue import InputPicture, Size
from fluxserve.store.base import Store, TaskRecord, Verdict
from fluxserve.store.submissions import KeptInput, Submission
from fluxserve.tasks.task import MAX_ATTEMPTS


def with_picture(new: Submission) -> Submission:
    """The same request with a picture."""
    named = InputPicture(name="image", size=Size(64, 64), sha256="00")
    kept = KeptInput(task_id=new.id, name="image", object_name=f"{new.id}.png", size=100)
    return replace(new, generation=replace(generation(), pictures=(named,)), inputs=(kept,))


async def accepted(store: Store) -> TaskRecord:
    """A task with a picture."""
    new = with_picture(submission(await store.create_key(new_key())))
    (outcome,) = await store.submit_many([new])
    assert outcome.record is not None
    assert await store.inputs() == list(new.inputs)
    return outcome.record


@pytest.mark.parametrize("end", ["ready", "failed", "cancelled", "quarantined"])
@in_event_loop
async def test_the_end_of_a_task_is_the_end_of_its_inputs(store: Store, end: str) -> None:
    await accepted(store)
    task = await claimed_one(store)
    assert len(await store.inputs()) == 1
    if end == "ready":
        await store.complete_many([completion(task)])
    elif end == "failed":
        await store.fail_many([failure(task)])
    elif end == "cancelled":
        await store.cancel_many([cancellation(task)])
    else:
        for attempt in range(MAX_ATTEMPTS):
            await store.release_many([quarantining(loss(task))])
            if attempt < MAX_ATTEMPTS - 1:
                task = await claimed_one(store, f"w{attempt + 2}")
    assert await store.inputs() == []
    assert await store.fsck() == []


@in_event_loop
async def test_a_task_that_lost_its_worker_keeps_its_inputs(store: Store) -> None:
    await accepted(store)
    task = await claimed_one(store)
    await store.release_many([loss(task, suspected=False)])
    assert len(await store.inputs()) == 1
    assert await store.fsck() == []


@in_event_loop
async def test_a_request_that_is_not_accepted_has_no_inputs(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=0))
    (outcome,) = await store.submit_many([with_picture(submission(entry))])
    assert outcome.verdict is Verdict.NO_CREDITS
    assert await store.inputs() == []


@in_event_loop
async def test_the_books_show_a_task_without_its_inputs(store: Store) -> None:
    entry = await store.create_key(new_key(now=NOW))
    new = with_picture(submission(entry))
    (outcome,) = await store.submit_many([replace(new, inputs=())])
    assert outcome.record is not None
    assert await store.fsck() == [f"Task {new.id}: it has not ended, but its input pictures are not kept."]
    await store.cancel_many([cancellation(outcome.record)])
