"""Submits: task, reservation and idempotency key are one thing."""

from __future__ import annotations

import asyncio

from builders import (
    NOW,
    claimed_one,
    completion,
    failure,
    generation,
    in_event_loop,
    new_key,
    submission,
    submitted,
)
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import Size
from fluxserve.store.base import Grant, KeyEntry, Store, Verdict
from fluxserve.tasks.task import Attempts, State


async def balance(store: Store, key: ApiKey) -> int | None:
    """What the key's account has left."""
    return next(entry.balance for entry in await store.keys() if entry.key.id == key.id)


async def verdict(store: Store, entry: KeyEntry, **changes: object) -> Verdict:
    """What becomes of one submission."""
    return (await store.submit_many([submission(entry, **changes)]))[0].verdict  # type: ignore[arg-type]


@in_event_loop
async def test_an_accepted_task_is_kept_exactly_as_it_was_answered(store: Store) -> None:
    entry = await store.create_key(new_key())
    drawing = generation(size=Size(1440, 256), seed=2**64 - 1, prompt='two "apples"\n\u2028 – 🍎')

    (answer,) = await store.submit_many([submission(entry, drawing=drawing, cost=2500, now=NOW + 0.125)])

    assert answer.verdict is Verdict.ACCEPTED
    assert answer.record is not None
    assert await store.get_many([answer.record.id]) == [answer.record]
    assert answer.record.generation == drawing
    assert answer.record.state is State.QUEUED
    assert answer.record.attempts == Attempts()
    assert (answer.record.fence, answer.record.cost, answer.record.created_at) == (0, 2500, NOW + 0.125)
    assert answer.record.warnings == ("raw is not drawn yet",)
    assert answer.record.account_id == entry.key.account_id


@in_event_loop
async def test_an_accepted_task_reserves_its_price(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=10_000))
    await store.submit_many([submission(entry, cost=2500)])
    assert await balance(store, entry.key) == 7500


@in_event_loop
async def test_an_unlimited_account_has_no_balance(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=None))
    await submitted(store, entry, count=3)
    assert await balance(store, entry.key) is None


@in_event_loop
async def test_the_same_idempotency_key_and_request_answer_the_first_task_and_charge_once(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=10_000))
    (first,) = await store.submit_many([submission(entry, idempotency_key="k", drawing=generation(seed=1))])
    (again,) = await store.submit_many([submission(entry, idempotency_key="k", drawing=generation(seed=2))])

    assert again.verdict is Verdict.REPLAYED
    assert again.record == first.record
    assert await balance(store, entry.key) == 9000
    assert len(await store.active()) == 1


@in_event_loop
async def test_a_replay_answers_the_task_as_it_is_now(store: Store) -> None:
    entry = await store.create_key(new_key())
    await store.submit_many([submission(entry, idempotency_key="k")])
    (ready,) = await store.complete_many([completion(await claimed_one(store))])

    (again,) = await store.submit_many([submission(entry, idempotency_key="k")])

    assert again.record == ready
    assert again.record is not None
    assert again.record.state is State.READY


@in_event_loop
async def test_the_same_idempotency_key_with_another_request_is_a_conflict_and_tells_nothing(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=10_000))
    await verdict(store, entry, idempotency_key="k", request_hash=b"one")

    (other,) = await store.submit_many([submission(entry, idempotency_key="k", request_hash=b"two")])

    assert other.verdict is Verdict.CONFLICT
    assert other.record is None
    assert await balance(store, entry.key) == 9000


@in_event_loop
async def test_an_idempotency_key_belongs_to_its_account(store: Store) -> None:
    alice = await store.create_key(new_key(account="alice"))
    bob = await store.create_key(new_key(account="bob"))
    assert await verdict(store, alice, idempotency_key="k") is Verdict.ACCEPTED
    assert await verdict(store, bob, idempotency_key="k", request_hash=b"another") is Verdict.ACCEPTED


