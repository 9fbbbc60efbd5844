"""The waypoints that workers send, each written down beside everything else that they say.

What it does not know: connections, and where waypoints are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial

from fluxserve.api.worker_session import Session
from fluxserve.service.service import Service
from fluxserve.worker import protocol as p


class WaypointWrites:
    """One write at a time for each task; of those that come meanwhile, only the newest is written next."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._newest: dict[str, Callable[[], Coroutine[None, None, None]]] = {}
        self._writes: dict[str, asyncio.Task[None]] = {}

    def begin(self, session: Session, message: p.Waypoint) -> None:
        """Begin to write it down, if the session still draws the task."""
        claim = session.claim_of(message.task_id, message.fence)
        if claim is None or claim.settling:
            return
        fingerprint = session.hello.fingerprints.get(claim.generation.model, "")
        self._newest[message.task_id] = partial(
            self._service.keep_waypoint, message.task_id, message.fence, claim.generation, fingerprint, message.data
        )
        if message.task_id not in self._writes:
            self._writes[message.task_id] = asyncio.create_task(self._write(message.task_id))

    async def wait_for(self, task_ids: Iterable[str]) -> None:
        """Return when all that came of these tasks is written down."""
        if writes := [self._writes[task_id] for task_id in task_ids if task_id in self._writes]:
            await asyncio.wait(writes)

    async def wait_for_all(self, patience: float) -> None:
        """Return when all is written down, at most `patience` seconds later."""
        if self._writes:
            await asyncio.wait(self._writes.values(), timeout=patience)

    async def _write(self, task_id: str) -> None:
        try:
            while (keep := self._newest.pop(task_id, None)) is not None:
                await keep()
        finally:
            del self._writes[task_id]
