"""The server's side of the worker protocol: leases, dispatch, outcomes.

A worker that dies is seen at once: its socket closes, and its tasks go back in the queue. One that hangs loses its
lease. One that returns after the server died presents its fences and goes on.
What it does not know: who started a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fluxserve.api.worker_outcomes import Outcomes, hold
from fluxserve.api.worker_session import (
    Claim,
    Session,
    claims_of,
    losses_of,
    objection,
    portion,
    takes,
    unknown_to,
    without_swaps,
)
from fluxserve.api.writers import Writers
from fluxserve.errors import FluxserveError, InputDamaged, WorkerProtocolError
from fluxserve.service.forecast import Head
from fluxserve.service.service import Lost, Service
from fluxserve.store.base import TaskRecord
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import same_user

logger = logging.getLogger(__name__)
HELLO_TIMEOUT_S = 10.0
REAP_INTERVAL_S = 0.5
#: So long after it stood still, this process takes the deaths of its local workers for part of that.
WAKING_S = 5.0
#: A worker without tasks looks again this often, for a disk or a store that was in trouble.
LOOK_S = 1.0
#: Speaks with a courier until it is gone.
ServeCourier = Callable[[p.CourierHello, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Gateway:
    """Every connected worker, and what it holds."""

    def __init__(
        self,
        service: Service,
        *,
        token: str | None = None,
        is_alive: Callable[[str], bool],
        serve_courier: ServeCourier,
        on_ready: Callable[[str], None],
        on_hung: Callable[[str], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_alive(worker_id)`: a local worker's process lives; a remote one counts as alive until its lease ends.

        `on_ready(worker_id)`: it is connected and warm. `on_hung(worker_id)`: it lost its lease.
        """
        self._service = service
        self._token = token
        self._is_alive = is_alive
        self._serve_courier = serve_courier
        self._on_ready = on_ready
        self._on_hung = on_hung
        self._steady = steady
        self._sessions: dict[str, Session] = {}
        #: Claims of workers that are not connected but may come back.
        self._departed: dict[str, dict[str, Claim]] = {}
        self._dispatchers: set[asyncio.Task[None]] = set()
        #: Somebody left the head of the queue to another worker, and looks again when that one has it.
        self._held_back = False
        #: A head of the queue that was refused to the worker that it would have been for.
        self._nobodys: Head | None = None
        self._outcomes = Outcomes(service)
        self.writers = Writers()
        self._stopping = False
        #: When it last looked whether it has stood still, and until when it is still waking up.
        self._looked_at, self._waking_until = math.inf, -math.inf
        service.on_cancelled.append(self._discard)
        service.on_previews_wanted.append(self._ask_for_previews)

    @property
    def ready(self) -> int:
        """Workers that are warm and take tasks."""
        return sum(not session.draining for session in self._sessions.values())

    @property
    def left_out(self) -> list[str]:
        """What is wrong with weights that workers could not load, each said once."""
        return list(dict.fromkeys(line for session in self._sessions.values() for line in session.hello.left_out))

    def is_connected(self, worker_id: str) -> bool:
        """Whether the worker has a connection."""
        return worker_id in self._sessions

    async def adopt(self, running: list[TaskRecord]) -> None:
        """At start: tasks of workers that died with the last server go back; living ones get a lease to return."""
        gone: list[Lost] = []
        for worker_id in {record.worker_id for record in running if record.worker_id is not None}:
            claims = claims_of(record for record in running if record.worker_id == worker_id)
            if self._is_alive(worker_id):
                self._departed[worker_id] = claims
                await self._service.extend(worker_id)
            else:
                gone += losses_of(claims, suspected=False)
        await self._service.release(gone)

    async def serve_local(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection on the unix socket."""
        if not same_user(writer.get_extra_info("socket")):
            writer.close()
            return
        await self._serve(reader, writer, is_local=True)

    async def serve_remote(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection over TCP; the worker must know the token."""
        await self._serve(reader, writer, is_local=False)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_local: bool) -> None:
        session: Session | None = None
        try:
            session = await self._welcome(reader, writer, is_local=is_local)
            if session is None:
                return
            hold(self._dispatchers, self._dispatch_while_open(session))
            while (message := await p.read_from_worker(reader)) is not None:
                session.heard_at = self._steady()
                await self._receive(session, message)
        except FluxserveError as error:  # nonsense, or a store in trouble at the hello: the worker dials again
            logger.warning("A worker was cut off", extra={"action": "cut_off", "reason": error.message})
        except asyncio.CancelledError:
            pass  # the server is closing its connections
        finally:
            writer.close()
            if session is not None:
                self._lose(session)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_local: bool
    ) -> Session | None:
        with contextlib.suppress(OSError):  # it says nothing in time, or it is gone
            try:
                async with asyncio.timeout(HELLO_TIMEOUT_S):
                    hello = await p.read_from_worker(reader, limit=p.MAX_HELLO)
                reason = objection(
                    hello, is_local=is_local, token=self._token, moderates=self._service.moderation.is_on
                )
            except WorkerProtocolError:
                hello, reason = None, "The hello cannot be read: use equal versions of fluxserve."
            if reason is None and isinstance(hello, p.Hello):
                return await self._admit(hello, writer, is_local=is_local)
            if reason is None and isinstance(hello, p.CourierHello):
                await self._serve_courier(hello, reader, writer)
                return None
            logger.warning("A worker was refused", extra={"action": "refused", "reason": reason})
            writer.write(p.to_frame(p.Refused(reason=reason or "")))
            await writer.drain()
        return None

    async def _admit(self, hello: p.Hello, writer: asyncio.StreamWriter, *, is_local: bool) -> Session:
        draining = hello.orphan or self._stopping
        if not draining:  # what it has drawn counts, but nothing more is drawn by it
            await self._service.welcome(hello.worker_id, hello.fingerprints)
        await self._service.extend(hello.worker_id)
        kept = await self._service.held(hello.worker_id, [(held.task_id, held.fence) for held in hello.held])
        session = Session(hello=hello, writer=writer, is_local=is_local, heard_at=self._steady())
        session.claims = {task_id: replace(claim, has_arrived=True) for task_id, claim in claims_of(kept).items()}
        session.draining = session.told = draining
        session.wants(hello.want)
        session.swaps(hello.away)
        self._forget_former(session)
        self._sessions[session.id] = session
        session.send(
            p.Welcome(
                heartbeat=self._service.settings.heartbeat,
                lease=self._service.settings.lease,
                waypoint_interval=self._service.waypoint_interval,
                tells_prompts=self._service.settings.prompt_in_pictures,
                kept=tuple(p.Held(task_id=record.id, fence=record.fence) for record in kept),
            )
        )
        self._show(session, session.claims)
        self._service.forecast.swap(session.id, session.away)
        if session.draining:
            session.send(p.Drain())
        logger.info(
            "Worker ready",
            extra={
                "action": "worker_ready",
                "worker": session.id,
                "pid": hello.pid,
                "engine": hello.engine,
                "kept": len(kept),
            },
        )
        self._on_ready(session.id)
        self.writers.arrive(session)
        return session

    def _forget_former(self, session: Session) -> None:
        """What the worker held before and does not present now never reached it, or was given up: back in the queue."""
        former = self._departed.pop(session.id, {})
        if (stale := self._sessions.get(session.id)) is not None:
            # The worker dialled again before the old connection was seen to be dead. What it handed in over that
            # one stays there until it is written down, for the worker may not hand it in again.
            former = former | stale.claims
            stale.claims = {task_id: claim for task_id, claim in stale.claims.items() if claim.settling}
            stale.close()
            stale.writer.transport.abort()
        missing = {task_id: claim for task_id, claim in former.items() if task_id not in session.claims}
        self._outcomes.give_back(missing)

    async def _dispatch_while_open(self, session: Session) -> None:
        try:
            await self._keep_dispatching(session)
        except Exception:  # a live connection that nobody hands tasks to would look ready for ever
            logger.exception("A worker gets no tasks any more", extra={"action": "cut_off", "worker": session.id})
            session.writer.transport.abort()

    async def _keep_dispatching(self, session: Session) -> None:
        with self._service.queue_changed.watching(session.look):
            while not session.closed:
                woken = True
                try:
                    async with asyncio.timeout(LOOK_S):
                        await session.look.wait()
                except TimeoutError:
                    woken = False
                session.look.clear()
                await self._dispatch(session, woken=woken)

    async def _dispatch(self, session: Session, *, woken: bool) -> None:
        """Claim the session's share of what waits; for a full one, what comes before the tasks that it holds.

        What is next is known from memory: most that comes while every worker is full has to wait, and costs no claim.
        Who was not `woken` by news looks into the store all the same, for what nobody has shown.
        """
        others = [other for other in self._sessions.values() if other is not session]
        head = self._service.forecast.head(session.hello.models)
        before = max(session.first, session.reach)
        if head is None and woken:
            return
        if head is None or head == self._nobodys:
            await self._take_share(session, others)
        elif not takes(session, others, head):
            self._held_back |= session.is_open
        elif session.room or head.turn >= before:
            await self._take_share(session, others)
        elif not await self._claim(session, session.hello.models, 1, before=before):
            self._nobodys = head  # this worker cannot have it, so nobody is held back for its sake
            self._wake_all()

    async def _take_share(self, session: Session, others: Sequence[Session]) -> None:
        if session.is_open:
            if any(other.is_open and other.room > session.room for other in others):
                await asyncio.sleep(0)  # all were woken together: the emptier ones ask first
            models, count = portion(session, others, self._waiting)
            first = without_swaps(session, others, models)
            if first == models or not await self._claim(session, first, count, before=math.inf):
                await self._claim(session, models, count, before=math.inf)

    async def _claim(self, session: Session, models: tuple[str, ...], count: int, *, before: float) -> bool:
        """Claim up to `count` tasks for the session, of lower turns than `before`; whether there were any."""
        records: list[TaskRecord] = []
        if models:
            with contextlib.suppress(FluxserveError):  # the store is in trouble: the next look tries again
                records = await self._service.claim(session.id, models, count, session.hello.fingerprints, before)
        if session.closed:  # the connection was lost meanwhile
            self._outcomes.give_back(claims_of(records))
        elif records:
            await self._assign(session, records)
        return bool(records)

    @property
    def _waiting(self) -> int:
        """About how many tasks wait for a worker."""
        running = sum(len(session.claims) for session in self._sessions.values())
        views = self._service.views
        return len(views) - views.following - running - sum(map(len, self._departed.values()))

    def _wake_all(self) -> None:
        for session in self._sessions.values():
            session.look.set()

    async def _assign(self, session: Session, records: list[TaskRecord]) -> None:
        """The worker has them from now on; each that comes with a waypoint or pictures has a frame of its own."""
        session.claims |= claims_of(records)
        session.wanted = max(0, session.wanted - len(records))
        session.look.set()
        if self._held_back or not session.room:
            self._held_back = False
            self._wake_all()  # those that were held back from what this one could take
        laden = {one.id: one for one in records if one.generation.pictures or self._service.has_waypoint(one.id)}
        if light := [one for one in records if one.id not in laden]:
            self._send(session, p.Tasks(assignments=tuple(map(self._assignment, light))))
        for task_id in laden:
            session.claims[task_id].is_sent = False
        for record in laden.values():
            await self._send_laden(session, record)

    async def _send_laden(self, session: Session, record: TaskRecord) -> None:
        try:
            pictures = await self._service.read_inputs(record)
        except InputDamaged as error:
            code = type(error).__name__
            self._outcomes.hand_in(
                session, p.Failed(task_id=record.id, fence=record.fence, code=code, message=error.message)
            )
            return
        waypoint = await self._service.read_waypoint(record, session.hello.fingerprints)
        if (claim := session.claim_of(record.id, record.fence)) is not None:  # not cancelled meanwhile
            self._send(session, p.Tasks(assignments=(self._assignment(record, waypoint, pictures),)))
            await session.flush()
            claim.is_sent = True

    def _send(self, session: Session, tasks: p.Tasks) -> None:
        session.send(tasks)
        for assignment in tasks.assignments:
            session.claims[assignment.task_id].sent_at = self._steady()
        self._show(session, [assignment.task_id for assignment in tasks.assignments])

    def _assignment(
        self, record: TaskRecord, waypoint: bytes | None = None, pictures: Mapping[str, bytes] | None = None
    ) -> p.Assignment:
        return p.Assignment(
            task_id=record.id,
            fence=record.fence,
            generation=record.generation,
            turn=record.turn,
            flow=record.key_id,
            waypoint=waypoint,
            pictures=dict(pictures or {}),
            refuse_from=self._service.moderation.refuse_from(record.generation),
        )

    def _show(self, session: Session, task_ids: Iterable[str]) -> None:
        """Ask for previews of those of the session's tasks whose previews are wanted."""
        for task_id in task_ids:
            if self._service.previews.is_wanted(task_id) and (claim := session.claims.get(task_id)) is not None:
                session.send(p.Show(task_id=task_id, fence=claim.fence))

    def _ask_for_previews(self, task_id: str) -> None:
        for session in self._sessions.values():
            self._show(session, [task_id])

    async def _receive(self, session: Session, message: p.FromWorker) -> None:
        match message:
            case p.Want(count=count):
                session.wants(count)
            case p.Progress(task_id=task_id, step=step, steps=steps):
                if (claim := session.claim_of(task_id, message.fence)) is not None:
                    claim.step, claim.stepped = step, step >= steps
                    if claim.stepped:
                        session.look.set()
                    if step:
                        self._service.advance(task_id, step, steps)
                    else:  # it was admitted, and may go on from further
                        self._service.forecast.take_up(task_id)
            case p.Weights(away=away, waited=waited):
                session.swaps(away)
                self._service.forecast.swap(session.id, session.away, waited)
                self._wake_all()
            case p.Waypoint():
                self._outcomes.write_down(session, message)
            case p.Preview(task_id=task_id, picture=picture):
                if session.claim_of(task_id, message.fence) is not None:
                    self._service.show_preview(task_id, picture)
            case p.Heartbeat(held=held):
                self._take_back_unknown(session, held)
                with contextlib.suppress(FluxserveError):  # the lease is prolonged by the next one
                    await self._service.extend(session.id)
            case p.Returned(held=held, recycled=recycled):
                session.draining, session.told = True, session.told or not recycled
                self._take_back(session, held)
            case p.Written():
                self.writers.hear(session, message)
            case p.Finished() | p.Failed() | p.Withheld():
                self._outcomes.hand_in(session, message)
            case p.Hello() | p.CourierHello() | p.Report():
                raise WorkerProtocolError("A second hello, or a courier's message.")

    def _take_back(self, session: Session, held: tuple[p.Held, ...]) -> None:
        mine = {
            entry.task_id: session.claims.pop(entry.task_id)
            for entry in held
            if session.claim_of(entry.task_id, entry.fence) is not None
        }
        self._outcomes.give_back(mine)

    def _take_back_unknown(self, session: Session, held: tuple[p.Held, ...]) -> None:
        """What nobody draws goes back in the queue; the heartbeats would prolong its lease for ever."""
        unknown = unknown_to(session, held, sent_before=self._steady() - self._service.settings.lease)
        for task_id, claim in unknown.items():
            logger.warning(
                "A worker does not know its task", extra={"action": "unknown", "worker": session.id, "task": task_id}
            )
            del session.claims[task_id]
            session.send(p.Discard(task_id=task_id, fence=claim.fence))  # should it have been on its way all the same
        self._outcomes.give_back(unknown)

    def _discard(self, task_id: str) -> None:
        """The task was cancelled: whoever holds it need not go on."""
        for claims in self._departed.values():
            claims.pop(task_id, None)
        self._departed = {worker_id: claims for worker_id, claims in self._departed.items() if claims}
        for session in self._sessions.values():
            if (claim := session.claims.pop(task_id, None)) is not None:
                session.send(p.Discard(task_id=task_id, fence=claim.fence))
                session.look.set()

    def _lose(self, session: Session) -> None:
        """The connection is gone. A local worker is dead; a remote one may come back within its lease."""
        session.close()
        self.writers.leave(session)
        is_current = self._sessions.get(session.id) is session
        if is_current:
            del self._sessions[session.id]
            self._service.part(session.id)
        logger.info("Worker gone", extra={"action": "worker_gone", "worker": session.id, "held": len(session.claims)})
        if session.is_local:
            self._outcomes.give_back(session.claims, suspected=not (self._stopping or session.told or self._is_waking))
        elif is_current and session.claims:
            self._departed[session.id] = session.claims

    async def write_down_all(self, patience: float) -> None:
        """Wait for the outcomes and losses that are being written down, at most `patience` seconds."""
        await self._outcomes.write_down_all(patience)

    async def reap(self) -> None:
        """For ever: end the leases of silent workers, and of those that never returned."""
        self._looked_at = self._steady()
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            now = self._steady()
            stood_still = self._stood_still(now)
            if stood_still:
                self._waking_until = now + WAKING_S
            self._looked_at = now
            self._end_silent(now, stood_still=stood_still)
            with contextlib.suppress(FluxserveError, OSError):  # the next round tries again
                await self._release_departed()

    def _stood_still(self, now: float) -> float:
        """Seconds since it last looked in which this process did not run and could hear nobody."""
        return max(0.0, now - self._looked_at - 2 * REAP_INTERVAL_S)

    @property
    def _is_waking(self) -> bool:
        """It stood still a moment ago, and so did, most likely, its local workers: their watchdogs may end them now."""
        now = self._steady()
        return self._stood_still(now) > 0 or now < self._waking_until

    def _end_silent(self, now: float, *, stood_still: float) -> None:
        for session in list(self._sessions.values()):
            session.heard_at += stood_still
            if now - session.heard_at > self._service.settings.lease:
                logger.warning("A worker hangs", extra={"action": "worker_hung", "worker": session.id})
                self._on_hung(session.id)
                session.writer.transport.abort()

    async def _release_departed(self) -> None:
        """Tasks of local workers that died while no connection showed it, and of all whose lease has ended."""
        for worker_id in [worker_id for worker_id in self._departed if not self._is_alive(worker_id)]:
            await self._service.release(losses_of(self._departed.get(worker_id, {}), suspected=False))
            self._departed.pop(worker_id, None)
        lapsed = [record for record in await self._service.lapsed() if record.worker_id not in self._sessions]
        losses = [loss for record in lapsed for loss in self._lapse(record)]
        await self._service.release(losses)

    def _lapse(self, record: TaskRecord) -> list[Lost]:
        claims = self._departed.get(record.worker_id or "", {})
        claim = claims.get(record.id)
        if claim is not None and claim.settling and claim.fence == record.fence:
            return []  # its outcome is being written down
        claims.pop(record.id, None)
        if not claims:
            self._departed.pop(record.worker_id or "", None)
        if claim is None or claim.fence != record.fence:
            claim = Claim(record.fence, record.generation, record.turn)
        return losses_of({record.id: claim}, suspected=True)

    def drain(self) -> None:
        """Nothing more is handed out. Local workers finish what runs, give back what waits, and end.

        Remote ones draw on by themselves, and hand in when the server is back.
        """
        self._stopping = True
        for session in self._sessions.values():
            session.draining = True
            if session.is_local:
                session.send(p.Drain())