@in_event_loop
async def test_two_keys_of_an_account_share_its_idempotency_keys(store: Store) -> None:
    one = await store.create_key(new_key(account="alice"))
    two = await store.create_key(new_key(account="alice"))
    assert await verdict(store, one, idempotency_key="k") is Verdict.ACCEPTED
    assert await verdict(store, two, idempotency_key="k") is Verdict.REPLAYED


@in_event_loop
async def test_a_replay_is_answered_though_nothing_new_would_be_accepted(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=1000))
    assert await verdict(store, entry, idempotency_key="k", max_active=1) is Verdict.ACCEPTED
    assert await verdict(store, entry, idempotency_key="k", max_active=1) is Verdict.REPLAYED


@in_event_loop
async def test_a_retry_within_one_batch_is_a_replay(store: Store) -> None:
    entry = await store.create_key(new_key())
    first, again = await store.submit_many([submission(entry, idempotency_key="k") for _ in range(2)])
    assert [first.verdict, again.verdict] == [Verdict.ACCEPTED, Verdict.REPLAYED]
    assert again.record == first.record


@in_event_loop
async def test_a_refused_submission_does_not_use_up_its_idempotency_key(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=0))
    assert await verdict(store, entry, idempotency_key="k") is Verdict.NO_CREDITS
    await store.create_key(new_key(credits_=1000))
    assert await verdict(store, entry, idempotency_key="k") is Verdict.ACCEPTED


@in_event_loop
async def test_an_account_spends_its_last_credit_and_no_more(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=1000))
    assert await verdict(store, entry, cost=1001) is Verdict.NO_CREDITS
    assert await balance(store, entry.key) == 1000
    assert await verdict(store, entry, cost=1000) is Verdict.ACCEPTED
    assert await verdict(store, entry, cost=1) is Verdict.NO_CREDITS
    assert await verdict(store, entry, cost=0) is Verdict.ACCEPTED
    assert await balance(store, entry.key) == 0


@in_event_loop
async def test_an_account_that_does_not_exist_can_pay_nothing(store: Store) -> None:
    entry = await store.create_key(new_key())
    nobody = ApiKey(
        id=entry.key.id, account_id="nobody", name="", max_active=None, max_work=None, rate_per_minute=None, weight=1.0,
        created_at=NOW, revoked_at=None,
    )  # fmt: skip
    stranger = KeyEntry(key=nobody, digest=b"", account_name="", balance=None)
    assert await verdict(store, stranger, cost=0) is Verdict.NO_CREDITS


@in_event_loop
async def test_a_key_has_at_most_its_number_of_unfinished_tasks(store: Store) -> None:
    entry = await store.create_key(new_key(account="alice"))
    sister = await store.create_key(new_key(account="alice"))
    assert [await verdict(store, entry, max_active=2) for _ in range(3)] == [
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
        Verdict.TOO_MANY_ACTIVE,
    ]
    assert await verdict(store, sister, max_active=1) is Verdict.ACCEPTED


@in_event_loop
async def test_a_running_task_counts_as_unfinished_and_a_finished_one_does_not(store: Store) -> None:
    entry = await store.create_key(new_key())
    await verdict(store, entry)
    running = await claimed_one(store)
    assert await verdict(store, entry, max_active=1) is Verdict.TOO_MANY_ACTIVE
    await store.fail_many([failure(running)])
    assert await verdict(store, entry, max_active=1) is Verdict.ACCEPTED


@in_event_loop
async def test_a_keys_unfinished_tasks_are_at_most_so_much_work_but_one_alone_may_be_any(store: Store) -> None:
    entry = await store.create_key(new_key(max_work=250.0))
    assert entry.key.max_work == 250.0
    wishes = [submission(entry, work=work, max_work=250.0) for work in (300.0, 1.0)]
    assert [answer.verdict for answer in await store.submit_many(wishes)] == [
        Verdict.ACCEPTED,
        Verdict.TOO_MUCH_WORK,
    ]
    await store.fail_many([failure(await claimed_one(store))])
    wishes = [submission(entry, work=work, max_work=250.0) for work in (100.0, 150.0, 0.5)]
    assert [answer.verdict for answer in await store.submit_many(wishes)] == [
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
        Verdict.TOO_MUCH_WORK,
    ]
    assert await verdict(store, await store.create_key(new_key()), max_work=1.0) is Verdict.ACCEPTED


