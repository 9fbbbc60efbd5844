"""The store seam: values in, outcomes out.

Every `*_many` takes elements that are each atomic alone; calls that wait together are committed together, and a
failed commit fails them all. Methods return only after the commit. They raise DiskFull, StoreUnavailable or
DatabaseDamaged when nothing was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import Generation
from fluxserve.errors import Fact
from fluxserve.store.deliveries import Attempted, Delivery, DeliveryPage, DeliveryPageRequest, Replay
from fluxserve.store.submissions import KeptInput, Preparation, Prepared, Refusal, Submission
from fluxserve.tasks.task import Attempts, State

#: The fact that tells a task whose picture was drawn for an equal one.
CACHED = "cached"
#: The code of the reason why a quarantined task ended.
QUARANTINE = "Quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a finished task answers beside its picture. `duration` is seconds of drawing.

    `warnings` follow from what drew it, and add to those of the request. `scores` are what it was judged by, which
    nobody is told; None: it was not.
    """

    drawn_by: str
    duration: float
    facts: Mapping[str, Fact] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a task failed: the class of the error and a sentence for the caller."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A task as written down. Times are seconds since the epoch, `cost` thousandths of a credit.

    `recipe` is equal for equal requests of an account; a `repeatable` one may lead or follow equal tasks. `followers`
    is not written down: those that the change behind this record has answered or promoted; nor is `moved`: the new
    turns of waiting tasks that it moved up, by their ids. `turn` says when it is drawn, lowest first, and `work` how
    much that is, in predicted TFLOP.
    """

    id: str
    account_id: str
    key_id: str
    state: State
    generation: Generation
    warnings: tuple[str, ...]
    dialect: str
    origin: str
    webhook_url: str | None
    cost: int
    turn: float
    work: float
    fence: int
    attempts: Attempts
    worker_id: str | None
    recipe: bytes | None
    repeatable: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    object_name: str | None
    drawn: Drawn | None
    reason: Reason | None
    refusal: Refusal | None
    followers: tuple[TaskRecord, ...] = field(default=(), compare=False)
    moved: tuple[tuple[str, float], ...] = field(default=(), compare=False)

    @property
    def is_answered(self) -> bool:
        """Its picture was drawn for an equal task."""
        return self.drawn is not None and CACHED in self.drawn.facts

    @property
    def drawn_before(self) -> float:
        """How far workers got that lost it, from 0 to 1."""
        return min(1.0, self.attempts.best_step / self.generation.steps)

    @property
    def log_context(self) -> dict[str, str]:
        """For the log: names, never prompts."""
        return {"task": self.id, "model": self.generation.model, "account": self.account_id}


class Verdict(StrEnum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    CONFLICT = "conflict"
    NO_CREDITS = "no_credits"
    TOO_MANY_ACTIVE = "too_many_active"
    TOO_MANY_OF_MODEL = "too_many_of_model"
    TOO_MUCH_WORK = "too_much_work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """The verdict; `record` is the new or the earlier task, and None where nothing was accepted.

    `in_use`: of what there was too much, how much the key's unfinished tasks are: their number, or TFLOP.
    """

    verdict: Verdict
    record: TaskRecord | None
    in_use: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """Up to `limit` compatible tasks of these models for one worker, leased until `lease_until`.

    A task with a waypoint goes to a worker that draws its model under the waypoint's fingerprint (`fingerprints`), or,
    if none took it since `strangers_since`, to any. All have a turn lower than `before`.
    """

    worker_id: str
    models: tuple[str, ...]
    limit: int
    lease_until: float
    now: float
    fingerprints: Mapping[str, str]
    strangers_since: float
    before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A picture of `size` bytes that may answer equal requests; all such pictures together stay within `budget`."""

    fingerprint: str
    size: int
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """From now on workers of these fingerprints draw the model."""

    model: str
    fingerprints: tuple[str, ...]
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A drawn task whose picture is already safe under `object_name`. `used` is what it cost; None: its price.

    `kept` None: its picture answers nobody but those that follow it.
    """

    task_id: str
    fence: int
    object_name: str
    drawn: Drawn
    used: int | None
    kept: Kept | None
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A task that ends in error. `fence` None: whoever holds it (a queued task, or the server's decision).

    Its key gets back what was not drawn: `drawn` is the share that was, from 0 to 1.
    """

    task_id: str
    fence: int | None
    reason: Reason
    drawn: float
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A task that moderation ends in `state`, with those that follow it: their picture would be the same.

    Its key gets back what was not drawn: `drawn` is the share that was, from 0 to 1.
    """

    task_id: str
    fence: int
    state: State
    refusal: Refusal
    drawn: float
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """A task that its account no longer wants. `drawn` is the share of it that is drawn, from 0 to 1."""

    task_id: str
    account_id: str
    drawn: float
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A claim that ended without an outcome. `suspected`: the task itself may be the cause.

    `reason` is written down if this was the task's last attempt: then it is quarantined.
    """

    task_id: str
    fence: int
    step: int
    suspected: bool
    reason: Reason
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWaypoint:
    """Where a task's drawing was last written down: after `step` of `steps`, in `size` bytes under `object_name`."""

    task_id: str
    object_name: str
    fingerprint: str
    step: int
    steps: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWaypoint:
    """A waypoint that is already safe under its name, written under the claim of `fence`."""

    waypoint: KeptWaypoint
    fence: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A worker still holds these tasks."""

    worker_id: str
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to write down. `account` names an account, made when it does not exist; `grant` adds credits.

    `unlimited` is the kind of a new account: without it the balance starts at 0. `max_work`: TFLOP. `weight` is the
    key's share of the drawing, beside that of others.
    """

    id: str
    digest: bytes
    name: str
    account: str
    unlimited: bool
    grant: int
    max_active: int | None
    max_work: float | None
    rate_per_minute: int | None
    weight: float
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A key with its digest, for the table that requests are checked against."""

    key: ApiKey
    digest: bytes
    account_name: str
    balance: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account's credits, in thousandths: what it was granted, and what its tasks took or hold reserved.

    `balance` is what is left; None: the account is unlimited.
    """

    id: str
    name: str
    balance: int | None
    granted: int
    spent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Credits, in thousandths, for the account of that name."""

    account: str
    amount: int
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A stored picture that is past its retention."""

    task_id: str
    object_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Up to `limit` of an account's tasks in these states, newest first; `before`: where an earlier page ended."""

    account_id: str
    states: tuple[State, ...]
    limit: int
    before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Tasks, newest first; `end` is where the next page begins, and None on the last one."""

    records: tuple[TaskRecord, ...]
    end: int | None


class Store(Protocol):
    """Tasks, ledger, keys and outbox, durable."""

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Submitted]:
        """Accept each: task, reservation and idempotency key in one transaction.

        The record of a request that was answered at once is ready.
        """

    async def prepare_many(self, prepared: Sequence[Prepared]) -> list[TaskRecord | None]:
        """Each takes its place as a submission does, and what it does not cost is given back.

        None where the task is not being prepared any more.
        """

    async def preparations(self, task_ids: Sequence[str]) -> list[Preparation | None]:
        """What each task is prepared from; None where it is not being prepared."""

    async def answer_many(self, offers: Sequence[Offer]) -> list[list[TaskRecord]]:
        """Answer what waits with pictures that were drawn before; those that are ready now."""

    async def claim_many(self, requests: Sequence[ClaimRequest]) -> list[list[TaskRecord]]:
        """Give each worker the next tasks in turn that can be drawn together."""

    async def complete_many(self, completions: Sequence[Completion]) -> list[TaskRecord | None]:
        """Ready, settled and in the outbox, and its followers too; None where the fence no longer holds."""

    async def fail_many(self, failures: Sequence[Failure]) -> list[TaskRecord | None]:
        """Error, refunded and in the outbox; None where the task is no longer this claim's.

        Here and wherever a task ends without a picture, its first follower takes its place.
        """

    async def refuse_many(self, refused: Sequence[Refused]) -> list[TaskRecord | None]:
        """Moderated, refunded or charged, in the outbox, with all followers; None for a stale fence."""

    async def cancel_many(self, cancellations: Sequence[Cancellation]) -> list[TaskRecord | None]:
        """Cancelled, refunded and in the outbox; None where it is not the account's, or has ended already.

        The follower that takes its place takes its waypoint too.
        """

    async def release_many(self, losses: Sequence[Loss]) -> list[TaskRecord | None]:
        """Back in the queue; None for a stale fence.

        A task that has spoiled its last attempt ends in error, and so do those that follow it: they would end their
        engines just the same.
        """

    async def keep_waypoints(self, waypoints: Sequence[NewWaypoint]) -> list[bool]:
        """Each takes the place of its task's last one; False where the claim was lost. The end of a task ends it."""

    async def drop_waypoints(self, waypoints: Sequence[KeptWaypoint]) -> list[bool]:
        """Their tasks start over when they are claimed again; False where another one is kept by now."""

    async def waypoints(self) -> list[KeptWaypoint]:
        """Every waypoint, the oldest first."""

    async def inputs(self) -> list[KeptInput]:
        """The input pictures of every unfinished task."""

    async def extend_many(self, leases: Sequence[Lease]) -> list[int]:
        """Prolong the leases of each worker; how many tasks it holds."""

    async def lapsed(self, now: float) -> list[TaskRecord]:
        """Running tasks whose lease has ended."""

    async def get_many(self, ids: Sequence[str]) -> list[TaskRecord | None]:
        """Each task, or None."""

    async def get_own(self, task_id: str, account_id: str) -> TaskRecord | None:
        """The account's task; another account's is not there, and costs as much as one that nobody has."""

    async def quarantined(self) -> list[TaskRecord]:
        """Tasks that ended because they ended their engines, newest first."""

    async def active(self) -> list[TaskRecord]:
        """Every task that is not final, in turn."""

    async def page(self, request: PageRequest) -> Page:
        """An account's own tasks."""

    async def waiting_deliveries(self) -> list[Delivery]:
        """Every webhook that waits, in the order they are due."""

    async def sealed_secrets(self, task_ids: Sequence[str]) -> list[str | None]:
        """What signs each task's webhook, sealed; None where there is no such secret or task."""

    async def record_attempts(self, attempts: Sequence[Attempted]) -> list[Delivery | None]:
        """Write down how attempts went; None where the delivery no longer waits."""

    async def replay_many(self, replays: Sequence[Replay]) -> list[Delivery | None]:
        """Deliver anew, from the first attempt on; None where the account has no such delivery."""

    async def deliveries(self, request: DeliveryPageRequest) -> DeliveryPage:
        """An account's own deliveries."""

    async def create_key(self, key: NewKey) -> KeyEntry:
        """Write a key down."""

    async def revoke_key(self, key_id: str, now: float) -> KeyEntry | None:
        """Revoke a key; None when there is none of that id."""

    async def keys(self) -> list[KeyEntry]:
        """Every key, revoked ones too."""

    async def grant(self, grant: Grant) -> Account | None:
        """Add credits; None when there is no such account. An unlimited one stays as it is."""

    async def accounts(self) -> list[Account]:
        """Every account."""

    async def balance(self, account_id: str) -> int | None:
        """What is left of the account's credits; None: it is unlimited."""

    async def old_pictures(self, finished_before: float, limit: int) -> list[Picture]:
        """Pictures of tasks that ended before then, and whose webhooks, where they have any, did too."""

    async def forget_pictures(self, pictures: Sequence[Picture]) -> list[bool]:
        """The tasks no longer hold their pictures. True where no task does any more: that one is to be deleted."""

    async def known_objects(self, names: Sequence[str]) -> set[str]:
        """Those of `names` that a task refers to."""

    async def cached_objects(self) -> list[str]:
        """The pictures that equal requests are answered with."""

    async def forget_cached(self, names: Sequence[str]) -> list[bool]:
        """Answer no request with these pictures any more; whether it would have been."""

    async def delete_old(self, finished_before: float, limit: int) -> int:
        """Delete tasks that ended before then, with their webhooks; the ledger stays. Returns how many.

        One whose webhook did not end before then stays with it.
        """

    async def fsck(self) -> list[str]:
        """Violations of the invariants, as sentences; none: the books are in order."""

    async def backup(self, target: Path) -> None:
        """Write a consistent copy while running."""

    async def close(self) -> None:
        """Finish what waits and close."""
