"""The verbs. Each changes at most one thing in the store, in one transaction, and then shows it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fluxserve.catalogue import Generation, InputPicture
from fluxserve.delivery.storage import Storage, new_object_name
from fluxserve.errors import FluxserveError, ModerationFailed, NotSigned, QueueFull, ShuttingDown
from fluxserve.metrics import Metrics
from fluxserve.service import counting
from fluxserve.service.acceptance import Acceptance
from fluxserve.service.disk import DiskGate
from fluxserve.service.forecast import Forecast, Outlook
from fluxserve.service.inputs import Inputs
from fluxserve.service.keyring import Keyring
from fluxserve.service.moderation import Moderation
from fluxserve.service.orders import Estimate, Order
from fluxserve.service.preparing import Preparing
from fluxserve.service.previews import Previews
from fluxserve.service.sharing import Sharing
from fluxserve.service.signing import Signing
from fluxserve.service.upsampling import Enriched, Upsampling
from fluxserve.service.views import Listed, Listing, View, Views
from fluxserve.service.watches import Signal, Watches
from fluxserve.service.waypoints import Waypoints
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.store.base import (
    QUARANTINE,
    Cancellation,
    ClaimRequest,
    Completion,
    Drawn,
    Failure,
    Lease,
    Loss,
    Offer,
    PageRequest,
    Reason,
    Refused,
    Store,
    TaskRecord,
)
from fluxserve.store.submissions import KeptInput, Preparation, Refusal
from fluxserve.tasks.task import State

logger = logging.getLogger(__name__)
#: Tasks whose pictures are fetched at once: each has a file of up to 20 MB in memory, or what was decoded of it.
FETCHED_AT_ONCE = 8
QUARANTINED = Reason(
    code=QUARANTINE,
    message="Quarantined: this request ended what draws it three times, the last time with nothing else beside it.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A claim that ended without an outcome. `suspected`: the task itself may be the cause."""

    task_id: str
    fence: int
    step: int = 0
    suspected: bool = False


