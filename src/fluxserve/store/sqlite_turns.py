"""The SQL of fair turns on SQLite: the clock, and where each key's flows end. The rule itself is `tasks.turns`."""

from __future__ import annotations

import sqlite3

import msgspec

from fluxserve.store.base import Submission
from fluxserve.tasks.turns import FRESH, Place, moved_clock, next_place

SELECT_CLOCK = "SELECT turn FROM clock"
MOVE_CLOCK = "UPDATE clock SET turn = ?"
SELECT_ENDS = "SELECT ends FROM api_keys WHERE id = ?"
WRITE_ENDS = "UPDATE api_keys SET ends = ? WHERE id = ?"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[float, ...]).decode


class Turns:
    """Hands out places in one transaction; what it changed is written at its end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (self._clock,) = connection.execute(SELECT_CLOCK).fetchone()
        self._ends: dict[str, tuple[float, ...]] = {}
        self._taken: set[str] = set()

    @property
    def now(self) -> Place:
        """Of a task that nobody draws."""
        return Place(start=self._clock, turn=self._clock)

    def next(self, new: Submission) -> Place:
        """The place that the key's next task would take."""
        return self._after(new)[0]

    def take(self, new: Submission) -> Place:
        """The key's next place."""
        place, self._ends[new.key_id] = self._after(new)
        self._taken.add(new.key_id)
        return place

    def write(self) -> None:
        """Write down where the flows end now."""
        self._connection.executemany(
            WRITE_ENDS, [(_encode(self._ends[key_id]).decode(), key_id) for key_id in self._taken]
        )

    def _after(self, new: Submission) -> tuple[Place, tuple[float, ...]]:
        if new.key_id not in self._ends:
            row = self._connection.execute(SELECT_ENDS, (new.key_id,)).fetchone()
            self._ends[new.key_id] = _decode(row[0]) if row and row[0] else FRESH
        return next_place(self._ends[new.key_id], self._clock, new.work / new.weight, new.work)


def move_clock(connection: sqlite3.Connection, head: Place, earliest: float, length: float) -> None:
    """After a claim of `length`, led by `head`, by a worker whose earliest task starts at `earliest`."""
    (clock,) = connection.execute(SELECT_CLOCK).fetchone()
    connection.execute(MOVE_CLOCK, (moved_clock(clock, head=head, earliest=earliest, length=length),))
