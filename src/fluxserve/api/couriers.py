"""The server's side of couriers: errands out, reports in; webhooks, each attempt an errand; and pictures to fetch.

A courier that is gone or silent has lost its errands, and whoever asked for one is told so.
What it does not know: which addresses may be called.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from fluxserve.api.worker_outcomes import hold
from fluxserve.catalogue.params import MAX_FILE
from fluxserve.delivery.fetching import REDIRECTS, TIMEOUT_S, Fetched
from fluxserve.delivery.outbound import Answer, Call
from fluxserve.delivery.webhooks import LOST, UNSIGNED, Reply
from fluxserve.errors import OutboundFailed, SecretLost, Unavailable, WorkerProtocolError
from fluxserve.service.postbox import Waiting
from fluxserve.service.watches import Signal
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: An errand that is not back so long after its own deadline is lost.
GRACE_S = 10.0
RETRY_S = 1.0
REAP_INTERVAL_S = 0.5
#: What waits is looked at this often at the latest: the clock may be set.
LOOK_S = 1.0
#: The call that tells a task's webhook; None where there is nothing to tell.
Compose = Callable[[str], Awaitable[p.Errand | None]]


@dataclass(slots=True, eq=False)
class Carrier:
    """One connected courier, and who waits for its reports."""

    hello: p.CourierHello
    writer: asyncio.StreamWriter
    heard_at: float
    errands: dict[int, asyncio.Future[p.Report]] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Errands that it could take more."""
        return max(0, self.hello.capacity - len(self.errands))


