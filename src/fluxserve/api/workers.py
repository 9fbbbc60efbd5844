"""The server's side of the worker protocol: leases, dispatch, outcomes.

A worker that dies is seen at once: its socket closes, and its tasks go back in the queue. One that hangs loses its
lease. One that returns after the server died presents its fences and goes on.
What it does not know: who started a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fluxserve.catalogue import OutputFormat
from fluxserve.errors import FluxserveError, Unavailable, WorkerProtocolError
from fluxserve.service.service import Lost, Service
from fluxserve.store.base import Drawn, Reason, TaskRecord
from fluxserve.worker import protocol as p

logger = logging.getLogger(__name__)
HELLO_TIMEOUT_S = 10.0
REAP_INTERVAL_S = 0.5
RETRY_S = 1.0


@dataclass(slots=True)
class Claim:
    """A task that a session holds; `step` is None until the worker has begun to draw it."""

    fence: int
    output_format: OutputFormat
    step: int | None = None


@dataclass(slots=True, eq=False)
class Session:
    """One connected worker."""

    hello: p.Hello
    writer: asyncio.StreamWriter
    is_local: bool
    heard_at: float
    claims: dict[str, Claim] = field(default_factory=dict)
    wanted: int = 0
    wants: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    claiming: bool = False
    closed: bool = False

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.hello.worker_id

    def send(self, message: p.FromServer) -> None:
        """Queue a message; a dead socket shows on the reading side."""
        if not self.writer.is_closing():
            self.writer.write(p.to_frame(message))


class Gateway:
    """Every connected worker, and what it holds."""

    def __init__(
        self,
        service: Service,
        *,
        token: str | None = None,
        is_alive: Callable[[str], bool],
        on_hung: Callable[[str], None],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_alive(worker_id)`: a local worker's process lives. `on_hung(worker_id)`: it lost its lease."""
        self._service = service
        self._token = token
        self._is_alive = is_alive
        self._on_hung = on_hung
        self._steady = steady
        self._sessions: dict[str, Session] = {}
        self._departed: dict[str, dict[str, Claim]] = {}
        self._outcomes: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def ready(self) -> int:
        """Workers that are warm and take tasks."""
        return sum(not session.draining for session in self._sessions.values())

    @property
    def busy(self) -> bool:
        """Some worker still holds tasks, or an outcome is being written down."""
        return bool(self._outcomes) or any(session.claims for session in self._sessions.values())

    async def adopt(self, running: list[TaskRecord]) -> None:
        """At start: tasks of workers that died with the last server go back; living ones get a lease to return."""
        gone = [record for record in running if record.worker_id is not None and not self._is_alive(record.worker_id)]
        await self._service.release([Lost(task_id=record.id, fence=record.fence) for record in gone])
        for worker_id in {record.worker_id for record in running if record.worker_id is not None}:
            await self._service.extend(worker_id)

    async def serve_local(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection on the unix socket."""
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
            dispatch = asyncio.create_task(self._dispatch(session))
            try:
                while (message := await p.read_from_worker(reader)) is not None:
                    session.heard_at = self._steady()
                    await self._receive(session, message)
            finally:
                session.closed = True
                if not session.claiming:  # a claim under way is given back by the dispatcher itself
                    dispatch.cancel()
        except WorkerProtocolError as error:
            logger.warning("A worker was cut off", extra={"action": "cut_off", "reason": error.message})
        except asyncio.CancelledError:
            pass  # the server is closing its connections
        finally:
            writer.close()
            if session is not None:
                await self._lose(session)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_local: bool
    ) -> Session | None:
        with contextlib.suppress(TimeoutError):
            hello = await asyncio.wait_for(p.read_from_worker(reader, limit=p.MAX_HELLO), HELLO_TIMEOUT_S)
            reason = self._objection(hello, is_local=is_local)
            if reason is None and isinstance(hello, p.Hello):
                return await self._admit(hello, writer, is_local=is_local)
            logger.warning("A worker was refused", extra={"action": "refused", "reason": reason})
            writer.write(p.to_frame(p.Refused(reason=reason or "")))
            await writer.drain()
        return None

    def _objection(self, hello: p.FromWorker | None, *, is_local: bool) -> str | None:
        if not isinstance(hello, p.Hello):
            return "The first message has to be a hello."
        if hello.version != p.VERSION:
            return f"This server speaks worker protocol {p.VERSION}, the worker {hello.version}: use equal versions."
        if not is_local and not (self._token and hmac.compare_digest(hello.token.encode(), self._token.encode())):
            return "The worker token is wrong."
        return None

    async def _admit(self, hello: p.Hello, writer: asyncio.StreamWriter, *, is_local: bool) -> Session:
        kept = await self._service.held(hello.worker_id, [(held.task_id, held.fence) for held in hello.held])
        session = Session(hello=hello, writer=writer, is_local=is_local, heard_at=self._steady())
        session.claims = {record.id: Claim(record.fence, record.generation.output_format) for record in kept}
        session.draining = hello.orphan or self._stopping
        self._departed.pop(session.id, None)
        if (stale := self._sessions.get(session.id)) is not None:
            stale.claims.clear()  # the worker dialled again before the old connection was seen to be dead
            stale.writer.transport.abort()
        self._sessions[session.id] = session
        await self._service.extend(session.id)
        session.send(
            p.Welcome(
                heartbeat=self._service.settings.heartbeat,
                kept=tuple(p.Held(task_id=record.id, fence=record.fence) for record in kept),
            )
        )
        if session.draining:
            session.send(p.Drain())
        logger.info(
            "Worker ready",
            extra={"action": "worker_ready", "worker": session.id, "engine": hello.engine, "kept": len(kept)},
        )
        return session

    async def _dispatch(self, session: Session) -> None:
        """Claim for the session whenever it wants tasks and there are some."""
        changed = self._service.queue_changed
        while True:
            await session.wants.wait()
            seen = changed.version
            records: list[TaskRecord] = []
            if not session.draining:
                session.claiming = True
                with contextlib.suppress(FluxserveError):  # the store is in trouble: the next change tries again
                    records = await self._service.claim(session.id, session.hello.models, session.wanted)
                session.claiming = False
            if session.closed:
                await self._service.release([Lost(task_id=record.id, fence=record.fence) for record in records])
                return
            if not records:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.beyond(seen), 1.0)
                continue
            self._assign(session, records)

    def _assign(self, session: Session, records: list[TaskRecord]) -> None:
        session.claims |= {record.id: Claim(record.fence, record.generation.output_format) for record in records}
        session.wanted -= len(records)
        if session.wanted <= 0:
            session.wants.clear()
        session.send(
            p.Tasks(
                assignments=tuple(
                    p.Assignment(task_id=record.id, fence=record.fence, generation=record.generation)
                    for record in records
                )
            )
        )

    async def _receive(self, session: Session, message: p.FromWorker) -> None:
        match message:
            case p.Want(count=count):
                session.wanted = min(max(count, 0), 1024)
                (session.wants.set if session.wanted else session.wants.clear)()
            case p.Progress(task_id=task_id, step=step, steps=steps):
                if (claim := session.claims.get(task_id)) is not None and claim.fence == message.fence:
                    claim.step = step
                    self._service.advance(task_id, step, steps)
            case p.Heartbeat():
                with contextlib.suppress(FluxserveError):  # the lease is prolonged by the next one
                    await self._service.extend(session.id)
            case p.Returned(held=held):
                await self._take_back(session, held)
            case p.Finished() | p.Failed():
                task = asyncio.create_task(self._settle(session, message))
                self._outcomes.add(task)
                task.add_done_callback(self._outcomes.discard)
            case p.Hello():
                raise WorkerProtocolError("A second hello.")

    async def _take_back(self, session: Session, held: tuple[p.Held, ...]) -> None:
        mine = [entry for entry in held if session.claims.pop(entry.task_id, None) is not None]
        await self._service.release([Lost(task_id=entry.task_id, fence=entry.fence) for entry in mine])

    async def _settle(self, session: Session, outcome: p.Finished | p.Failed) -> None:
        """Write an outcome down, then tell the worker that it may forget the task.

        While the disk or the database cannot take it, it is tried again: a drawn picture is not thrown away.
        """
        while True:
            try:
                accepted = await self._write_down(session, outcome)
                break
            except Unavailable as error:
                logger.warning(error.message, extra={"action": "outcome_waits", "task": outcome.task_id})
                await asyncio.sleep(RETRY_S)
        session.claims.pop(outcome.task_id, None)
        session.send(p.Settled(task_id=outcome.task_id, fence=outcome.fence, accepted=accepted))

    async def _write_down(self, session: Session, outcome: p.Finished | p.Failed) -> bool:
        claim = session.claims.get(outcome.task_id)
        if claim is None or claim.fence != outcome.fence:
            return False
        if isinstance(outcome, p.Finished):
            drawn = Drawn(drawn_by=outcome.drawn_by, duration=outcome.duration, facts=outcome.facts)
            picture = outcome.picture
            return await self._service.complete(outcome.task_id, outcome.fence, picture, claim.output_format, drawn)
        reason = Reason(code=outcome.code, message=outcome.message)
        if not outcome.retryable:
            return await self._service.fail(outcome.task_id, outcome.fence, reason)
        lost = Lost(task_id=outcome.task_id, fence=outcome.fence, suspected=True, reason=reason)
        await self._service.release([lost])
        return True

    async def _lose(self, session: Session) -> None:
        """The connection is gone. A local worker is dead; a remote one may come back within its lease."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        logger.info("Worker gone", extra={"action": "worker_gone", "worker": session.id, "held": len(session.claims)})
        if not session.is_local and not session.draining:
            self._departed[session.id] = session.claims
            return
        suspected = not (self._stopping or session.draining)
        losses = [_lost(task_id, claim, suspected=suspected) for task_id, claim in session.claims.items()]
        if losses:
            with contextlib.suppress(FluxserveError):  # the leases end by themselves
                await self._service.release(losses)

    async def reap(self) -> None:
        """For ever: end the leases of silent workers, and of those that never returned."""
        lease = self._service.settings.lease
        while True:
            await asyncio.sleep(REAP_INTERVAL_S)
            for session in list(self._sessions.values()):
                if self._steady() - session.heard_at > lease:
                    logger.warning("A worker hangs", extra={"action": "worker_hung", "worker": session.id})
                    self._on_hung(session.id)
                    session.writer.transport.abort()
            with contextlib.suppress(FluxserveError):
                await self._release_lapsed()

    async def _release_lapsed(self) -> None:
        losses = []
        for record in await self._service.lapsed():
            worker_id = record.worker_id or ""
            if worker_id in self._sessions:
                continue
            claim = self._departed.get(worker_id, {}).pop(record.id, None)
            known = claim is not None and claim.fence == record.fence
            losses.append(
                _lost(record.id, claim, suspected=True)
                if claim is not None and known
                else Lost(task_id=record.id, fence=record.fence)
            )
        if losses:
            await self._service.release(losses)

    def drain(self) -> None:
        """Workers finish what runs, give back what waits, and end."""
        self._stopping = True
        for session in self._sessions.values():
            session.draining = True
            session.send(p.Drain())


def _lost(task_id: str, claim: Claim, *, suspected: bool) -> Lost:
    """A lost claim; only a task that was being drawn can have been the cause."""
    return Lost(
        task_id=task_id,
        fence=claim.fence,
        step=claim.step or 0,
        suspected=suspected and claim.step is not None,
    )
