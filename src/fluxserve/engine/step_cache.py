"""Step caches: which steps of a picture are made, and which are foretold from those before them.

Which they are follows from a step's number alone, so that a picture comes out the same however it was scheduled. What a
foretold step is made of is not written down: a waypoint is of the last step from which on nothing earlier is needed.
`taylor` goes on along the line through the last two velocities; `first-block` makes the first block only, and adds what
the others last added (`first_block`).
What it does not know: networks, trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxserve.settings import StepCacheChoice

if TYPE_CHECKING:
    from torch import Tensor

#: Pictures of fewer steps have none to spare.
_FEWEST_STEPS = 8
#: One in so many steps decides what is where: those at the start are made.
_COMPOSING = 7
#: Every so many steps after them the last is foretold; it takes so many made ones right before it.
_CYCLE = {"taylor": 3, "first-block": 2}
_TAKES = {"taylor": 2, "first-block": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Velocity:
    """What a made step went along, at noise level `sigma`."""

    sigma: float
    velocity: Tensor


@dataclass(slots=True)
class Rest:
    """What all blocks but the first added in the last step that was made (rows, tokens, width): the next one's."""

    added: Tensor | None = None


def is_made(cache: StepCacheChoice, step: int, steps: int) -> bool:
    """Whether the step (from 0) of so many is made by the whole network."""
    first = max(2, steps // _COMPOSING)
    if cache == "off" or steps < _FEWEST_STEPS or step < first or step >= steps - 1:
        return True
    cycle = _CYCLE[cache]
    return (step - first) % cycle != cycle - 1


def needs_nothing(cache: StepCacheChoice, step: int, steps: int) -> bool:
    """Whether a picture can go on from before the step without anything of the steps before it."""
    takes = 0 if cache == "off" else _TAKES[cache]
    return all(is_made(cache, later, steps) for later in range(step, min(step + takes, steps)))


def foretold(made: Sequence[Velocity], sigma: float) -> Tensor:
    """The velocity at `sigma` on the line through the last two."""
    before, last = made
    return last.velocity + (last.velocity - before.velocity) * ((sigma - last.sigma) / (last.sigma - before.sigma))
