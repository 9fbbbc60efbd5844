"""A wish: a generation whose prompt is still to be read.

What it does not know: who reads it and when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxserve.catalogue import Generation
from fluxserve.engine import waypoint
from fluxserve.engine.base import Pixels
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.means import USUAL, Means
from fluxserve.engine.trajectory import Trajectory
from fluxserve.errors import WaypointRefused


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wish:
    """What waits for its prompt to be read, the waypoint it may go on from, and how it is to be drawn."""

    generation: Generation
    turn: float
    flow: str
    pictures: Mapping[str, Pixels] = field(default_factory=dict)
    waypoint: bytes | None = None
    means: Means = USUAL

    @property
    def model(self) -> str:
        """Of the catalogue."""
        return self.generation.model

    def start(self, ref: str, drawer: Drawer) -> Trajectory:
        """Read, and as far as its waypoint, where that fits."""
        if self.waypoint is not None:
            try:
                return drawer.resume(
                    ref, self.generation, self.turn, self.waypoint, self.flow, pictures=self.pictures
                )  # fmt: skip
            except WaypointRefused as error:
                waypoint.log_refused(ref, error)
        return drawer.start(ref, self.generation, self.turn, self.means, self.flow, pictures=self.pictures)