@in_event_loop
async def test_the_limit_holds_within_one_batch(store: Store) -> None:
    entry = await store.create_key(new_key())
    answers = await store.submit_many([submission(entry, max_active=3) for _ in range(5)])
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 3 + [Verdict.TOO_MANY_ACTIVE] * 2


@in_event_loop
async def test_refused_elements_of_a_batch_leave_the_others_unharmed(store: Store) -> None:
    rich = await store.create_key(new_key(account="rich"))
    poor = await store.create_key(new_key(account="poor", credits_=1500))
    await verdict(store, rich, idempotency_key="used", request_hash=b"one")

    answers = await store.submit_many(
        [
            submission(rich),
            submission(poor, cost=1000),
            submission(poor, cost=1000),
            submission(rich, idempotency_key="used", request_hash=b"two"),
            submission(poor, cost=500),
        ]
    )

    assert [answer.verdict for answer in answers] == [
        Verdict.ACCEPTED,
        Verdict.ACCEPTED,
        Verdict.NO_CREDITS,
        Verdict.CONFLICT,
        Verdict.ACCEPTED,
    ]
    assert [answer.record is None for answer in answers] == [False, False, True, True, False]
    kept = await store.get_many([answer.record.id for answer in answers if answer.record])
    assert kept == [answer.record for answer in answers if answer.record]
    assert await balance(store, poor.key) == 0


@in_event_loop
async def test_two_hundred_submits_at_once_with_credits_for_fifty_are_accepted_fifty_times(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=50_000))

    answers = await asyncio.gather(*[store.submit_many([submission(entry, cost=1000)]) for _ in range(200)])

    verdicts = [answer[0].verdict for answer in answers]
    assert (verdicts.count(Verdict.ACCEPTED), verdicts.count(Verdict.NO_CREDITS)) == (50, 150)
    assert await balance(store, entry.key) == 0
    assert len(await store.active()) == 50


@in_event_loop
async def test_one_idempotency_key_sent_fifty_times_at_once_makes_one_task(store: Store) -> None:
    entry = await store.create_key(new_key(credits_=50_000))

    answers = await asyncio.gather(
        *[store.submit_many([submission(entry, idempotency_key="k", cost=1000)]) for _ in range(50)]
    )

    assert len({answer[0].record.id for answer in answers if answer[0].record}) == 1
    assert await balance(store, entry.key) == 49_000


@in_event_loop
async def test_nothing_asked_is_nothing_done(store: Store) -> None:
    assert await store.submit_many([]) == []
    assert await store.claim_many([]) == []
    assert await store.complete_many([]) == []
    assert await store.get_many([]) == []
    assert await store.active() == []


@in_event_loop
async def test_credits_are_granted_by_the_accounts_name_and_add_up(store: Store) -> None:
    entry = await store.create_key(new_key(account="alice", credits_=10_000))
    await store.create_key(new_key(account="rich", credits_=None))
    await store.submit_many([submission(entry, cost=2500)])
    granted = await store.grant(Grant(account="alice", amount=500, now=NOW))
    assert granted is not None
    assert (granted.name, granted.balance, granted.granted, granted.spent) == ("alice", 8000, 10_500, 2500)
    assert await store.balance(entry.key.account_id) == 8000
    assert await store.grant(Grant(account="nobody", amount=500, now=NOW)) is None
    rich = await store.grant(Grant(account="rich", amount=500, now=NOW))
    assert rich is not None
    assert (rich.balance, rich.granted) == (None, 0)
    assert await store.balance(rich.id) is None
    assert {account.name: account.balance for account in await store.accounts()} == {"alice": 8000, "rich": None}
    assert await store.fsck() == []
