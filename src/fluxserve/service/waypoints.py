"""Waypoints on the server: written beside the pictures within a budget, read for the next worker, gone with the task.

They come from workers and go to workers, so they are checked both ways. Nothing here ends a task: where a waypoint
cannot be kept, read or believed, the task starts over when it has to, and a line in the log says why.
What it does not know: which worker gets which task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from fluxserve.catalogue import Generation
from fluxserve.delivery.storage import Storage, new_object_name
from fluxserve.engine import waypoint
from fluxserve.errors import FluxserveError, PictureGone, WaypointRefused
from fluxserve.store.base import KeptWaypoint, NewWaypoint, Store

logger = logging.getLogger(__name__)


class Waypoints:
    """The newest waypoint of each unfinished task. Rows of the store decide; here they are in memory, oldest first."""

    def __init__(self, *, store: Store, storage: Storage, budget: int, now: Callable[[], float]) -> None:
        self._store = store
        self._storage = storage
        self._budget = budget
        self._now = now
        self._kept: dict[str, KeptWaypoint] = {}
        #: One is written at a time, so that all together stay within the budget.
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        """Know what an earlier server kept."""
        self._kept = {kept.task_id: kept for kept in await self._store.waypoints()}

    def get(self, task_id: str) -> KeptWaypoint | None:
        """The task's waypoint."""
        return self._kept.get(task_id)

    async def keep(self, task_id: str, fence: int, generation: Generation, fingerprint: str, data: bytes) -> None:
        """Check what a worker of `fingerprint` handed over for its claim, and keep it in place of the one before."""
        try:
            reached = await asyncio.to_thread(waypoint.decode, data, generation, fingerprint)
            kept = KeptWaypoint(
                task_id=task_id,
                object_name=new_object_name("safetensors"),
                fingerprint=fingerprint,
                step=reached.step,
                steps=reached.steps,
                size=len(data),
            )
            async with self._writing:
                await self._write(kept, fence, data)
        except WaypointRefused as error:
            _log_not_kept(task_id, error.message)
        except (FluxserveError, OSError):
            _log_not_kept(task_id, "The disk or the database could not take it.")

    async def _write(self, kept: KeptWaypoint, fence: int, data: bytes) -> None:
        """It is safe on the disk before the store names it, and only then the one before is deleted."""
        others = [other for other in self._kept.values() if other.task_id != kept.task_id]
        await self.drop(_oldest(others, kept.size + sum(other.size for other in others) - self._budget))
        accepted = False
        try:
            await asyncio.to_thread(self._storage.put, kept.object_name, data)
            new = NewWaypoint(waypoint=kept, fence=fence, now=self._now())
            accepted = (await self._store.keep_waypoints([new]))[0]
        finally:
            # Its claim was lost, or it cannot be kept: then it is the new one that goes.
            former = self._kept.pop(kept.task_id, None) if accepted else kept
            if accepted:
                self._kept[kept.task_id] = kept
            await self._delete([former] if former is not None else [])

    async def read(self, task_id: str, generation: Generation, fingerprint: str) -> bytes | None:
        """What a worker of `fingerprint` can go on from; None: the task starts over."""
        kept = self._kept.get(task_id)
        if kept is None:
            return None
        context = {"task": task_id, "step": kept.step, "steps": kept.steps}
        if kept.fingerprint != fingerprint:
            logger.warning("Task starts over on another kind of worker", extra={"action": "starts_over", **context})
            return None
        try:
            data = await asyncio.to_thread(self._read, kept.object_name)
            await asyncio.to_thread(waypoint.decode, data, generation, fingerprint)
        except (PictureGone, WaypointRefused, OSError) as error:
            reason = error.message if isinstance(error, WaypointRefused) else "It is gone, or cannot be read."
            logger.warning(
                "Task starts over: its waypoint is of no use",
                extra={"action": "starts_over", "reason": reason, **context},
            )
            with contextlib.suppress(FluxserveError):  # the next one takes its place
                await self.drop([kept])
            return None
        logger.info("Task goes on", extra={"action": "goes_on", **context})
        return data

    def _read(self, object_name: str) -> bytes:
        with self._storage.open(object_name) as file:
            return file.read(file.size)

    async def drop(self, waypoints: Sequence[KeptWaypoint]) -> None:
        """Their tasks start over when they lose their workers."""
        await self._store.drop_waypoints(waypoints)
        for kept in waypoints:
            if self._kept.get(kept.task_id) is kept:
                del self._kept[kept.task_id]
                logger.info("Waypoint dropped", extra={"action": "waypoint_dropped", "task": kept.task_id})
        await self._delete(waypoints)

    async def forget(self, task_ids: Iterable[str]) -> None:
        """These tasks have ended, and their rows with them."""
        await self._delete([kept for task_id in task_ids if (kept := self._kept.pop(task_id, None)) is not None])

    def pass_on(self, task_id: str, heir_id: str) -> None:
        """The heir has taken the task's place, and the store has given it the task's waypoint."""
        if (kept := self._kept.pop(task_id, None)) is not None:
            self._kept[heir_id] = replace(kept, task_id=heir_id)

    async def sweep(self, written_before: float) -> int:
        """Delete the files of servers that died while they wrote or deleted; how many."""
        names = await asyncio.to_thread(lambda: set(self._storage.names_older_than(written_before)))
        orphans = names - {kept.object_name for kept in await self._store.waypoints()}
        for name in orphans:
            await asyncio.to_thread(self._storage.delete, name)
        return len(orphans)

    async def _delete(self, waypoints: Sequence[KeptWaypoint]) -> None:
        for kept in waypoints:
            with contextlib.suppress(OSError):  # the sweeper tries again
                await asyncio.to_thread(self._storage.delete, kept.object_name)


def _oldest(waypoints: Sequence[KeptWaypoint], size: int) -> list[KeptWaypoint]:
    """The first of them, as many as take `size` bytes together. Raises WaypointRefused where all take less."""
    chosen: list[KeptWaypoint] = []
    for kept in waypoints:
        if size <= 0:
            break
        chosen.append(kept)
        size -= kept.size
    if size > 0:
        raise WaypointRefused("It alone is over the budget.")
    return chosen


def _log_not_kept(task_id: str, reason: str) -> None:
    logger.warning("A waypoint was not kept", extra={"action": "waypoint_not_kept", "task": task_id, "reason": reason})
