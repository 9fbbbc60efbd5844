"""Money: credits, rates and the ledger, by themselves and as the store keeps them against a small model."""

from __future__ import annotations

import asyncio
import string
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from builders import NOW, claim_request, completion, failure, loss, new_key, submission
from fluxserve.accounts import api_keys
from fluxserve.accounts.credits import parse_credits, settled, to_credits
from fluxserve.accounts.limits import Bucket, take
from fluxserve.errors import ConfigurationError
from fluxserve.store.base import Cancellation, TaskRecord, Verdict
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import MAX_ATTEMPTS

STEPS_PER_RUN = 40
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


@given(st.integers(1, 2**53 - 1))
def test_any_amount_of_thousandths_is_read_exactly(amount: int) -> None:
    assert parse_credits(f"{amount // 1000}.{amount % 1000:03}") == amount


@pytest.mark.parametrize(
    ("text", "amount"), [("12.5", 12_500), ("1", 1000), (" 2 ", 2000), ("0.001", 1), ("1e2", 100_000)]
)
def test_credits_are_read_as_people_write_them(text: str, amount: int) -> None:
    assert parse_credits(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "0.0004", "1.0005", "many", "NaN", "-Infinity", "Infinity", "1e16", "9e999999", "1e-999999", "1,5"],
)
def test_what_is_no_positive_amount_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a positive number of credits"):
        parse_credits(text)


@given(st.text(max_size=30) | st.from_regex(r"[-+]?[0-9]{0,40}\.?[0-9]{0,40}([eE][-+]?[0-9]{1,7})?", fullmatch=True))
@example("9e999999")
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        amount = parse_credits(text)
    except ConfigurationError:
        return
    assert 0 < amount < 2**53
    assert parse_credits(f"{to_credits(amount):.3f}") == amount


@given(st.integers(0, 10**9), st.integers(-(10**9), 2 * 10**9))
def test_a_settlement_gives_back_what_was_not_used_and_never_takes_more(reserved: int, used: int) -> None:
    assert 0 <= settled(reserved, used) <= reserved
    if 0 <= used <= reserved:
        assert settled(reserved, used) == reserved - used


Moments = st.lists(st.floats(0, 30), max_size=200)


@given(rate=st.integers(1, 600), pauses=Moments)
def test_no_window_ever_holds_more_than_a_burst_and_its_share(rate: int, pauses: list[float]) -> None:
    bucket, now, granted = None, NOW, []
    for pause in pauses:
        now += pause
        bucket, wait = take(bucket, rate_per_minute=rate, now=now)
        granted += [] if wait else [now]
    for first, begin in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= rate + (granted[last] - begin) * rate / 60 + 1e-6


@given(rate=st.integers(1, 600), jumps=st.lists(st.floats(-3600, 3600), max_size=100))
def test_a_clock_that_goes_back_gives_no_tokens_and_takes_none(rate: int, jumps: list[float]) -> None:
    bucket, now, granted = Bucket(0.0, NOW), NOW, 0
    for jump in jumps:
        now += jump
        before = bucket.tokens
        bucket, wait = take(bucket, rate_per_minute=rate, now=now)
        granted += not wait
        if jump <= 0:
            assert bucket.tokens == pytest.approx(before if wait else before - 1)
        assert 0 <= bucket.tokens <= rate
    assert granted <= sum(jump for jump in jumps if jump > 0) * rate / 60 + 1e-6


@given(rate=st.integers(1, 6000), tokens=st.floats(0, 1, exclude_max=True))
def test_whoever_waits_as_told_is_served(rate: int, tokens: float) -> None:
    bucket, wait = take(Bucket(tokens, NOW), rate_per_minute=rate, now=NOW)
    assert 0 < wait <= 60 / rate + 1e-9
    assert take(bucket, rate_per_minute=rate, now=NOW + wait + 1e-6)[1] == 0


@given(rate=st.integers(1, 100))
def test_a_new_key_may_spend_a_minutes_rate_at_once(rate: int) -> None:
    bucket, waits = None, []
    for _ in range(rate + 1):
        bucket, wait = take(bucket, rate_per_minute=rate, now=NOW)
        waits.append(wait)
    assert [wait == 0 for wait in waits] == [True] * rate + [False]


