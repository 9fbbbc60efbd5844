"""Values of webhooks that are to be delivered, as the store takes and answers them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DeliveryState(StrEnum):
    """Where a webhook is on its way. One that is dead is tried again only if its account asks for it."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A webhook of an ended task: where to, how often it was tried, when it is due next, how the last attempt went.

    `status` is the HTTP status that was answered; `problem` is why there was none, as a word.
    """

    task_id: str
    account_id: str
    url: str
    state: DeliveryState
    attempts: int
    created_at: float
    due_at: float | None
    tried_at: float | None
    status: int | None
    problem: str | None
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """How an attempt to deliver went, and what comes of it: `due_at` is there while it waits."""

    task_id: str
    state: DeliveryState
    due_at: float | None
    status: int | None
    problem: str | None
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A delivery that its account wants anew, whatever became of it."""

    task_id: str
    account_id: str
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPageRequest:
    """Up to `limit` of an account's deliveries in these states, newest first; `before`: where an earlier page ended."""

    account_id: str
    states: tuple[DeliveryState, ...]
    limit: int
    before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPage:
    """Deliveries, newest first; `end` is where the next page begins, and None on the last one."""

    deliveries: tuple[Delivery, ...]
    end: int | None