class Service:
    """The product's verbs over a store and a storage."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        storage: Storage,
        waypoints: Waypoints,
        inputs: Inputs,
        keyring: Keyring,
        sharing: Sharing,
        signing: Signing,
        webhooks: Webhooks,
        moderation: Moderation,
        upsampling: Upsampling,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.settings = settings
        self.keyring = keyring
        self.signing = signing
        self.webhooks = webhooks
        self.metrics = Metrics()
        self.metrics.read_from(lambda: counting.readings(self.views, self.forecast, self.webhooks, now()))
        self.views = Views(on_change=self._changed)
        self.watches = Watches()
        self.preparing = Preparing(FETCHED_AT_ONCE)
        self.previews = Previews(settings.preview_memory)
        self.forecast = Forecast(now)
        self.queue_changed = Signal()
        #: Called with the id of each task that was cancelled, as soon as that is written down.
        self.on_cancelled: list[Callable[[str], None]] = []
        #: Called with the id of each task whose previews are wanted from now on.
        self.on_previews_wanted: list[Callable[[str], None]] = []
        self._store = store
        self._storage = storage
        self._waypoints = waypoints
        self._inputs = inputs
        self._sharing = sharing
        self.moderation = moderation
        self.upsampling = upsampling
        self._acceptance = Acceptance(
            settings=settings, store=store, inputs=inputs, sharing=sharing, webhooks=webhooks, moderation=moderation,
            upsampling=upsampling, now=now, rng=rng,
        )  # fmt: skip
        self._now = now
        self._stopping = False
        self._disk = DiskGate(settings.data_dir, settings.min_free_disk, now)

    async def start(self) -> list[TaskRecord]:
        """Show every unfinished task; returns the running ones, whose workers may be gone."""
        await self._forget_lost_pictures()
        records = await self._store.active()
        await self._waypoints.load()
        await self._inputs.load()
        await self.webhooks.load()
        for record in records:
            self._show(record)
        return [record for record in records if record.worker_id is not None]

    async def _forget_lost_pictures(self) -> None:
        """Answer no request with a picture that is gone: the database may be older than the folder of pictures."""
        cached = await self._store.cached_objects()
        stored = await asyncio.to_thread(lambda: set(self._storage.names_older_than(math.inf))) if cached else set()
        await self._store.forget_cached([name for name in cached if name not in stored])

    async def welcome(self, worker_id: str, fingerprints: Mapping[str, str]) -> None:
        """A worker draws these models from now on. What waits and was drawn so before is answered at once."""
        now = self._now()
        offers = [
            Offer(model=model, fingerprints=(fingerprint,), now=now)
            for model, fingerprint in fingerprints.items()
            if fingerprint not in self._sharing.fingerprints(model)
        ]
        # First of all: whatever is submitted from here on is answered by itself, and what came before by the offers.
        self._sharing.arrive(worker_id, fingerprints)
        try:
            answered = await self._store.answer_many(offers)
        except FluxserveError:
            self._sharing.leave(worker_id)
            raise
        self.forecast.arrive(worker_id, fingerprints)
        records = list(itertools.chain.from_iterable(answered))
        for record in records:
            self._show(record)
        await self._let_go(records)

    def part(self, worker_id: str) -> None:
        """The worker is gone."""
        self._sharing.leave(worker_id)
        self.forecast.leave(worker_id)

    def stop_accepting(self) -> None:
        """From now on submits are refused and nothing is claimed."""
        self._stopping = True

    async def submit(self, order: Order) -> TaskRecord:
        """Accept an order durably; an order with a used idempotency key answers the task it made before."""
        self._check_gates()
        self.keyring.spend_request(order.key, self._now())
        record, is_new = await self._acceptance.accept(order)
        if is_new:
            action = "moderated" if record.refusal else "accepted"
            logger.info(f"Task {action}", extra={"action": action, **record.log_context})
            self._show(record)
        return record

    async def estimate(self, order: Order) -> Estimate:
        """What an order would cost. Nothing is moderated, reserved or kept."""
        return await self._acceptance.estimate(order)

    async def prepare(
        self,
        record: TaskRecord,
        request: Preparation,
        pictures: Mapping[str, InputPicture],
        inputs: tuple[KeptInput, ...],
        enriched: Enriched | None = None,
    ) -> bool:
        """A task's pictures and prompt are there (see `Acceptance.prepare`); False where it has ended."""
        prepared = await self._acceptance.prepare(record, request, pictures, inputs, enriched)
        if prepared is None:
            return False
        logger.info("Task prepared", extra={"action": "prepared", **prepared.log_context})
        self._show(prepared)
        await self._let_go([prepared])
        return True

    def _show(self, record: TaskRecord) -> View:
        """Show a task as it is written down, and what its change did to those that followed it.

        An unfinished one never shows less than where it can go on from.
        """
        kept = None if record.state.is_final else self._waypoints.get(record.id)
        view = self.views.put(record) if kept is None else self.views.put(record, step=kept.step, steps=kept.steps)
        if record.state is State.PREPARING:
            self.preparing.put(record.id, record.account_id)
        else:
            self.preparing.drop(record.id)
        self.webhooks.ended(record)
        counting.count(self.metrics, record)
        if record.state is State.FOLLOWING:
            self.forecast.move_up(self.views.drawn(view).id, record.turn)
        else:
            self.forecast.put(record, view.progress)
        for follower in record.followers:
            self._show(follower)
            if follower.state is State.QUEUED:
                logger.info("Task takes an equal one's place", extra={"action": "promoted", **follower.log_context})
        for task_id, turn in record.moved:
            self.forecast.move_up(task_id, turn)
        if record.state is State.QUEUED or record.moved:
            self.queue_changed.fire()
        if record.is_answered:
            logger.info("Task answered", extra={"action": "answered", **record.log_context})
        return view

    async def _let_go(self, records: Sequence[TaskRecord]) -> None:
        """Delete what those of them that have ended were drawn from, and those that ended with them."""
        shown = itertools.chain.from_iterable((record, *record.followers) for record in records)
        ended = [record.id for record in shown if record.state.is_final]
        await self._waypoints.forget(ended)
        await self._inputs.forget(ended)

    def _check_gates(self) -> None:
        if self._stopping:
            raise ShuttingDown("The server is stopping. Try again in a moment.")
        if len(self.views) >= self.settings.max_queue:
            raise QueueFull(f"{len(self.views)} tasks wait already, and more are not accepted. Try again later.")
        self._disk.check()

    async def look(self, task_id: str) -> View | None:
        """The task as polls see it; the store is asked only for finished tasks that left the memory."""
        view = self.views.get(task_id)
        if view is None:
            record = (await self._store.get_many([task_id]))[0]
            # What came into the memory while the store was read is newer than what was read.
            view = self.views.get(task_id) or (None if record is None else self.views.put(record))
        return view

    async def look_own(self, task_id: str, account_id: str) -> View | None:
        """An account's own task. Another's takes as long as one that nobody has: a look into the store."""
        view = self.views.get(task_id)
        if view is None or view.account_id != account_id:
            record = await self._store.get_own(task_id, account_id)
            return None if record is None else self.views.get(task_id) or self.views.put(record)
        return view

    async def record(self, task_id: str) -> TaskRecord | None:
        """The task as it is written down."""
        return (await self._store.get_many([task_id]))[0]

    async def cancel(self, task_id: str, account_id: str) -> View | None:
        """End a task of the account and give its credits back; one that has ended stays as it is.

        None: the account has no such task. What its worker may still hand in comes too late and is thrown away.
        """
        view = await self.look_own(task_id, account_id)
        if view is None or view.state.is_final:
            return view
        drawn = self.forecast.drawn(task_id)
        cancellation = Cancellation(task_id=task_id, account_id=account_id, drawn=drawn, now=self._now())
        record = (await self._store.cancel_many([cancellation]))[0]
        if record is None:  # it ended meanwhile
            return await self.look(task_id)
        for heir in record.followers:
            self._waypoints.pass_on(task_id, heir.id)
        view = self._show(record)
        for tell in self.on_cancelled:
            tell(task_id)
        await self._let_go([record])
        logger.info("Task cancelled", extra={"action": "cancelled", **record.log_context})
        return view

    async def credits(self, account_id: str) -> int | None:
        """What is left, in thousandths of a credit; None: the account is unlimited."""
        return await self._store.balance(account_id)

    async def list_tasks(self, request: PageRequest) -> Listing:
        """An account's own tasks as they are written down, with the progress of those that are drawn."""
        page = await self._store.page(request)
        return Listing(
            tasks=tuple(Listed(record=record, progress=self._progress(record)) for record in page.records),
            end=page.end,
        )

    def _progress(self, record: TaskRecord) -> float:
        view = self.views.get(record.id) if record.state.is_active else None
        return 0.0 if view is None else view.progress

    def outlook(self, view: View) -> Outlook | None:
        """When the task's turn comes; one that follows another waits for that one's."""
        return self.forecast.outlook(self.views.drawn(view).id)

    async def claim(
        self,
        worker_id: str,
        models: Sequence[str],
        limit: int,
        fingerprints: Mapping[str, str],
        before: float = math.inf,
    ) -> list[TaskRecord]:
        """The next tasks in turn for a worker; none while the disk has no room for their pictures.

        `before`: only those of a lower turn.
        """
        if self._stopping or self._disk.is_low:
            return []
        now = self._now()
        request = ClaimRequest(
            worker_id=worker_id,
            models=tuple(models),
            limit=limit,
            lease_until=now + self.settings.lease,
            now=now,
            fingerprints=fingerprints,
            strangers_since=now - self.settings.waypoint_patience,
            before=before,
        )
        records = (await self._store.claim_many([request]))[0]
        for record in records:
            self._show(record)
            logger.info("Task claimed", extra={"action": "claimed", "worker": worker_id, **record.log_context})
        return records

    @property
    def waypoint_interval(self) -> float | None:
        """How often workers should write down what they draw; None: never."""
        return self.settings.waypoint_interval if self.settings.waypoint_budget else None

    def has_waypoint(self, task_id: str) -> bool:
        """Whether the task's drawing was written down."""
        return self._waypoints.get(task_id) is not None

    async def read_waypoint(self, record: TaskRecord, fingerprints: Mapping[str, str]) -> bytes | None:
        """What a worker of these fingerprints can go on from; None: it has to start over."""
        fingerprint = fingerprints.get(record.generation.model, "")
        return await self._waypoints.read(record.id, record.generation, fingerprint)

    async def read_inputs(self, record: TaskRecord) -> dict[str, bytes]:
        """The task's input pictures by name, as files. Raises InputDamaged where one is gone."""
        return await self._inputs.read(record) if record.generation.pictures else {}

    async def keep_waypoint(
        self, task_id: str, fence: int, generation: Generation, fingerprint: str, data: bytes
    ) -> None:
        """Where the drawing stands, for the worker that may have to go on; the disk's last room is for pictures."""
        if not self._disk.is_low:
            await self._waypoints.keep(task_id, fence, generation, fingerprint, data)

    async def held(self, worker_id: str, claims: Sequence[tuple[str, int]]) -> list[TaskRecord]:
        """Those of a returning worker's claims (task, fence) that still hold."""
        records = await self._store.get_many([task_id for task_id, _ in claims])
        return [
            record
            for (_, fence), record in zip(claims, records, strict=True)
            if record is not None
            and record.worker_id == worker_id
            and record.fence == fence
            # What ended while the store was read shows in the memory alone.
            and not ((view := self.views.get(record.id)) and view.state.is_final)
        ]

    async def extend(self, worker_id: str) -> None:
        """The worker lives: prolong its leases."""
        await self._store.extend_many([Lease(worker_id=worker_id, until=self._now() + self.settings.lease)])

    async def complete(self, task_id: str, fence: int, generation: Generation, picture: bytes, drawn: Drawn) -> bool:
        """Judge, sign and keep the picture, then settle the task; False when the claim was lost before.

        The picture is safe on disk before the task is ready. Its name is new for every attempt, so an attempt
        that comes too late can never touch the picture that was delivered. Raises Unavailable or OSError when
        nothing was written, and then leaves no copy: a caller that tries again for minutes must not fill the disk.
        """
        suffix = generation.output_format
        try:
            if (refusal := await self.moderation.judge_picture(generation, picture, drawn.scores)) is not None:
                return await self.refuse(task_id, fence, refusal)
            sealed = await self.signing.seal(picture, suffix, drawn)
        except (NotSigned, ModerationFailed) as error:
            return await self.fail(task_id, fence, Reason(code=type(error).__name__, message=error.message))
        object_name = new_object_name(suffix)
        completion = Completion(
            task_id=task_id, fence=fence, object_name=object_name, drawn=sealed.drawn, used=None,
            kept=self._sharing.kept(sealed), now=self._now(),
        )  # fmt: skip
        try:
            await asyncio.to_thread(self._storage.put, object_name, sealed.picture)
            record = (await self._store.complete_many([completion]))[0]
        except (FluxserveError, OSError):
            with contextlib.suppress(OSError):  # what went wrong first is what the caller has to know
                await asyncio.to_thread(self._storage.delete, object_name)
            raise
        if record is None:
            await asyncio.to_thread(self._storage.delete, object_name)
            logger.info("Late outcome refused", extra={"action": "refused", "task": task_id, "fence": fence})
            return False
        self._show(record)
        await self._let_go([record])
        logger.info("Task ready", extra={"action": "ready", "seconds": round(drawn.duration, 3), **record.log_context})
        return True

    async def refuse(self, task_id: str, fence: int, refusal: Refusal) -> bool:
        """End the task and those that wait for its picture as moderated; False when the claim was lost before."""
        is_drawn = refusal.about == "picture"
        refused = Refused(
            task_id=task_id, fence=fence, state=State.CONTENT_MODERATED if is_drawn else State.REQUEST_MODERATED,
            refusal=replace(refusal, charged=is_drawn and not self.settings.moderation_refund),
            drawn=1.0 if is_drawn else 0.0, now=self._now(),
        )  # fmt: skip
        record = (await self._store.refuse_many([refused]))[0]
        if record is None:
            return False
        self._show(record)
        await self._let_go([record])
        extra = {"action": "moderated", "categories": ",".join(refusal.categories), **record.log_context}
        logger.info("Task moderated", extra=extra)
        return True

    async def fail(self, task_id: str, fence: int | None, reason: Reason) -> bool:
        """End the task in error and give its credits back; False when the claim was lost before.

        `fence` None: nobody holds it.
        """
        drawn = self.forecast.drawn(task_id)
        failure = Failure(task_id=task_id, fence=fence, reason=reason, drawn=drawn, now=self._now())
        record = (await self._store.fail_many([failure]))[0]
        if record is None:
            return False
        self._show(record)
        await self._let_go([record])
        logger.warning("Task failed", extra={"action": "failed", "code": reason.code, **record.log_context})
        return True

    async def release(self, lost: Sequence[Lost]) -> None:
        """Put lost claims back in the queue, or quarantine the tasks that have spoiled their last attempt."""
        if not lost:
            return
        now = self._now()
        values = [
            Loss(
                task_id=claim.task_id, fence=claim.fence, step=claim.step,
                suspected=claim.suspected, reason=QUARANTINED, now=now,
            )
            for claim in lost
        ]  # fmt: skip
        suspects = {claim.task_id for claim in lost if claim.suspected}
        records = [record for record in await self._store.release_many(values) if record is not None]
        for record in records:
            self._show(record)
            counting.log_release(record, suspected=record.id in suspects)
        await self._let_go(records)

    async def lapsed(self) -> list[TaskRecord]:
        """Running tasks whose lease has ended."""
        return await self._store.lapsed(self._now())

    def advance(self, task_id: str, step: int, steps: int) -> None:
        """Show a step."""
        self.views.advance(task_id, step, steps)
        self.forecast.advance(task_id, step / steps if steps else 0.0)

    def want_previews(self, view: View) -> None:
        """Somebody looks at the task: until its end previews of what is drawn for it are kept."""
        drawn = self.views.drawn(view)
        if drawn.state.is_active and self.previews.want(drawn.id):
            for tell in self.on_previews_wanted:
                tell(drawn.id)

    def preview(self, view: View) -> bytes | None:
        """What the task is heading for, if that is known; whoever asks wants to see more."""
        self.want_previews(view)
        return self.previews.get(self.views.drawn(view).id)

    def show_preview(self, task_id: str, picture: bytes) -> None:
        """Show what the task is heading for, and those that follow it."""
        self.previews.put(task_id, picture)
        for shown in (task_id, *self.views.followers(task_id)):
            self.watches.tell(shown, is_final=False)

    def _changed(self, view: View) -> None:
        if view.state.is_final:
            self.previews.forget(view.id)
        self.watches.tell(view.id, is_final=view.state.is_final)
