"""What workers hand in and what they lose, written down however long the disk or the store is in trouble.

What it does not know: connections, and who gets which task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence

from fluxserve.api.worker_session import Claim, Session, losses_of
from fluxserve.api.worker_waypoints import WaypointWrites
from fluxserve.catalogue import Generation
from fluxserve.errors import FluxserveError, ModerationFailed
from fluxserve.service.service import Lost, Service
from fluxserve.store.base import Drawn, Reason
from fluxserve.worker import protocol as p

logger = logging.getLogger(__name__)
RETRY_S = 1.0


class Outcomes:
    """Writes outcomes and losses down, beside everything else."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._waypoints = WaypointWrites(service)
        self._writes: set[asyncio.Task[None]] = set()

    def hand_in(self, session: Session, outcome: p.Outcome) -> None:
        """Begin to write an outcome down; the worker is told when that is done."""
        if (claim := session.claim_of(outcome.task_id, outcome.fence)) is not None:
            claim.settling = True
        hold(self._writes, self._settle(session, outcome))

    def write_down(self, session: Session, waypoint: p.Waypoint) -> None:
        """Begin to write down where a drawing stands."""
        self._waypoints.begin(session, waypoint)

    def give_back(self, claims: Mapping[str, Claim], *, suspected: bool = False) -> None:
        """Begin to put claims back in the queue."""
        if losses := losses_of(claims, suspected=suspected):
            hold(self._writes, self._release(losses))

    async def write_down_all(self, patience: float) -> None:
        """Wait for what is being written down, at most `patience` seconds."""
        await self._waypoints.wait_for_all(patience)
        if self._writes:
            await asyncio.wait(set(self._writes), timeout=patience)

    async def _settle(self, session: Session, outcome: p.Outcome) -> None:
        """Write an outcome down, then tell the worker that it may forget the task.

        While the disk or the database cannot take it, it is tried again: a drawn picture is not thrown away.
        """
        while True:
            try:
                accepted = await self._write_down(session, outcome)
                break
            except (FluxserveError, OSError) as error:
                reason = error.message if isinstance(error, FluxserveError) else "The picture cannot be written."
                logger.warning(
                    "An outcome waits", extra={"action": "outcome_waits", "task": outcome.task_id, "reason": reason}
                )
                await asyncio.sleep(RETRY_S)
        if session.claim_of(outcome.task_id, outcome.fence) is not None:
            del session.claims[outcome.task_id]
        session.send(p.Settled(task_id=outcome.task_id, fence=outcome.fence, accepted=accepted))

    async def _write_down(self, session: Session, outcome: p.Outcome) -> bool:
        claim = session.claim_of(outcome.task_id, outcome.fence)
        if claim is None:
            return False
        if isinstance(outcome, p.Finished):
            drawn = Drawn(
                drawn_by=outcome.drawn_by,
                duration=outcome.duration,
                facts=outcome.facts,
                warnings=outcome.warnings,
                scores=outcome.scores,
            )
            return await self._service.complete(
                outcome.task_id, outcome.fence, claim.generation, outcome.picture, drawn
            )
        if isinstance(outcome, p.Withheld):
            return await self._withhold(claim.generation, outcome)
        reason = Reason(code=outcome.code, message=outcome.message)
        return await self._service.fail(outcome.task_id, outcome.fence, reason)

    async def _withhold(self, generation: Generation, outcome: p.Withheld) -> bool:
        """A worker refused a picture: that it may is judged here again, and there is none to deliver either way."""
        try:
            refusal = self._service.moderation.judge_scores(generation, outcome.scores, outcome.about)
            if refusal is not None:
                return await self._service.refuse(outcome.task_id, outcome.fence, refusal)
            reason = Reason(code=ModerationFailed.__name__, message="A picture was refused that may be seen.")
        except ModerationFailed as error:
            reason = Reason(code=type(error).__name__, message=error.message)
        return await self._service.fail(outcome.task_id, outcome.fence, reason)

    async def _release(self, losses: Sequence[Lost]) -> None:
        """However long the store is in trouble: nobody else knows of these claims.

        What their worker wrote down last comes first: the next one goes on from there.
        """
        await self._waypoints.wait_for(loss.task_id for loss in losses)
        while True:
            try:
                return await self._service.release(losses)
            except FluxserveError as error:
                logger.warning("A release waits", extra={"action": "release_waits", "reason": error.message})
                await asyncio.sleep(RETRY_S)


def hold(tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
    """Run `work` beside the others; the loop alone would not keep it from being collected."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
