"""Values for tests of the durable core: keys, submissions, outcomes. Every argument has an unremarkable default."""

from __future__ import annotations

import asyncio
import functools
import math
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Literal, ParamSpec

from fluxserve.catalogue import Generation, Size
from fluxserve.store.base import (
    QUARANTINE,
    Cancellation,
    ClaimRequest,
    Completion,
    Drawn,
    Failure,
    Kept,
    KeptWaypoint,
    KeyEntry,
    Loss,
    NewKey,
    NewWaypoint,
    Reason,
    Refused,
    Store,
    TaskRecord,
)
from fluxserve.store.submissions import KeptInput, Preparation, Prepared, Refusal, Submission
from fluxserve.tasks.task import State

P = ParamSpec("P")
NOW = 1_000_000.0
LEASE_S = 30.0
PATIENCE_S = 60.0
SQUARE = Size(512, 512)
EVERY_MODEL = ("flux-pro-1.1", "flux-pro", "flux-dev", "flux-schnell", "flux-pro-1.1-ultra")
#: The scores of a picture that nobody minds.
HARMLESS = {"sexual": 0.01}
DRAWN = Drawn(drawn_by="fake", duration=0.25, facts={"steps": 28, "checkpoint": None}, scores=HARMLESS)
QUARANTINED = Reason(code=QUARANTINE, message="It ended what draws it.")
REASON = Reason(code="DrawingFailed", message="The engine could not draw this task.")


