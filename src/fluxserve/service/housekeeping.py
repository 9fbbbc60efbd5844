"""Retention: pictures go first, then finished tasks with their prompts; leftovers of lost attempts go too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from fluxserve.delivery.storage import Storage
from fluxserve.errors import Unavailable
from fluxserve.service.inputs import Inputs
from fluxserve.service.views import Views
from fluxserve.service.waypoints import Waypoints
from fluxserve.settings import Settings
from fluxserve.store.base import Store

logger = logging.getLogger(__name__)
BATCH = 500
#: A picture without a task is an attempt that came too late; it is left alone until no outcome can be under way.
ORPHAN_AGE_S = 600


class Sweeper:
    """Deletes what is past its retention."""

    def __init__(
        self,
        *,
        settings: Settings,
        store: Store,
        storage: Storage,
        waypoints: Waypoints,
        inputs: Inputs,
        views: Views,
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._storage = storage
        self._waypoints = waypoints
        self._inputs = inputs
        self._views = views
        self._now = now

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(self._settings.sweep_interval)
            try:
                await self.sweep()
            except Unavailable as error:
                logger.warning(error.message, extra={"action": "sweep_failed"})
            except OSError:
                logger.exception("The folder of pictures cannot be read", extra={"action": "sweep_failed"})

    async def sweep(self) -> None:
        """One sweep: 1. pictures, 2. tasks, 3. orphaned files of every kind."""
        now = self._now()
        pictures = await self._sweep_pictures(now - self._settings.picture_retention)
        tasks = await self._sweep_tasks(now - self._settings.task_retention)
        orphaned_before = now - max(ORPHAN_AGE_S, self._settings.lease * 2)
        orphans = await self._sweep_orphans(orphaned_before) + await self._waypoints.sweep(orphaned_before)
        orphans += await self._inputs.sweep(orphaned_before)
        if pictures or tasks:
            self._views.forget_finished()
        if pictures or tasks or orphans:
            logger.info("Swept", extra={"action": "swept", "pictures": pictures, "tasks": tasks, "orphans": orphans})

    async def _sweep_pictures(self, finished_before: float) -> int:
        count = 0
        while pictures := await self._store.old_pictures(finished_before, BATCH):
            unheld = await self._store.forget_pictures(pictures)
            # A picture that another task holds too stays for that one's time.
            gone = [picture.object_name for picture, is_unheld in zip(pictures, unheld, strict=True) if is_unheld]
            await self._delete(gone)
            count += len(pictures)
        return count

    async def _sweep_tasks(self, finished_before: float) -> int:
        count = 0
        while deleted := await self._store.delete_old(finished_before, BATCH):
            count += deleted
        return count

    async def _sweep_orphans(self, written_before: float) -> int:
        names = await asyncio.to_thread(lambda: list(self._storage.names_older_than(written_before)))
        count = 0
        for group in _groups(names, BATCH):
            known = await self._store.known_objects(group)
            count += await self._delete(set(group) - known)
        return count

    async def _delete(self, names: Iterable[str]) -> int:
        """How many could be deleted; what could not is tried again as a picture that no task refers to."""
        count = 0
        for name in names:
            try:
                await asyncio.to_thread(self._storage.delete, name)
                count += 1
            except OSError:
                logger.exception("A picture could not be deleted", extra={"action": "sweep_failed"})
        return count


def _groups(names: list[str], size: int) -> Iterable[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
