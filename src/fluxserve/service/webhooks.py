"""Webhooks on the server: what is due, what became of it, and what their account may see and ask for.

Rows of the store decide, and what waits is in memory too (`postbox`). An attempt is counted once it is over, so one
that a crash cuts short is made again: at least once.
What it does not know: sockets, and how a body looks.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.outbound import fault_of, target_of
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.webhooks import Reply, next_due
from fluxserve.errors import FieldRefused, SecretLost, UrlRefused
from fluxserve.service.postbox import Postbox, Waiting
from fluxserve.service.watches import Signal
from fluxserve.store.base import Store, TaskRecord
from fluxserve.store.deliveries import Attempted, Delivery, DeliveryPage, DeliveryPageRequest, DeliveryState, Replay

logger = logging.getLogger(__name__)
#: Most attempts under way at once.
ROOM = 1024


class Webhooks:
    """Every webhook that waits. Used from the event loop only."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        allowance: Allowance,
        now: Callable[[], float],
        rng: random.Random,
        room: int = ROOM,
    ) -> None:
        #: Fires when something waits that did not before, or there may be room for it.
        self.changed = Signal()
        self._store = store
        self._sealer = sealer
        self._allowance = allowance
        self._now = now
        self._rng = rng
        self._room = room
        self._box = Postbox(room)

    async def load(self) -> None:
        """Know what an earlier server left."""
        self._box = Postbox(self._room)
        for delivery in await self._store.waiting_deliveries():
            self._put(delivery)

    def check(self, url: str | None) -> None:
        """Refuse a URL that could never be called; raises FieldRefused."""
        if url is not None and (reason := fault_of(url, self._allowance, secure=True)) is not None:
            raise FieldRefused("webhook_url", "webhook_url", reason, url)

    def seal(self, secret: str | None, task_id: str) -> str | None:
        """A secret as it may be written down with its task."""
        return None if secret is None else self._sealer.seal(secret, task_id)

    def ended(self, record: TaskRecord) -> None:
        """Where the task has ended, its delivery is written down, if it has one: it waits from now on."""
        if record.webhook_url is not None and record.finished_at is not None:
            self._wait(record.id, record.account_id, record.webhook_url, record.finished_at, attempts=0)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._box)

    def take(self) -> Waiting | None:
        """What is to be tried now; its attempt is under way until it is settled or forgotten."""
        return self._box.take(self._now())

    def pause(self) -> float:
        """Seconds until something is due; 0 while that waits for room, or for news."""
        at = self._box.next_at()
        return 0.0 if at == math.inf else max(0.0, at - self._now())

    async def read(self, task_id: str) -> tuple[TaskRecord, str | None] | None:
        """The ended task and the secret that signs its webhook; None where there is nothing to tell any more.

        Raises SecretLost: nobody is told without the signature that was asked for.
        """
        (record,) = await self._store.get_many([task_id])
        if record is None or record.webhook_url is None or not record.state.is_final:
            return None
        (sealed,) = await self._store.sealed_secrets([task_id])
        secret = None if sealed is None else self._sealer.open(sealed, task_id)
        if sealed is not None and secret is None:
            raise SecretLost("A webhook's secret cannot be opened. Restore the secrets.json that it was sealed with.")
        return record, secret

    async def settle(self, tried: Waiting, reply: Reply) -> None:
        """The attempt is over: delivered, dead, or due again. Raises Unavailable, and then it is still under way."""
        now, task_id = self._now(), tried.task_id
        due_at = None if reply.is_good else next_due(tried.attempts + 1, reply, now, self._rng.random)
        state = DeliveryState.DELIVERED if reply.is_good else DeliveryState.DEAD
        attempted = Attempted(
            task_id=task_id, state=state if due_at is None else DeliveryState.WAITING, due_at=due_at,
            status=reply.status, problem=reply.problem, now=now,
        )  # fmt: skip
        (delivery,) = await self._store.record_attempts([attempted])
        self._box.done(task_id, good=reply.is_good if reply.is_telling else None, now=now)
        self.changed.fire()
        if delivery is not None:
            self._put(delivery)
            _log(delivery)

    def forget(self, task_id: str) -> None:
        """What was taken cannot be tried: there is no such task any more."""
        self._box.done(task_id, good=None, now=self._now())

    async def replay(self, task_id: str, account_id: str) -> Delivery | None:
        """Begin the account's delivery anew; None where it has no such one."""
        (delivery,) = await self._store.replay_many([Replay(task_id=task_id, account_id=account_id, now=self._now())])
        if delivery is not None:
            self._put(delivery)
            logger.info("Webhook replayed", extra={"action": "webhook_replayed", "task": task_id})
        return delivery

    async def page(self, request: DeliveryPageRequest) -> DeliveryPage:
        """An account's own deliveries."""
        return await self._store.deliveries(request)

    def _put(self, delivery: Delivery) -> None:
        if delivery.due_at is not None:
            self._wait(delivery.task_id, delivery.account_id, delivery.url, delivery.due_at, attempts=delivery.attempts)

    def _wait(self, task_id: str, account_id: str, url: str, due_at: float, *, attempts: int) -> None:
        waiting = Waiting(due_at=due_at, task_id=task_id, account_id=account_id, host=_host(url), attempts=attempts)
        self._box.put(waiting)
        self.changed.fire()


def _host(url: str) -> str:
    """Whom an attempt counts against."""
    try:
        return target_of(url).authority
    except UrlRefused:  # an operator allows less than before, or a file was restored
        return ""


def _log(delivery: Delivery) -> None:
    facts = {
        "action": f"webhook_{delivery.state}", "task": delivery.task_id, "account": delivery.account_id,
        "attempts": delivery.attempts, "status": delivery.status, "problem": delivery.problem,
    }  # fmt: skip
    match delivery.state:
        case DeliveryState.DELIVERED:
            logger.info("Webhook delivered", extra=facts)
        case DeliveryState.WAITING:
            logger.info("Webhook to be tried again", extra=facts)
        case DeliveryState.DEAD:
            logger.warning("Webhook given up", extra=facts)