def in_event_loop(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Lets a test be written with await: each call runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def generation(
    *, model: str = "flux-dev", size: Size = SQUARE, prompt: str = "a red apple", seed: int = 7
) -> Generation:
    """What to draw."""
    return Generation(
        model=model, prompt=prompt, size=size, seed=seed, steps=28, guidance=3.5, output_format="jpeg"
    )  # fmt: skip


def new_key(
    *,
    name: str = "a key",
    account: str = "alice",
    credits_: int | None = None,
    max_active: int | None = None,
    max_work: float | None = None,
    weight: float = 1.0,
    now: float = NOW,
) -> NewKey:
    """A key to create; `credits_` (thousandths) None: an unlimited account."""
    key_id = uuid.uuid4().hex
    return NewKey(
        id=key_id,
        digest=key_id.encode(),
        name=name,
        account=account,
        unlimited=credits_ is None,
        grant=credits_ or 0,
        max_active=max_active,
        max_work=max_work,
        rate_per_minute=None,
        weight=weight,
        now=now,
    )


def submission(
    entry: KeyEntry,
    *,
    task_id: str | None = None,
    drawing: Generation | None = None,
    cost: int = 1000,
    work: float = 100.0,
    idempotency_key: str | None = None,
    request_hash: bytes = b"the same request",
    recipe: bytes | None = None,
    fingerprints: tuple[str, ...] = (),
    max_active: int | None = None,
    max_work: float | None = None,
    max_of_model: int | None = None,
    inputs: tuple[KeptInput, ...] = (),
    extras: Mapping[str, object] | None = None,
    webhook_url: str | None = None,
    preparation: Preparation | None = None,
    refusal: Refusal | None = None,
    now: float = NOW,
) -> Submission:
    """A request of `entry`'s key; with a `recipe` its seed was asked for."""
    return Submission(
        id=task_id or str(uuid.uuid4()),
        account_id=entry.key.account_id,
        key_id=entry.key.id,
        generation=drawing or generation(),
        inputs=inputs,
        preparation=preparation,
        refusal=refusal,
        extras=extras or {},
        warnings=("raw is not drawn yet",),
        dialect="bfl",
        origin="http://127.0.0.1:8808",
        webhook_url=webhook_url,
        sealed_secret=None if webhook_url is None else "sealed",
        idempotency_key=idempotency_key,
        request_hash=request_hash,
        recipe=recipe,
        repeatable=recipe is not None,
        fingerprints=fingerprints,
        cost=cost,
        work=work,
        weight=entry.key.weight,
        max_active=max_active,
        max_work=max_work,
        max_of_model=max_of_model,
        now=now,
    )


def preparation(*, repeatable: bool = False) -> Preparation:
    """A request whose picture is still to be fetched."""
    return Preparation(
        values={"prompt": "a red apple", "seed": 7}, urls={"image_prompt": "https://example.com/a.png?sig=hush"},
        ignored=(), repeatable=repeatable, weight=1.0,
    )  # fmt: skip


def prepared(
    task: TaskRecord,
    *,
    drawing: Generation | None = None,
    cost: int = 1000,
    work: float = 100.0,
    weight: float = 1.0,
    recipe: bytes | None = None,
    fingerprints: tuple[str, ...] = (),
    inputs: tuple[KeptInput, ...] = (),
    now: float = NOW,
) -> Prepared:
    """`task` has its pictures; with a `recipe` its seed was asked for."""
    return Prepared(
        id=task.id, key_id=task.key_id, generation=drawing or generation(), inputs=inputs, warnings=("prepared",),
        recipe=recipe, repeatable=recipe is not None, fingerprints=fingerprints, cost=cost, work=work, weight=weight,
        now=now,
    )  # fmt: skip


def claim_request(
    worker_id: str = "w1",
    *,
    models: tuple[str, ...] = EVERY_MODEL,
    limit: int = 1,
    now: float = NOW,
    fingerprint: str = "f1",
    before: float = math.inf,
) -> ClaimRequest:
    """A worker with room for `limit` tasks; the lease ends LEASE_S after `now`, and PATIENCE_S are waited for it."""
    return ClaimRequest(
        worker_id=worker_id, models=models, limit=limit, lease_until=now + LEASE_S, now=now,
        fingerprints=dict.fromkeys(models, fingerprint), strangers_since=now - PATIENCE_S,
        before=before,
    )  # fmt: skip


def new_waypoint(
    task: TaskRecord,
    *,
    step: int = 5,
    steps: int = 28,
    fingerprint: str = "f1",
    object_name: str = "",
    now: float = NOW,
) -> NewWaypoint:
    """`task` was written down after `step` steps, under the claim that the record shows."""
    waypoint = KeptWaypoint(
        task_id=task.id,
        object_name=object_name or f"{task.id}-{task.fence}-{step}.safetensors",
        fingerprint=fingerprint,
        step=step,
        steps=steps,
        size=1000,
    )
    return NewWaypoint(waypoint=waypoint, fence=task.fence, now=now)


def completion(
    task: TaskRecord,
    *,
    fence: int | None = None,
    used: int | None = None,
    object_name: str = "",
    kept: Kept | None = None,
    now: float = NOW,
) -> Completion:
    """`task` was drawn; `fence` None: under the claim that the record shows."""
    return Completion(
        task_id=task.id,
        fence=task.fence if fence is None else fence,
        object_name=object_name or f"{task.id}-{task.fence}.jpeg",
        drawn=DRAWN,
        used=used,
        kept=kept,
        now=now,
    )


def failure(task: TaskRecord, *, drawn: float = 0.0, now: float = NOW) -> Failure:
    """`task` failed under the claim that the record shows."""
    return Failure(task_id=task.id, fence=task.fence, reason=REASON, drawn=drawn, now=now)


def refused(
    task: TaskRecord,
    *,
    state: State = State.CONTENT_MODERATED,
    charged: bool = False,
    drawn: float = 1.0,
    now: float = NOW,
) -> Refused:
    """Moderation ends `task` under the claim that the record shows."""
    about: Literal["input_picture", "picture"] = "picture" if state is State.CONTENT_MODERATED else "input_picture"
    refusal = Refusal(categories=("sexual",), about=about, charged=charged)
    return Refused(task_id=task.id, fence=task.fence, state=state, refusal=refusal, drawn=drawn, now=now)


def cancellation(
    task: TaskRecord, *, account_id: str | None = None, drawn: float = 0.0, now: float = NOW
) -> Cancellation:
    """`task` is no longer wanted; `account_id` None: by the account that it is of."""
    return Cancellation(task_id=task.id, account_id=account_id or task.account_id, drawn=drawn, now=now)


def loss(task: TaskRecord, *, step: int = 0, suspected: bool = True, now: float = NOW) -> Loss:
    """The worker lost `task` at `step`."""
    return Loss(task_id=task.id, fence=task.fence, step=step, suspected=suspected, reason=REASON, now=now)


def quarantining(lost: Loss) -> Loss:
    """The same loss, with the reason that a quarantined task shows."""
    return replace(lost, reason=QUARANTINED)


async def submitted(store: Store, entry: KeyEntry, *, count: int = 1) -> list[TaskRecord]:
    """`count` accepted tasks of `entry`."""
    outcomes = await store.submit_many([submission(entry) for _ in range(count)])
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    assert len(records) == count
    return records


async def claimed(store: Store, worker_id: str = "w1", *, limit: int = 1, now: float = NOW) -> list[TaskRecord]:
    """What a worker gets."""
    return (await store.claim_many([claim_request(worker_id, limit=limit, now=now)]))[0]


async def claimed_one(store: Store, worker_id: str = "w1", *, now: float = NOW) -> TaskRecord:
    """The one task that a worker gets."""
    (record,) = await claimed(store, worker_id, now=now)
    return record