class Couriers:
    """Every connected courier, and the webhooks that go out with them."""

    def __init__(
        self,
        webhooks: Webhooks,
        compose: Compose,
        *,
        settings: Settings,
        need: Callable[[], None],
        on_ready: Callable[[str], None],
        on_hung: Callable[[str], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`need()`: a courier is wanted. `on_ready(id)`: one is connected. `on_hung(id)`: it says nothing."""
        self._webhooks = webhooks
        self._compose = compose
        self._settings = settings
        self._need = need
        self._on_ready = on_ready
        self._on_hung = on_hung
        self._steady = steady
        self._carriers: dict[str, Carrier] = {}
        self._numbers = itertools.count(1)
        #: Fires when there may be room for an errand.
        self._changed = Signal()
        self._look = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._stopping = False

    def is_connected(self, courier_id: str) -> bool:
        """Whether the courier has a connection."""
        return courier_id in self._carriers

    async def serve(self, hello: p.CourierHello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak with a courier that was let in, until it is gone."""
        carrier = Carrier(hello, writer, self._steady())
        if (former := self._carriers.pop(hello.worker_id, None)) is not None:
            former.writer.transport.abort()
        self._carriers[hello.worker_id] = carrier
        self._send(carrier, p.Welcome(heartbeat=self._settings.heartbeat, lease=self._settings.lease, kept=()))
        if self._stopping:
            self._send(carrier, p.Drain())
        self._on_ready(hello.worker_id)
        self._changed.fire()
        logger.info("Courier ready", extra={"action": "courier_ready", "courier": hello.worker_id, "pid": hello.pid})
        try:
            while (message := await p.read_from_worker(reader)) is not None:
                carrier.heard_at = self._steady()
                self._receive(carrier, message)
        finally:
            self._lose(carrier)

    def _receive(self, carrier: Carrier, message: p.FromWorker) -> None:
        match message:
            case p.Report():
                future = carrier.errands.pop(message.number, None)
                if future is not None and not future.done():
                    future.set_result(message)
                self._changed.fire()
            case p.Heartbeat():
                pass
            case _:
                raise WorkerProtocolError("A message that no courier sends.")

    def _lose(self, carrier: Carrier) -> None:
        if self._carriers.get(carrier.hello.worker_id) is carrier:
            del self._carriers[carrier.hello.worker_id]
        logger.info(
            "Courier gone",
            extra={"action": "courier_gone", "courier": carrier.hello.worker_id, "held": len(carrier.errands)},
        )
        for number, future in carrier.errands.items():
            if not future.done():
                future.set_result(p.Report(number=number, problem=LOST))
        carrier.errands.clear()

    async def run(self, errand: p.Errand) -> p.Report:
        """Have an errand run. A report whose problem is LOST comes where no courier is there, or it ended over it."""
        carrier = max(self._carriers.values(), key=lambda one: one.room, default=None)
        number = next(self._numbers)
        if carrier is None or not carrier.room:
            return p.Report(number=number, problem=LOST)
        future: asyncio.Future[p.Report] = asyncio.get_running_loop().create_future()
        carrier.errands[number] = future
        self._send(carrier, p.Errands(errands=(msgspec.structs.replace(errand, number=number),)))
        try:
            async with asyncio.timeout(errand.timeout + GRACE_S):
                return await future
        except TimeoutError:
            return p.Report(number=number, problem=LOST)
        finally:
            carrier.errands.pop(number, None)

    async def _wait_for_room(self) -> None:
        """Until a courier could run an errand, or the server stops."""
        with self._changed.watching(changed := asyncio.Event()):
            while not self._stopping and not any(carrier.room for carrier in self._carriers.values()):
                changed.clear()
                await changed.wait()

    async def fetch(self, url: str) -> Fetched:
        """The file at a URL of a caller; a courier that could bring it is waited for, unless the server stops."""
        self._need()
        await self._wait_for_room()
        report = await self.run(
            p.Errand(
                number=0, method="GET", url=url, limit=MAX_FILE, timeout=TIMEOUT_S, whole=True, redirects=REDIRECTS
            )
        )
        return Fetched(status=report.status, body=report.body, problem=report.problem, retry_after=report.retry_after)

    @property
    def ready(self) -> int:
        """Couriers that are connected."""
        return len(self._carriers)

    async def ask(self, call: Call) -> Answer:
        """One call to an address of the operator's; a courier is waited for as long as the call may take.

        Raises OutboundFailed.
        """
        self._need()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wait_for_room(), call.timeout)
        headers = tuple((name.decode(), value.decode()) for name, value in call.headers)
        report = await self.run(
            p.Errand(
                number=0, method=call.method, url=call.url, limit=call.limit, timeout=call.timeout, headers=headers,
                body=call.body, whole=call.whole, own=True,
            )
        )  # fmt: skip
        if report.status is None:
            raise OutboundFailed(report.problem or LOST, "The address brought no answer")
        return Answer(status=report.status, headers={}, body=report.body)

    # Webhooks

    async def post(self) -> None:
        """For ever: attempt what is due."""
        with self._webhooks.changed.watching(self._look), self._changed.watching(self._look):
            while True:
                self._look.clear()
                self.begin_due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self._webhooks.pause() or LOOK_S, LOOK_S)):
                        await self._look.wait()

    def begin_due(self) -> None:
        """Begin every attempt that is due and that there is room for."""
        if len(self._webhooks) and not self._stopping:
            self._need()
        while not self._stopping and any(carrier.room for carrier in self._carriers.values()):
            if (taken := self._webhooks.take()) is None:
                return
            hold(self._attempts, self._attempt(taken))

    async def _attempt(self, taken: Waiting) -> None:
        """1. make the call, 2. have it run, 3. write down what came of it, however long the store is in trouble."""
        try:
            errand = await self._again(lambda: self._compose(taken.task_id))
            if errand is None:
                self._webhooks.forget(taken.task_id)
                return
            report = await self.run(errand)
            if self._stopping and report.problem == LOST:
                return  # the next server makes the attempt again
            reply = Reply(status=report.status, problem=report.problem, retry_after=report.retry_after)
            await self._again(lambda: self._webhooks.settle(taken, reply))
        except SecretLost as error:
            logger.error(error.message, extra={"action": "secret_lost", "task": taken.task_id})  # noqa: TRY400 - no defect
            await self._again(lambda: self._webhooks.settle(taken, Reply(status=None, problem=UNSIGNED)))
        except Exception:  # what is under way for ever would never be delivered
            logger.exception("A webhook met a defect of fluxserve", extra={"task": taken.task_id})
            await self._again(lambda: self._webhooks.settle(taken, Reply(status=None, problem="defect")))

    @staticmethod
    async def _again(work: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await work()
            except Unavailable as error:
                logger.warning("A webhook waits", extra={"action": "webhook_waits", "reason": error.message})
                await asyncio.sleep(RETRY_S)

    async def reap(self) -> None:
        """For ever: cut off couriers that are silent for longer than a lease."""
        looked_at = self._steady()
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            now = self._steady()
            stood_still = max(0.0, now - looked_at - 2 * REAP_INTERVAL_S)
            looked_at = now
            for carrier in list(self._carriers.values()):
                carrier.heard_at += stood_still
                if now - carrier.heard_at > self._settings.lease:
                    logger.warning(
                        "A courier hangs", extra={"action": "courier_hung", "courier": carrier.hello.worker_id}
                    )
                    self._on_hung(carrier.hello.worker_id)
                    carrier.writer.transport.abort()

    def drain(self) -> None:
        """Nothing more is attempted; couriers finish what they can, and end."""
        self._stopping = True
        self._changed.fire()
        for carrier in self._carriers.values():
            self._send(carrier, p.Drain())

    async def settled(self, patience: float) -> bool:
        """Wait until no attempt is under way, at most `patience` seconds; whether there was any."""
        if begun := set(self._attempts):
            await asyncio.wait(begun, timeout=patience)
        return bool(begun)

    @staticmethod
    def _send(carrier: Carrier, message: p.FromServer) -> None:
        if not carrier.writer.is_closing():
            carrier.writer.write(p.to_frame(message))
