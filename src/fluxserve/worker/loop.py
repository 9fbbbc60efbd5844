"""The worker's loop: admit, step, encode, hand over; and the connection that survives its server.

drawing      one engine thread: admits arrivals, steps, tells what happened
encoding     one thread: pixels to bytes, beside the next steps
connection   hello, heartbeats, arrivals; after a loss it dials again and presents its fences
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fluxserve.engine import pixels
from fluxserve.engine.base import Engine, Event, Failed, Finished, Progressed
from fluxserve.errors import WorkerProtocolError, WorkerRefused
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams, dial

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
#: Progress is sent at most this often for a task, beside its first and last step.
PROGRESS_INTERVAL_S = 0.1
REDIAL_S = 0.2
#: A step may take this many times the longest one seen before the engine counts as hung.
HANG_FACTOR = 20
EXIT_HUNG = 70


@dataclass(slots=True)
class Holding:
    """A claim in the worker's hands; `outcome` is kept until the server has settled it."""

    assignment: p.Assignment
    admitted_at: float | None = None
    reported_at: float = 0.0
    outcome: p.Finished | p.Failed | None = None

    @property
    def held(self) -> p.Held:
        """The claim as the protocol names it."""
        return p.Held(task_id=self.assignment.task_id, fence=self.assignment.fence)


