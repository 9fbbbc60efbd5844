"""The SQL of fair turns on SQLite: the clock, and where each key's flows end. The rule itself is `tasks.turns`."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import msgspec

from fluxserve.store.submissions import Entrant
from fluxserve.tasks.turns import FRESH, Place, Stay, charged, given_back, moved_clock, next_place

SELECT_CLOCK = "SELECT turn FROM clock"
MOVE_CLOCK = "UPDATE clock SET turn = ?"
SELECT_ENDS = "SELECT ends FROM api_keys WHERE id = ?"
WRITE_ENDS = "UPDATE api_keys SET ends = ? WHERE id = ?"
#: The predicate of the index `tasks_of_payer`, word for word.
SELECT_STAYS = """
    SELECT id, state, start, turn, work FROM tasks WHERE payer = ? AND state IN ('queued', 'running') LIMIT ?
"""
MOVE_TASK = "UPDATE tasks SET start = ?, turn = ? WHERE id = ?"
#: Of a key with more unfinished tasks nothing is moved up and nothing given back, so that no end costs more than this.
MOST_MOVED = 256
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[float, ...]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """A place, and the key that it is charged to; None: nobody."""

    payer: str | None
    stay: Stay

    @property
    def length(self) -> float:
        """What the key paid for it."""
        return self.stay.place.turn - self.stay.place.start


class Turns:
    """Hands out places and takes them back, in one transaction; where flows end now is written at its end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        (self._clock,) = connection.execute(SELECT_CLOCK).fetchone()
        self._ends: dict[str, tuple[float, ...]] = {}
        self._changed: set[str] = set()

    @property
    def now(self) -> Place:
        """Of a task that nobody draws."""
        return Place(start=self._clock, turn=self._clock)

    def next(self, new: Entrant) -> Place:
        """The place that the key's next task would take."""
        return self._after(new)[0]

    def take(self, new: Entrant) -> Place:
        """The key's next place."""
        place, ends = self._after(new)
        self._end(new.key_id, ends)
        return place

    def charge(self, paid: Paid, share: float) -> None:
        """So much of what was paid for is drawn once more."""
        if paid.payer is not None and share > 0:
            ends = charged(self._ends_of(paid.payer), self._clock, share * paid.length, paid.stay.work)
            self._end(paid.payer, ends)

    def give_back(self, paid: Paid, drawn: float) -> tuple[tuple[str, float], ...]:
        """The task was not drawn, but for a share. The turns of waiting tasks that moved up, by their ids."""
        if paid.payer is None:
            return ()
        rows = self._connection.execute(SELECT_STAYS, (paid.payer, MOST_MOVED + 1)).fetchall()
        if len(rows) > MOST_MOVED:
            return ()
        others = [Stay(place=Place(start=start, turn=turn), work=work) for _, _, start, turn, work in rows]
        ends, places = given_back(self._ends_of(paid.payer), self._clock, paid.stay, drawn, others)
        self._end(paid.payer, ends)
        moved = [
            (row, place) for row, other, place in zip(rows, others, places, strict=True) if place is not other.place
        ]
        self._connection.executemany(MOVE_TASK, [(place.start, place.turn, row[0]) for row, place in moved])
        # A worker draws by the turn that it was told.
        return tuple((row[0], place.turn) for row, place in moved if row[1] == "queued")

    def write(self) -> None:
        """Write down where the flows end now."""
        self._connection.executemany(
            WRITE_ENDS, [(_encode(self._ends[key_id]).decode(), key_id) for key_id in self._changed]
        )

    def _after(self, new: Entrant) -> tuple[Place, tuple[float, ...]]:
        return next_place(self._ends_of(new.key_id), self._clock, new.work / new.weight, new.work)

    def _ends_of(self, key_id: str) -> tuple[float, ...]:
        if key_id not in self._ends:
            row = self._connection.execute(SELECT_ENDS, (key_id,)).fetchone()
            self._ends[key_id] = _decode(row[0]) if row and row[0] else FRESH
        return self._ends[key_id]

    def _end(self, key_id: str, ends: tuple[float, ...]) -> None:
        self._ends[key_id] = ends
        self._changed.add(key_id)


def move_clock(connection: sqlite3.Connection, head: Place, earliest: float, length: float) -> None:
    """After a claim of `length`, led by `head`, by a worker whose earliest task starts at `earliest`."""
    (clock,) = connection.execute(SELECT_CLOCK).fetchone()
    connection.execute(MOVE_CLOCK, (moved_clock(clock, head=head, earliest=earliest, length=length),))
