"""The task machine: states, events, one table of transitions.

An acknowledged task ends in exactly one final state. `sources(event)` is what the store's conditional UPDATEs
are made from, so the table below is the only place where a transition is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

#: A task that has ended its engine so often runs alone, once; ending it then too, it is quarantined.
SUSPECT_AFTER = 2
MAX_ATTEMPTS = SUSPECT_AFTER + 1


class State(StrEnum):
    """Where a task is on its way.

    One that prepares waits for the pictures that its request names by URL, one that follows for that of an equal task.
    """

    PREPARING = "preparing"
    QUEUED = "queued"
    FOLLOWING = "following"
    RUNNING = "running"
    READY = "ready"
    REQUEST_MODERATED = "request_moderated"
    CONTENT_MODERATED = "content_moderated"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing can happen to the task any more."""
        return self in FINAL

    @property
    def is_active(self) -> bool:
        """The task still waits or runs."""
        return not self.is_final


class Event(StrEnum):
    """What can happen to a task.

    One that is prepared waits to be drawn, or joins an equal one that it follows from then on.
    It is answered with the picture of an equal task, or promoted to be drawn itself when that one ends without.
    """

    PREPARED = "prepared"
    JOINED = "joined"
    ANSWERED = "answered"
    PROMOTED = "promoted"
    CLAIMED = "claimed"
    RELEASED = "released"
    FINISHED = "finished"
    REQUEST_REFUSED = "request_refused"
    CONTENT_REFUSED = "content_refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset(
    {State.READY, State.REQUEST_MODERATED, State.CONTENT_MODERATED, State.ERROR, State.CANCELLED},
)
ACTIVE = tuple(state for state in State if state not in FINAL)

TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PREPARING, Event.PREPARED): State.QUEUED,
    (State.PREPARING, Event.JOINED): State.FOLLOWING,
    (State.PREPARING, Event.REQUEST_REFUSED): State.REQUEST_MODERATED,
    (State.PREPARING, Event.FAILED): State.ERROR,
    (State.PREPARING, Event.CANCELLED): State.CANCELLED,
    (State.QUEUED, Event.ANSWERED): State.READY,
    (State.QUEUED, Event.CLAIMED): State.RUNNING,
    (State.QUEUED, Event.FAILED): State.ERROR,
    (State.QUEUED, Event.CANCELLED): State.CANCELLED,
    (State.FOLLOWING, Event.ANSWERED): State.READY,
    (State.FOLLOWING, Event.PROMOTED): State.QUEUED,
    (State.FOLLOWING, Event.REQUEST_REFUSED): State.REQUEST_MODERATED,
    (State.FOLLOWING, Event.CONTENT_REFUSED): State.CONTENT_MODERATED,
    (State.FOLLOWING, Event.FAILED): State.ERROR,
    (State.FOLLOWING, Event.CANCELLED): State.CANCELLED,
    (State.RUNNING, Event.RELEASED): State.QUEUED,
    (State.RUNNING, Event.FINISHED): State.READY,
    (State.RUNNING, Event.REQUEST_REFUSED): State.REQUEST_MODERATED,
    (State.RUNNING, Event.CONTENT_REFUSED): State.CONTENT_MODERATED,
    (State.RUNNING, Event.FAILED): State.ERROR,
    (State.RUNNING, Event.CANCELLED): State.CANCELLED,
}


def sources(event: Event) -> tuple[State, ...]:
    """The states in which `event` may happen."""
    return tuple(state for (state, happening) in TRANSITIONS if happening is event)


def target(state: State, event: Event) -> State | None:
    """Where `event` leads from `state`; None where it may not happen."""
    return TRANSITIONS.get((state, event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a task may have ended its engine (`spoiled`), and the furthest step it was lost at (`best_step`)."""

    spoiled: int = 0
    best_step: int = 0

    @property
    def is_exhausted(self) -> bool:
        """The task is quarantined: it ended its engine alone, and before that as often as it takes to be suspected."""
        return self.spoiled >= MAX_ATTEMPTS

    @property
    def is_suspect(self) -> bool:
        """The task runs alone: it can harm no neighbour, and whatever happens, no neighbour did it."""
        return self.spoiled >= SUSPECT_AFTER

    def after_loss(self, *, step: int, suspected: bool) -> Attempts:
        """The count after the worker lost the task at `step`.

        `suspected`: the worker died or hung while the server lived and the task was being drawn. Then the loss counts.
        One that came further than where the task was lost before is the first of its kind, so that a long task
        gets on where workers die of something else; but a loss of a task that ran alone always counts. A restart, a
        death of the whole tree or a drain is not suspected and never counts.
        """
        spoiled = self.spoiled
        if suspected:
            spoiled = 1 if step > self.best_step and not self.is_suspect else spoiled + 1
        return Attempts(spoiled=spoiled, best_step=max(self.best_step, step))
