"""Preparing: what a task needs before it takes its place: pictures that its request names by URL, an enriched prompt.

1. read what the request said, 2. have its pictures fetched one after the other, each decoded and written as it comes,
3. have its prompt enriched, 4. write down what the task comes to, or why it cannot be drawn. What a crash cuts short
begins anew.
What it does not know: sockets, and who fetches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

from fluxserve.catalogue import InputPicture, ModelSpec, find
from fluxserve.delivery.decoding import File
from fluxserve.delivery.fetching import Fetched, pause_after, reason
from fluxserve.errors import DecodersBusy, FieldRefused, FluxserveError, InputsFull, PictureNotFetched, Unavailable
from fluxserve.service.inputs import Inputs, pictures_of
from fluxserve.service.preparing import Job
from fluxserve.service.service import Service
from fluxserve.store.base import Reason, Store, TaskRecord
from fluxserve.store.submissions import Preparation

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: What is in trouble is tried again after so many seconds.
RETRY_S = 1.0
#: What waits is looked at this often at the latest: the clock may be set.
LOOK_S = 1.0
#: Decoders that are too slow for a picture so often are not to blame.
DECODINGS = 10
#: A task that holds nothing looks so often for room, and one that holds a part of its pictures once; then it gives way
#: to others, and begins anew after so many seconds.
LOOKS_FOR_ROOM = 30
GIVEN_WAY_S = 30.0
#: The file at a URL; it may wait for who fetches it, and never raises.
Fetch = Callable[[str], Coroutine[None, None, Fetched]]


class _Over(Exception):
    """Nobody wants the task prepared any more."""


class Preparer:
    """Prepares every task that the service has to be prepared. Used from the event loop only."""

    def __init__(
        self,
        service: Service,
        *,
        store: Store,
        inputs: Inputs,
        fetch: Fetch,
        now: Callable[[], float],
        retry: float = RETRY_S,
    ) -> None:
        """`retry`: seconds until what is in trouble is tried again."""
        self._service = service
        self._line = service.preparing
        self._store = store
        self._inputs = inputs
        self._fetch = fetch
        self._now = now
        self._retry = retry
        self._look = asyncio.Event()
        self._begun: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def run(self) -> None:
        """For ever: begin what is next."""
        try:
            with self._line.changed.watching(self._look):
                while True:
                    self._look.clear()
                    self.begin()
                    pause = max(0.0, min(self._line.next_at() - self._now(), LOOK_S))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause or LOOK_S):
                            await self._look.wait()
        finally:
            for task in self._begun:
                task.cancel()
            await asyncio.gather(*self._begun, return_exceptions=True)

    def begin(self) -> None:
        """Begin all that there is room for, and let go of what is over."""
        for over in self._line.take_over():
            self._start(self._discard(over))
        while not self._stopping and (job := self._line.take(self._now())) is not None:
            self._start(self._prepare(job))

    def drain(self) -> None:
        """Nothing more is begun; what no courier brings any more is left to the next server."""
        self._stopping = True

    async def settled(self, patience: float) -> bool:
        """Wait until nothing is under way, at most `patience` seconds; whether anything was."""
        if begun := set(self._begun):
            await asyncio.wait(begun, timeout=patience)
        return bool(begun)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _prepare(self, job: Job) -> None:
        is_left = False
        try:
            is_left = not await self._take_on(job)
        except _Over:
            pass
        except FieldRefused as error:
            await self._fail(job, error, f"{error.field}: {error.message}")
        except FluxserveError as error:
            await self._fail(job, error, error.message)
        except Exception:  # what is under way for ever would never end
            logger.exception("A preparation met a defect of fluxserve", extra={"task": job.task_id})
            await self._fail(job, PictureNotFetched("The server made a mistake over its pictures. It was logged."))
        finally:
            self._line.done(job)
        if not is_left:
            await self._discard(job)

    async def _take_on(self, job: Job) -> bool:
        """Get it done; False: it is left for later, and keeps what it has."""
        record, request = await self._patiently(job, lambda: self._read(job))
        for name, url in request.urls.items():
            if name in job.pictures:
                continue
            fetched = await self._unless_over(job, self._fetch(url))
            job.attempts += 1
            if fetched.is_lost and self._stopping:
                return False
            if not fetched.is_good:
                pause = pause_after(job.attempts, fetched, self._now())
                if pause is None:
                    raise PictureNotFetched(f"{name}: {reason(fetched)}")
                self._line.again(job, self._now() + pause)
                return False
            job.attempts = 0
            try:
                await self._keep(job, record, {**dict.fromkeys(request.urls), **job.pictures}, name, fetched.body)
            except InputsFull:
                # Those that hold a part each, or a place in the line, could wait for each other for ever.
                await self._discard(job)
                self._line.again(job, self._now() + GIVEN_WAY_S)
                return False
        enriched = None
        if request.upsamples:
            is_edit = bool(record.generation.pictures or job.pictures)
            enriched = await self._unless_over(
                job, self._service.upsampling.enrich(record.generation.model, record.generation.prompt, is_edit=is_edit)
            )
            if enriched.warning and self._stopping:
                return False
        if await self._patiently(job, lambda: self._service.prepare(record, request, job.pictures, job.kept, enriched)):
            job.kept = ()
        return True

    async def _read(self, job: Job) -> tuple[TaskRecord, Preparation]:
        (record,) = await self._store.get_many([job.task_id])
        (request,) = await self._store.preparations([job.task_id])
        if record is None or request is None:
            raise _Over
        return record, request

    async def _unless_over(self, job: Job, work: Coroutine[None, None, T]) -> T:
        """What it brings. Raises _Over where the task is over before that."""
        working, over = asyncio.create_task(work), asyncio.create_task(job.is_over.wait())
        try:
            await asyncio.wait((working, over), return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                raise _Over
            return working.result()
        finally:
            working.cancel()
            over.cancel()

    async def _keep(
        self, job: Job, record: TaskRecord, fetched: Mapping[str, InputPicture | None], name: str, body: bytes
    ) -> None:
        """Decode a file and write what it shows; `fetched`: all that come by URL, as far as they are there.

        Raises InputsFull where no room is found, FieldRefused and PictureNotFetched.
        """
        beside = {**{one.name: one for one in record.generation.pictures}, **fetched}
        del beside[name]
        files = await self._decoded(job, find(record.generation.model), name, body, beside)
        if not self._inputs.could_hold(files, job.kept):
            raise PictureNotFetched(f"{name}: there is no room for a picture as large as this")
        looks = 1 if job.kept else LOOKS_FOR_ROOM
        kept = await self._patiently(job, lambda: self._inputs.write(job.task_id, files), looks=looks)
        job.pictures |= pictures_of(files)
        job.kept += kept

    async def _decoded(
        self, job: Job, spec: ModelSpec, name: str, body: bytes, beside: Mapping[str, InputPicture | None]
    ) -> dict[str, File]:
        """The picture, and its mask where its alpha channel is one. Raises FieldRefused and PictureNotFetched."""
        for _ in range(DECODINGS):
            try:
                return await self._inputs.decode(spec, {name: body}, beside)
            except DecodersBusy:
                await self._pause(job)
        raise PictureNotFetched(f"{name}: the picture could not be read in time")

    async def _fail(self, job: Job, error: FluxserveError, message: str = "") -> None:
        """Write down why the task is not drawn, unless it is over."""
        why = Reason(code=type(error).__name__, message=message or error.message)
        with contextlib.suppress(_Over):
            if not job.is_over.is_set():
                await self._patiently(job, lambda: self._service.fail(job.task_id, None, why))

    async def _discard(self, job: Job) -> None:
        """Delete what was written for a task that does not need it."""
        kept, job.kept, job.pictures = job.kept, (), {}
        await self._inputs.discard(kept)

    async def _patiently(self, job: Job, work: Callable[[], Awaitable[T]], *, looks: int = 1) -> T:
        """However long the disk or the store is in trouble. Raises _Over, and InputsFull after so many `looks`."""
        while True:
            try:
                return await work()
            except Unavailable as error:
                looks -= isinstance(error, InputsFull)
                if not looks:
                    raise
                facts = {"action": "preparation_waits", "task": job.task_id, "reason": error.message}
                logger.warning("A preparation waits", extra=facts)
                await self._pause(job)

    async def _pause(self, job: Job) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry):
                await job.is_over.wait()
        if job.is_over.is_set():
            raise _Over