def test_keys_are_long_distinct_and_carry_the_checksum_that_scanners_look_for() -> None:
    keys = {api_keys.new_key() for _ in range(200)}
    assert len(keys) == 200
    for key in keys:
        assert len(key) == len("fx_live_") + 43 + 1 + 6
        body, checksum = key.removeprefix("fx_live_")[:43], key[-6:]
        number = 0
        for character in checksum:
            number = number * 62 + DIGITS.index(character)
        assert number == zlib.crc32(body.encode())


@given(st.text(), st.text(), st.binary(min_size=1, max_size=32))
def test_a_digest_depends_on_all_of_the_key_and_on_the_pepper(one: str, other: str, pepper: bytes) -> None:
    digest = api_keys.digest(one, pepper)
    assert len(digest) == 32
    assert (digest == api_keys.digest(other, pepper)) == (one == other)
    assert digest != api_keys.digest(one, pepper + b"!")


@dataclass(frozen=True)
class Wish:
    """One submission to try: which key, its price, its idempotency key and request, its limit."""

    who: int
    cost: int
    idempotency_key: str | None
    request_hash: bytes
    max_active: int | None


@dataclass
class Paid:
    """A task as its account sees it."""

    id: str
    wish: Wish
    account: str
    fence: int = 0
    spoiled: int = 0
    state: str = "queued"


WISHES = st.builds(
    Wish,
    who=st.integers(0, 3),
    cost=st.sampled_from([0, 1, 700, 1000, 2500]),
    idempotency_key=st.sampled_from([None, None, "k1", "k2"]),
    request_hash=st.sampled_from([b"one", b"two"]),
    max_active=st.sampled_from([None, None, 1, 3]),
)


