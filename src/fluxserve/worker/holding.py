"""A claim in a worker's hands, from its arrival until the server has settled its outcome."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fluxserve.engine import pixels
from fluxserve.engine.base import Finished, Pixels
from fluxserve.errors import FluxserveError
from fluxserve.worker import protocol as p

#: Previews of a task are made at most this often.
PREVIEW_INTERVAL_S = 0.25


def ref_of(task_id: str, fence: int) -> str:
    """The engine's name for a claim."""
    return f"{task_id}/{fence}"


def next_in(held: Iterable[Holding], arrived: Iterable[Holding], active: int, capacity: int) -> int:
    """How many of those that have arrived go into the engine now, by turn.

    Where it has no room, it takes what is drawn with the next step for its turn, and what that makes wait stands there
    meanwhile: at most as many as it has room for.
    """
    drawn = sorted(one.assignment.turn for one in held if one.is_drawn)
    batch, number = p.batch(capacity), 0
    for turn in sorted(one.assignment.turn for one in arrived):
        comes_first = active + number < 2 * capacity and turn < next(iter(drawn[batch - 1 :]), math.inf)
        if active + number >= capacity and not comes_first:
            break
        bisect.insort(drawn, turn)
        number += 1
    return number


@dataclass(slots=True, eq=False)
class Holding:
    """One claim; `outcome` is kept until the server has written it down. `is_drawn`: the engine has
    steps to make for it; `is_done`: the engine has nothing more to do for it.

    `pictures` are there from when they are unpacked until the engine has them. `has_moved`: it stands between its first
    and its last step, and was not written down there.
    """

    assignment: p.Assignment
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    admitted_at: float | None = None
    reported_at: float = 0.0
    saved_at: float = 0.0
    has_moved: bool = False
    is_drawn: bool = False
    is_done: bool = False
    outcome: p.Outcome | None = None
    wants_previews: bool = False
    shown_at: float = -PREVIEW_INTERVAL_S

    @property
    def held(self) -> p.Held:
        """The claim as the protocol names it."""
        return p.Held(task_id=self.assignment.task_id, fence=self.assignment.fence)

    def unpacked(self) -> dict[str, Pixels]:
        """The input pictures that came with it, as the generation names them. Raises InputDamaged."""
        files = self.assignment.pictures
        return {
            picture.name: pixels.decode(files.get(picture.name, b""), picture)
            for picture in self.assignment.generation.pictures
        }

    def unpack(self, pictures: Mapping[str, Pixels]) -> None:
        """From now on it holds these, and no longer the files that they came in."""
        self.pictures = pictures
        self.assignment = msgspec.structs.replace(self.assignment, pictures={})

    def is_due(self, now: float, interval: float) -> bool:
        """Whether it should be written down."""
        return self.has_moved and now - self.saved_at >= interval

    @property
    def ref(self) -> str:
        """The claim as the engine names it."""
        return ref_of(self.assignment.task_id, self.assignment.fence)

    def is_to_be_shown(self, now: float) -> bool:
        """Whether its next step should come with a preview."""
        return self.wants_previews and self.is_drawn and now - self.shown_at >= PREVIEW_INTERVAL_S

    def finished(self, drawn: Finished, picture: bytes, scores: Mapping[str, float] | None = None) -> p.Finished:
        """The outcome of a drawn and encoded picture."""
        now = time.monotonic()
        return p.Finished(
            task_id=self.assignment.task_id,
            fence=self.assignment.fence,
            picture=picture,
            drawn_by=drawn.drawn_by,
            duration=now - (self.admitted_at or now),
            facts=dict(drawn.facts),
            warnings=drawn.warnings,
            scores=None if scores is None else dict(scores),
        )

    def withheld(self, scores: Mapping[str, float], about: Literal["input_picture", "picture"]) -> p.Withheld:
        """The outcome of a picture that is refused."""
        held = self.held
        return p.Withheld(task_id=held.task_id, fence=held.fence, scores=dict(scores), about=about)

    def failed(self, error: FluxserveError) -> p.Failed:
        """The outcome of a task that could not be drawn."""
        return p.Failed(
            task_id=self.assignment.task_id,
            fence=self.assignment.fence,
            code=type(error).__name__,
            message=error.message,
        )