class Worker:
    """One engine and one server."""

    def __init__(
        self, *, engine: Engine, settings: Settings, server: str, worker_id: str, token: str = "", parented: bool
    ) -> None:
        """`parented`: a server process on this machine started us, and its end shows in `orphaned`."""
        self._engine = engine
        self._settings = settings
        self._server = server
        self._id = worker_id
        self._token = token
        self._parented = parented
        self._holdings: dict[str, Holding] = {}
        self._arrivals: list[p.Assignment] = []
        self._discards: list[str] = []
        self._wake = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._draining = False
        self._orphan = False
        self._stepping_since: float | None = None
        self._longest_step = 0.0
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="fluxserve-engine")
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="fluxserve-encoder")
        self._encodings: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Warm up, then draw until drained, orphaned for too long, or refused. Raises what warming raises."""
        started = time.monotonic()
        await self._in_engine_thread(self._engine.warm)
        logger.info("Engine warm", extra={"action": "warm", "seconds": round(time.monotonic() - started, 2)})
        parts = [asyncio.create_task(part) for part in (self._stay_connected(), self._draw(), self._beat())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
        finally:
            for part in parts:
                part.cancel()

    def drain(self) -> None:
        """Finish what runs, give back what waits, then end."""
        self._draining = True
        waiting = tuple(self._holdings.pop(a.task_id).held for a in self._arrivals if a.task_id in self._holdings)
        self._arrivals.clear()
        if waiting:
            self._send(p.Returned(held=waiting))
        self._wake.set()

    def orphaned(self) -> None:
        """The server process that started us has ended: draw on for a while, for the one that may come back."""
        self._orphan = True

    # Connection

    async def _stay_connected(self) -> None:
        """Keep a connection; returns when there is nothing left to do for this server."""
        lost_at = time.monotonic()
        while True:
            try:
                streams = await dial(self._server)
            except OSError:
                if self._is_over(time.monotonic() - lost_at):
                    return
                await asyncio.sleep(REDIAL_S)
                continue
            with contextlib.suppress(ConnectionError):
                await self._converse(streams)
            self._writer = None
            lost_at = time.monotonic()
            if self._draining and not self._holdings:
                return

    def _is_over(self, alone_for: float) -> bool:
        nothing_left = (self._draining or self._orphan) and not self._holdings
        return nothing_left or (self._parented and alone_for > self._settings.orphan_grace)

    async def _converse(self, streams: Streams) -> None:
        reader, writer = streams
        try:
            writer.write(p.to_frame(self._hello()))
            welcome = await p.read_from_server(reader)
            if isinstance(welcome, p.Refused):
                raise WorkerRefused(f"The server refused this worker: {welcome.reason}")
            if not isinstance(welcome, p.Welcome):
                return
            self._writer = writer
            self._resume(welcome)
            while (message := await p.read_from_server(reader)) is not None:
                self._receive(message)
                if self._draining and not self._holdings:
                    return
        finally:
            writer.close()

    def _hello(self) -> p.Hello:
        return p.Hello(
            version=p.VERSION,
            worker_id=self._id,
            pid=os.getpid(),
            models=self._engine.models,
            engine=type(self._engine).__name__,
            fingerprint=self._engine.fingerprint,
            capacity=self._engine.capacity,
            token=self._token,
            orphan=self._orphan,
            held=tuple(holding.held for holding in self._holdings.values()),
        )

    def _resume(self, welcome: p.Welcome) -> None:
        """Drop the claims that were lost meanwhile, hand in what was drawn meanwhile, ask for more."""
        kept = {(held.task_id, held.fence) for held in welcome.kept}
        for task_id, holding in list(self._holdings.items()):
            if (task_id, holding.assignment.fence) not in kept:
                self._drop(task_id)
            elif holding.outcome is not None:
                self._send(holding.outcome)
        self._want()

    def _receive(self, message: p.FromServer) -> None:
        match message:
            case p.Tasks(assignments=assignments):
                for assignment in assignments:
                    self._holdings[assignment.task_id] = Holding(assignment)
                    self._arrivals.append(assignment)
                if self._draining:
                    self.drain()
                self._wake.set()
            case p.Settled(task_id=task_id):
                self._holdings.pop(task_id, None)
                self._want()
            case p.Discard(task_id=task_id):
                self._drop(task_id)
            case p.Drain():
                self.drain()
            case p.Welcome() | p.Refused():
                raise WorkerProtocolError("An unexpected greeting.")

    def _drop(self, task_id: str) -> None:
        if self._holdings.pop(task_id, None) is not None:
            self._arrivals = [assignment for assignment in self._arrivals if assignment.task_id != task_id]
            self._discards.append(task_id)
            self._wake.set()

    def _want(self) -> None:
        """Ask for what the engine can hold and one batch ahead."""
        if not self._draining and not self._orphan:
            unfinished = sum(holding.outcome is None for holding in self._holdings.values())
            self._send(p.Want(count=max(0, 2 * self._engine.capacity - unfinished)))

    def _send(self, message: p.FromWorker) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(p.to_frame(message))

    async def _beat(self) -> None:
        """Heartbeats; and the end of a worker whose engine hangs."""
        while True:
            await asyncio.sleep(min(self._settings.heartbeat, self._settings.lease / 3))
            since = self._stepping_since
            limit = max(self._settings.lease, HANG_FACTOR * self._longest_step)
            if since is not None and time.monotonic() - since > limit:
                logger.error("The engine hangs", extra={"action": "hung", "limit_s": round(limit, 1)})
                os._exit(EXIT_HUNG)  # a stuck kernel cannot be interrupted; the process is the unit that is replaced
            self._send(p.Heartbeat(held=tuple(holding.held for holding in self._holdings.values())))

    # Drawing

    async def _draw(self) -> None:
        """1. discard, 2. admit, 3. step, 4. tell; idle until woken."""
        while True:
            self._wake.clear()
            for task_id in self._take_discards():
                await self._in_engine_thread(partial(self._engine.discard, task_id))
            for assignment in self._take_arrivals():
                await self._in_engine_thread(partial(self._engine.admit, assignment.task_id, assignment.generation))
                self._begin(assignment)
            if not self._engine.active:
                await self._wake.wait()
                continue
            self._stepping_since = time.monotonic()
            events = await self._in_engine_thread(self._engine.step)
            self._longest_step = max(self._longest_step, time.monotonic() - self._stepping_since)
            self._stepping_since = None
            for event in events:
                self._tell(event)

    def _take_discards(self) -> list[str]:
        taken, self._discards = self._discards, []
        return taken

    def _take_arrivals(self) -> list[p.Assignment]:
        """As many as the engine has room for; the rest waits here, one batch ahead."""
        room = max(0, self._engine.capacity - self._engine.active)
        taken, self._arrivals = self._arrivals[:room], self._arrivals[room:]
        return taken

    def _begin(self, assignment: p.Assignment) -> None:
        if (holding := self._holdings.get(assignment.task_id)) is not None:
            holding.admitted_at = time.monotonic()
            self._report(holding, 0, assignment.generation.steps)

    def _tell(self, event: Event) -> None:
        holding = self._holdings.get(event.ref)
        if holding is None:
            return
        match event:
            case Progressed(step=step, steps=steps):
                self._report(holding, step, steps)
            case Finished():
                encoding = asyncio.create_task(self._encode(holding, event))
                self._encodings.add(encoding)
                encoding.add_done_callback(self._encodings.discard)
            case Failed(error=error):
                failed = p.Failed(
                    task_id=holding.held.task_id, fence=holding.held.fence, code=type(error).__name__,
                    message=error.message, retryable=error.retryable,
                )  # fmt: skip
                self._hand_over(holding, failed)

    def _report(self, holding: Holding, step: int, steps: int) -> None:
        now = time.monotonic()
        if 0 < step < steps and now - holding.reported_at < PROGRESS_INTERVAL_S:
            return
        holding.reported_at = now
        held = holding.held
        self._send(p.Progress(task_id=held.task_id, fence=held.fence, step=step, steps=steps))

    async def _encode(self, holding: Holding, drawn: Finished) -> None:
        """Encoding is a stage of its own: the next steps do not wait for it."""
        generation = holding.assignment.generation
        picture = await asyncio.get_running_loop().run_in_executor(
            self._encoding, pixels.encode, drawn.pixels, generation.output_format, drawn.drawn_by
        )
        began = holding.admitted_at or time.monotonic()
        finished = p.Finished(
            task_id=holding.held.task_id, fence=holding.held.fence, picture=picture, drawn_by=drawn.drawn_by,
            duration=time.monotonic() - began, facts=dict(drawn.facts),
        )  # fmt: skip
        self._hand_over(holding, finished)

    def _hand_over(self, holding: Holding, outcome: p.Finished | p.Failed) -> None:
        if self._holdings.get(holding.held.task_id) is holding:
            holding.outcome = outcome
            self._send(outcome)
            self._want()

    async def _in_engine_thread(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._drawing, call)