class Ledger(RuleBasedStateMachine):
    """Submits with and without credits, retries, limits, every outcome also late and twice, grants, retention."""

    claims = Bundle("claims")
    accounts = ("poor", "poor", "middling", "unlimited")  # of each key

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.path = Path(self.folder.name) / "fluxserve.db"
        self.store = SqliteStore(self.path)
        self.balances: dict[str, int | None] = {"poor": 1500, "middling": 6000, "unlimited": None}
        grants = (1000, 500, 6000, None)
        values = [new_key(account=name, credits_=grant) for name, grant in zip(self.accounts, grants, strict=True)]
        self.keys = [self.run(self.store.create_key(value)) for value in values]
        self.tasks: list[Paid] = []
        self.ids = 0

    def teardown(self) -> None:
        """Close."""
        self.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    def move(self, account: str, amount: int) -> None:
        """What the model thinks of a balance."""
        balance = self.balances[account]
        if balance is not None:
            self.balances[account] = balance + amount

    def expected(self, wish: Wish, task_id: str) -> tuple[Verdict, str | None]:
        """What should become of a wish, and the task it should answer."""
        account = self.accounts[wish.who]
        for task in self.tasks:
            if wish.idempotency_key is not None and (account, wish.idempotency_key) == (
                task.account,
                task.wish.idempotency_key,
            ):
                same = task.wish.request_hash == wish.request_hash
                return (Verdict.REPLAYED, task.id) if same else (Verdict.CONFLICT, None)
        active = sum(task.wish.who == wish.who and task.state in ("queued", "running") for task in self.tasks)
        if wish.max_active is not None and active >= wish.max_active:
            return Verdict.TOO_MANY_ACTIVE, None
        balance = self.balances[account]
        if balance is not None and balance < wish.cost:
            return Verdict.NO_CREDITS, None
        self.move(account, -wish.cost)
        self.tasks.append(Paid(task_id, wish, account))
        return Verdict.ACCEPTED, task_id

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=6), together=st.booleans())
    def submit(self, wishes: list[Wish], together: bool) -> None:
        """Some submissions, in one batch or in calls that wait together."""
        values = []
        for wish in wishes:
            self.ids += 1
            values.append(
                submission(
                    self.keys[wish.who],
                    task_id=f"t{self.ids}",
                    cost=wish.cost,
                    idempotency_key=wish.idempotency_key,
                    request_hash=wish.request_hash,
                    max_active=wish.max_active,
                )
            )

        async def one_by_one() -> list[list[object]]:
            return await asyncio.gather(*[self.store.submit_many([value]) for value in values])

        answers = (
            self.run(self.store.submit_many(values)) if together else [answer[0] for answer in self.run(one_by_one())]
        )
        assert [(answer.verdict, answer.record.id if answer.record else None) for answer in answers] == [
            self.expected(wish, value.id) for wish, value in zip(wishes, values, strict=True)
        ]

    @rule(target=claims, limit=st.integers(1, 4))
    def claim(self, limit: int) -> object:
        """A new worker takes some."""
        (records,) = self.run(self.store.claim_many([claim_request(f"w{self.ids}", limit=limit)]))
        self.ids += 1
        for record in records:
            task = next(task for task in self.tasks if task.id == record.id)
            task.state, task.fence = "running", record.fence
        return multiple(*records)

    def holding(self, claim: TaskRecord) -> Paid | None:
        """The task, if the claim still holds."""
        task = next((task for task in self.tasks if task.id == claim.id), None)
        return task if task is not None and task.state == "running" and task.fence == claim.fence else None

    @rule(claim=claims, used=st.none() | st.integers(-1, 3000), times=st.integers(1, 2))
    def complete(self, claim: TaskRecord, used: int | None, times: int) -> None:
        """Settle, perhaps twice."""
        answers = self.run(self.store.complete_many([completion(claim, used=used)] * times))
        task = self.holding(claim)
        assert [answer is not None for answer in answers] == [task is not None, False][:times]
        if task is not None:
            cost = task.wish.cost
            self.move(task.account, cost - min(max(cost if used is None else used, 0), cost))
            task.state = "ready"

    @rule(claim=claims, times=st.integers(1, 2))
    def fail(self, claim: TaskRecord, times: int) -> None:
        """Refund, perhaps twice."""
        answers = self.run(self.store.fail_many([failure(claim)] * times))
        task = self.holding(claim)
        assert [answer is not None for answer in answers] == [task is not None, False][:times]
        if task is not None:
            self.move(task.account, task.wish.cost)
            task.state = "error"

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), times=st.integers(1, 2))
    def cancel(self, data: st.DataObject, times: int) -> None:
        """Cancelled by its account, perhaps twice."""
        task = data.draw(st.sampled_from(self.tasks))
        account_id = self.keys[task.wish.who].key.account_id
        wish = Cancellation(task_id=task.id, account_id=account_id, drawn=0.0, now=NOW)
        answers = self.run(self.store.cancel_many([wish] * times))
        ends = task.state in ("queued", "running")
        assert [answer is not None for answer in answers] == [ends, False][:times]
        if ends:
            self.move(task.account, task.wish.cost)
            task.state = "cancelled"

    @rule(claim=claims)
    def lose(self, claim: TaskRecord) -> None:
        """Lost through the task's own fault, up to the last attempt."""
        (answer,) = self.run(self.store.release_many([loss(claim)]))
        task = self.holding(claim)
        assert (answer is not None) == (task is not None)
        if task is not None:
            task.spoiled += 1
            task.state = "queued"
            if task.spoiled == MAX_ATTEMPTS:
                self.move(task.account, task.wish.cost)
                task.state = "error"

    @rule(account=st.sampled_from(sorted(set(accounts))), amount=st.integers(1, 3000))
    def grant(self, account: str, amount: int) -> None:
        """Another key with credits for the account."""
        self.run(self.store.create_key(new_key(account=account, credits_=amount)))
        self.move(account, amount)

    @rule(limit=st.integers(1, 5))
    def forget(self, limit: int) -> None:
        """Finished tasks are deleted; their ledger and the balances stay."""
        ended = [task for task in self.tasks if task.state in ("ready", "error", "cancelled")]
        deleted = self.run(self.store.delete_old(NOW + 1, limit))
        assert deleted == min(limit, len(ended))
        left = self.run(self.store.get_many([task.id for task in ended]))
        gone = {task.id for task, record in zip(ended, left, strict=True) if record is None}
        assert len(gone) == deleted
        self.tasks = [task for task in self.tasks if task.id not in gone]

    @rule()
    def restart(self) -> None:
        """The server stops and starts again."""
        self.run(self.store.close())
        self.store = SqliteStore(self.path)

    @invariant()
    def the_books_are_what_the_model_says(self) -> None:
        """Balances, states, and every invariant of fsck."""
        entries = self.run(self.store.keys())
        assert {entry.account_name: entry.balance for entry in entries} == self.balances
        records = self.run(self.store.get_many([task.id for task in self.tasks]))
        assert [record.state if record else None for record in records] == [task.state for task in self.tasks]
        assert self.run(self.store.fsck()) == []


def test_the_store_keeps_the_ledger_as_the_model_does(long: bool) -> None:
    run_state_machine_as_test(
        Ledger, settings=settings(max_examples=2000 if long else 30, stateful_step_count=STEPS_PER_RUN)
    )
