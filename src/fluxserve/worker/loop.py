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
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fluxserve.engine.base import NO_PICTURES, Engine, Event, Failed, Finished, Pixels, Progressed
from fluxserve.errors import WorkerProtocolError, WorkerRefused
from fluxserve.moderation.pictures import Classifier
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams, dial
from fluxserve.worker.finishing import Finishing
from fluxserve.worker.holding import Holding, next_in, ref_of
from fluxserve.worker.judging import Judging
from fluxserve.worker.memory import excess
from fluxserve.worker.watchdog import Watchdog, step_work
from fluxserve.worker.writing import Writing

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")
#: Progress is sent at most this often for a task, beside admission, the first and the last step.
PROGRESS_INTERVAL_S = 0.1
REDIAL_S = 0.2
#: The engine steps on by itself for this long where nobody has to hear of it: handing over between threads takes time.
ALONE_S = 0.02


class Worker:
    """One engine and one server."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: Settings,
        server: str,
        worker_id: str,
        parented: bool,
        token: str = "",
        classifier: Classifier | None = None,
    ) -> None:
        """`parented`: a server process on this machine started us, and its end shows in `orphaned`.

        `classifier` judges its pictures; None: nothing does.
        """
        self._engine = engine
        self._settings = settings
        self._server = server
        self._id = worker_id
        self._token = token
        self._parented = parented
        #: By the engine's name for the claim, so that two claims of one task are never mixed up.
        self._holdings: dict[str, Holding] = {}
        self._arrivals: list[Holding] = []
        self._discards: list[str] = []
        self._writing = Writing(engine)
        self._wake = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._draining = False
        #: It ends because it has grown too large, or because its process is no good any more.
        self.is_recycled = False
        self._orphan = False
        self._over = asyncio.Event()
        self._watchdog = Watchdog(settings.step_patience)
        self._heard_at = 0.0
        #: The server's, once it has said them: it is the server that declares a silent worker dead.
        self._heartbeat, self._lease = settings.heartbeat, settings.lease
        self._waypoint_interval: float | None = None
        #: What the server knows of weights, and for how many seconds since then nothing could be drawn for that.
        self._away_told: Mapping[str, float] = {}
        self._waited = 0.0
        self._welcomed = asyncio.Event()
        self._drawing = ThreadPoolExecutor(1, thread_name_prefix="fluxserve-engine")
        self._finishing = Finishing(Judging(classifier, settings.moderation_timeout))
        self._encodings: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Warm up, then draw until drained, orphaned for too long, or refused. Raises what warming raises."""
        started = time.monotonic()
        await self._finishing.judging.open()
        await self._in_engine_thread(self._engine.warm)
        seconds = time.monotonic() - started
        logger.info("Engine warm", extra={"action": "warm", "seconds": round(seconds, 2)})
        self._watchdog.warmed(seconds)
        if over := excess(self._settings, device=self._engine.device_memory):
            logger.warning(
                "Each picture will cost a new worker: the networks alone take more than the limit. Set a higher one.",
                extra={"action": "limit_too_low", **over},
            )
        parts = [
            asyncio.create_task(part)
            for part in (self._stay_connected(), self._draw(), self._beat(), self._over.wait())
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
        finally:
            self._watchdog.rest()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def drain(self) -> None:
        """Finish what runs, give back what waits, then end."""
        self._draining = True
        waiting, self._arrivals = self._arrivals, []
        self._give_back(waiting)  # even where it is nothing: it tells the server that this worker takes no more

    def _give_back(self, holdings: Sequence[Holding]) -> None:
        for holding in holdings:
            self._holdings.pop(holding.ref, None)
        self._send(p.Returned(held=tuple(holding.held for holding in holdings), recycled=self.is_recycled))
        self._end_if_done()

    def orphaned(self) -> None:
        """The server process that started us has ended: draw on for a while, for the one that may come back."""
        self._orphan = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if (self._draining or self._orphan) and not self._holdings:
            self._over.set()

    # Connection

    async def _stay_connected(self) -> None:
        """Keep a connection; returns when it has been without a server for too long."""
        lost_at, told = time.monotonic(), False
        while not self._is_forsaken(time.monotonic() - lost_at):
            try:
                streams = await dial(self._server)
            except OSError:
                if not told:
                    logger.warning("No server answers yet", extra={"action": "dialling", "server": self._server})
                told = True
            else:
                await self._converse(streams)
                lost_at, told = time.monotonic(), False
            await asyncio.sleep(REDIAL_S)

    def _is_forsaken(self, alone_for: float) -> bool:
        """A worker on another machine waits for its server for ever, unless it was told to end."""
        return (self._parented or self._draining) and alone_for > self._settings.orphan_grace

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
            self._heartbeat, self._lease = welcome.heartbeat, welcome.lease
            self._waypoint_interval, self._finishing.tells_prompts = welcome.waypoint_interval, welcome.tells_prompts
            self._welcomed.set()
            self._resume(welcome)
            while (message := await p.read_from_server(reader)) is not None:
                self._receive(message)
        finally:
            self._writer = None
            writer.close()

    def _hello(self) -> p.Hello:
        self._away_told = self._engine.away
        return p.Hello(
            version=p.VERSION,
            worker_id=self._id,
            pid=os.getpid(),
            models=self._engine.models,
            engine=type(self._engine).__name__,
            fingerprints=dict(self._engine.fingerprints),
            capacity=self._engine.capacity,
            want=0 if self._draining or self._orphan else self._room,
            away=dict(self._away_told),
            left_out=tuple(self._engine.left_out),
            classifier=self._finishing.judging.identity,
            writes=self._engine.writes,
            token=self._token,
            orphan=self._orphan,
            held=tuple(holding.held for holding in self._holdings.values()),
        )

    def _resume(self, welcome: p.Welcome) -> None:
        """Drop the claims that were lost meanwhile, hand in what was drawn meanwhile, ask for more."""
        self._writing.forget_all()
        kept = set(welcome.kept)
        for holding in list(self._holdings.values()):
            if holding.held not in kept:
                self._drop(holding.ref)
            elif holding.outcome is not None:
                self._send(holding.outcome)
        if self._draining:
            self.drain()
        self._want()

    def _receive(self, message: p.FromServer) -> None:
        match message:
            case p.Tasks(assignments=assignments):
                arrived = [Holding(assignment) for assignment in assignments]
                self._holdings |= {holding.ref: holding for holding in arrived}
                laden = [holding for holding in arrived if holding.assignment.generation.pictures]
                self._arrivals += [holding for holding in arrived if holding not in laden]
                for packed in laden:
                    self._beside_steps(self._unpack(packed))
                if self._draining:
                    self.drain()
                self._wake.set()
            case p.Settled():
                self._holdings.pop(ref_of(message.task_id, message.fence), None)
                self._want()
                self._end_if_done()
            case p.Discard():
                self._drop(ref_of(message.task_id, message.fence))
                self._want()
            case p.Show():
                if (holding := self._holdings.get(ref_of(message.task_id, message.fence))) is not None:
                    holding.wants_previews = True
            case p.Write():
                self._writing.ask(message)
                self._wake.set()
            case p.Unwrite(number=number):
                self._writing.forget(number)
                self._wake.set()
            case p.Drain():
                self.drain()
            case p.Welcome() | p.Refused() | p.Errands():
                raise WorkerProtocolError("A message that is not for a worker.")

    def _drop(self, ref: str) -> None:
        if self._holdings.pop(ref, None) is not None:
            self._arrivals = [holding for holding in self._arrivals if holding.ref != ref]
            self._discards.append(ref)
            self._wake.set()
            self._end_if_done()

    def _want(self) -> None:
        """Ask for what there is room for; who ends asks for nothing any more."""
        if not self._draining and not self._orphan:
            self._send(p.Want(count=self._room))

    @property
    def _room(self) -> int:
        """What the engine can hold, which is a batch and one ahead, but not for ever while nothing is settled."""
        capacity = self._engine.capacity
        unfinished = sum(holding.outcome is None for holding in self._holdings.values())
        return max(0, min(capacity - unfinished, 2 * capacity - len(self._holdings)))

    def _send(self, message: p.FromWorker) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(p.to_frame(message))

    async def _beat(self) -> None:
        """Heartbeats."""
        while True:
            with contextlib.suppress(TimeoutError):  # at once where the server may want to hear it more often
                async with asyncio.timeout(min(self._heartbeat, self._lease / 3)):
                    await self._welcomed.wait()
            self._welcomed.clear()
            self._send(p.Heartbeat(held=tuple(holding.held for holding in self._holdings.values())))

    # Drawing

    async def _draw(self) -> None:
        """1. discard, write, 2. admit, 3. ask for previews, 4. step, 5. tell, 6. hand on, 7. write down; then idle."""
        while True:
            self._wake.clear()
            for ref in self._take_discards():
                await self._watched(partial(self._engine.discard, ref))
            for call in self._writing.take_calls():
                await self._watched(call)
            for holding in self._take_arrivals():
                if holding.ref in self._holdings:  # not discarded while others were admitted
                    await self._admit(holding)
            for ref in self._take_shows():
                await self._watched(partial(self._engine.show, ref))
            if not self._engine.active:
                self._rest()
                await self._wake.wait()
                continue
            events = await self._watched(self._step)
            self._hear(events)
            self._tell_away()
            for event in events:
                self._tell(event)
            if stuck := self._engine.spent_on:
                await self._hand_on_all_but(stuck)
            for holding in self._due():
                self._write_down(holding, await self._watched(partial(self._engine.save, holding.ref)))

    async def _admit(self, holding: Holding) -> None:
        taken = holding.assignment
        # Before it is true, so that a death in between is not nobody's, again and again.
        self._send(p.Progress(task_id=taken.task_id, fence=taken.fence, step=0, steps=taken.generation.steps))
        admit = partial(self._engine.admit, holding.ref, taken.generation, taken.waypoint, pictures=holding.pictures)
        await self._watched(partial(admit, turn=taken.turn, flow=taken.flow))
        holding.pictures = NO_PICTURES
        holding.is_drawn = True
        holding.admitted_at = holding.saved_at = time.monotonic()

    def _step(self) -> Sequence[Event]:
        """In the engine's thread: steps until there is something to do here, but never past somebody's first step."""
        interval = self._waypoint_interval
        end = time.monotonic() + (ALONE_S if interval is None else min(ALONE_S, interval))
        told: list[Event] = []
        while True:
            events = self._engine.step()
            told += events
            if (
                not all(isinstance(event, Progressed) and event.step > 1 and event.preview is None for event in events)
                or self._wake.is_set()
                or not self._engine.active
                or time.monotonic() >= end
            ):
                return told

    def _due(self) -> list[Holding]:
        """Those to write down; none while the server still has to take what was sent before."""
        interval, now = self._waypoint_interval, time.monotonic()
        if interval is None or self._writer is None or self._writer.transport.get_write_buffer_size():
            return []
        return [holding for holding in self._holdings.values() if holding.is_due(now, interval)]

    def _write_down(self, holding: Holding, data: bytes | None) -> None:
        holding.saved_at, holding.has_moved = time.monotonic(), False
        if data is not None:
            self._send(p.Waypoint(task_id=holding.held.task_id, fence=holding.held.fence, data=data))

    def _take_discards(self) -> list[str]:
        taken, self._discards = self._discards, []
        return taken

    def _take_arrivals(self) -> list[Holding]:
        """Those whose turn is next, as many as the engine has room for; the rest waits here, one batch ahead."""
        number = next_in(self._holdings.values(), self._arrivals, self._engine.active, self._engine.capacity)
        arrivals = sorted(self._arrivals, key=_turn)
        taken, self._arrivals = arrivals[:number], arrivals[number:]
        return taken

    def _take_shows(self) -> list[str]:
        now = time.monotonic()
        due = [holding for holding in self._holdings.values() if holding.is_to_be_shown(now)]
        for holding in due:
            holding.shown_at = now
        return [holding.ref for holding in due]

    def _tell(self, event: Event) -> None:
        if (answer := self._writing.answer(event)) is not None:
            self._send(answer)
        holding = self._holdings.get(event.ref)
        if holding is None:
            return
        match event:
            case Progressed(step=step, steps=steps, preview=preview):
                holding.has_moved = holding.is_drawn = step < steps
                self._report(holding, step, steps)
                if preview is not None:
                    self._beside_steps(self._encode_preview(holding, preview))
            case Finished():
                holding.is_drawn, holding.is_done = False, True
                self._beside_steps(self._encode(holding, event))
            case Failed(error=error):
                holding.is_drawn, holding.is_done = False, True
                self._hand_over(holding, holding.failed(error))

    def _report(self, holding: Holding, step: int, steps: int) -> None:
        """The first and the last step are told at once, as admission is: they decide whom a death is blamed on."""
        now = time.monotonic()
        if step < steps and now - holding.reported_at < PROGRESS_INTERVAL_S:
            return
        holding.reported_at = now
        held = holding.held
        self._send(p.Progress(task_id=held.task_id, fence=held.fence, step=step, steps=steps))

    def _beside_steps(self, encode: Coroutine[None, None, None]) -> None:
        """Encoding is a stage of its own: the next steps do not wait for it."""
        encoding = asyncio.create_task(encode)
        self._encodings.add(encoding)
        encoding.add_done_callback(self._encodings.discard)

    async def _unpack(self, holding: Holding) -> None:
        """Its input pictures; then it has arrived."""
        pictures = await self._finishing.unpack(holding)
        if isinstance(pictures, p.Failed | p.Withheld):
            self._hand_over(holding, pictures)
            return
        if self._holdings.get(holding.ref) is holding:  # not discarded meanwhile
            holding.unpack(pictures)
            self._arrivals.append(holding)
            if self._draining:
                self.drain()
            self._wake.set()

    async def _encode_preview(self, holding: Holding, preview: Pixels) -> None:
        held, picture = holding.held, await self._finishing.preview(holding, preview)
        if picture is not None:
            self._send(p.Preview(task_id=held.task_id, fence=held.fence, picture=picture))

    async def _encode(self, holding: Holding, drawn: Finished) -> None:
        self._hand_over(holding, await self._finishing.finish(holding, drawn))

    def _hand_over(self, holding: Holding, outcome: p.Outcome) -> None:
        if self._holdings.get(holding.ref) is holding:
            holding.outcome = outcome
            self._send(outcome)
            self._recycle_if_grown()
            self._want()

    def _recycle_if_grown(self) -> None:
        """Between two tasks; and where a look at a picture never comes back."""
        if self._finishing.judging.is_stuck and not self._draining:
            self._recycle()
        over = {} if self._draining else excess(self._settings, device=self._engine.device_memory)
        if over:
            logger.warning("The worker has grown too large and is replaced", extra={"action": "recycled", **over})
            self._recycle()

    async def _hand_on_all_but(self, stuck: Set[str]) -> None:
        """The process is no good any more: others go on with what it has begun, from where that stands.

        But `stuck` ends here, by whatever means are left: elsewhere it would spend the next process too, and so on.
        """
        if not self._draining:
            logger.warning("The worker's process is spent and is replaced", extra={"action": "recycled"})
            self._recycle()
        begun = [one for one in self._holdings.values() if not one.is_done and one.ref not in stuck]
        for holding in begun:
            if self._waypoint_interval is not None:
                self._write_down(holding, await self._watched(partial(self._engine.save, holding.ref)))
            await self._watched(partial(self._engine.discard, holding.ref))
        if begun:
            self._give_back(begun)

    def _recycle(self) -> None:
        """What is left is finished, what waits given back, and another process takes this place."""
        self.is_recycled = True
        self.drain()

    async def _in_engine_thread(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._drawing, call)

    # Watching

    async def _watched(self, call: Callable[[], Answer]) -> Answer:
        """As long as the engine has work it is heard of, or the process ends."""
        now = time.monotonic()
        self._heard_at = self._heard_at or now
        held = (holding for holding in self._holdings.values() if holding.outcome is None)
        work = sum(step_work(holding.assignment.generation) for holding in held)
        self._watchdog.expect(work, since=self._heard_at, now=now)
        return await self._in_engine_thread(call)

    def _hear(self, events: Sequence[Event]) -> None:
        """What the engine did since it was last heard of says how fast it is; nothing, while it waits for weights."""
        if not events and not self._engine.is_bringing:
            return
        now = time.monotonic()
        if not events:
            self._waited += now - self._heard_at
        moved = (self._holdings.get(event.ref) for event in events if isinstance(event, Progressed))
        work = sum(step_work(holding.assignment.generation) for holding in moved if holding is not None)
        self._watchdog.heard(now - self._heard_at, work)
        self._heard_at = now

    def _tell_away(self) -> None:
        """Which weights are away, when that has changed."""
        if (away := self._engine.away) != self._away_told:
            self._away_told = away
            self._send(p.Weights(away=dict(away), waited=self._waited))
            self._waited = 0.0

    def _rest(self) -> None:
        """Nothing is to be heard of an idle engine."""
        self._watchdog.rest()
        self._heard_at = 0.0


def _turn(holding: Holding) -> float:
    return holding.assignment.turn
