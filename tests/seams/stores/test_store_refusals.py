"""What moderation ends: as it comes or under a claim, once, refunded or charged, with who waits for its picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_store_outcomes import COST, GRANT, all_outcomes_of, balance, running

from builders import NOW, claimed, in_event_loop, new_key, refused, submission
from fluxserve.store.base import Store, Verdict
from fluxserve.store.submissions import Refusal
from fluxserve.tasks.task import State

PROMPT = Refusal(categories=("sexual", "nudity"), about="prompt")


@in_event_loop
async def test_a_refused_request_is_a_task_that_has_ended(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=0))
    (answer,) = await store.submit_many([submission(entry, cost=0, refusal=PROMPT, max_active=0)])
    assert answer.verdict is Verdict.ACCEPTED
    assert answer.record is not None
    record = answer.record
    assert (record.state, record.refusal, record.reason) == (State.REQUEST_MODERATED, PROMPT, None)
    assert (record.finished_at, record.worker_id, record.fence) == (NOW, None, 0)
    assert await store.get_many([record.id]) == [record]
    assert await store.active() == []
    assert await claimed(store) == []
    assert await balance(store, entry.key) == 0


@in_event_loop
async def test_a_retry_of_it_gets_it_again(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    asked = [submission(entry, refusal=PROMPT, cost=0, idempotency_key="k") for _ in range(2)]
    first, second = await store.submit_many(asked)
    assert (second.verdict, second.record) == (Verdict.REPLAYED, first.record)


@pytest.mark.parametrize(
    ("state", "charged"),
    [(State.REQUEST_MODERATED, False), (State.CONTENT_MODERATED, False), (State.CONTENT_MODERATED, True)],
)
@in_event_loop
async def test_what_is_refused_under_a_claim_is_refunded_or_charged(store: Store, state: State, charged: bool) -> None:
    task, key = await running(store)
    (record,) = await store.refuse_many([refused(task, state=state, charged=charged, now=NOW + 9)])
    assert record is not None
    assert (record.state, record.finished_at, record.worker_id) == (state, NOW + 9, None)
    assert record.refusal is not None
    assert (record.refusal.charged, record.object_name, record.reason) == (charged, None, None)
    assert await store.get_many([task.id]) == [record]
    assert await balance(store, key) == GRANT - COST * charged
    assert await all_outcomes_of(store, task) == (None, None, None)
    assert await store.refuse_many([refused(task)]) == [None]


@in_event_loop
async def test_a_lost_claim_refuses_nothing(store: Store) -> None:
    task, _ = await running(store)
    late = replace(refused(task), fence=task.fence + 1)
    assert await store.refuse_many([late]) == [None]
    assert await store.active() == [task]


@pytest.mark.parametrize("charged", [False, True])
@in_event_loop
async def test_whoever_waits_for_its_picture_is_refused_with_it(store: Store, charged: bool) -> None:
    entry = await store.create_key(new_key(credits_=GRANT))
    answers = await store.submit_many([submission(entry, cost=COST, recipe=b"r") for _ in range(4)])
    states = [answer.record.state for answer in answers if answer.record]
    assert states == [State.QUEUED, *[State.FOLLOWING] * 3]
    (leader,) = await claimed(store)
    (record,) = await store.refuse_many([refused(leader, charged=charged)])
    assert record is not None
    assert [one.state for one in record.followers] == [State.CONTENT_MODERATED] * 3
    assert await store.active() == []
    assert await balance(store, entry.key) == GRANT - 4 * COST * charged
