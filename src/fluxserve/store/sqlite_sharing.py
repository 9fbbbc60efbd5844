"""The SQL of equal requests on SQLite: one is drawn, the others follow it and get its picture, or take its place.

Whatever happens to a leader happens to its followers in the same transaction, so none is ever left behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluxserve.accounts.credits import Move, settled
from fluxserve.store import sqlite_cache
from fluxserve.store.base import CACHED, Drawn, Offer, TaskRecord
from fluxserve.store.sqlite_cache import Found
from fluxserve.store.sqlite_rows import COLUMNS, encode, end_task, states_before, to_record
from fluxserve.store.sqlite_turns import Paid, Turns
from fluxserve.store.submissions import Entrant
from fluxserve.tasks.task import Event, State
from fluxserve.tasks.turns import Place, Stay

#: The predicate of the index `tasks_leading`, word for word: at most one task leads the equal ones.
_LEADS = "repeatable = 1 AND state IN ('queued', 'running')"
SELECT_LEADER = f"SELECT id, state, start, turn, work, payer FROM tasks WHERE recipe = ? AND {_LEADS}"
SELECT_FOLLOWERS = "SELECT id FROM tasks WHERE recipe = ? AND state = 'following' ORDER BY seq"
MOVE_LEADER = f"UPDATE tasks SET start = ?, turn = ?, payer = ? WHERE recipe = ? AND {_LEADS}"
ANSWER = f"""
    UPDATE tasks SET state = 'ready', finished_at = ?, object_name = ?, result = ?
    WHERE id = ? AND state IN ({states_before(Event.ANSWERED)}) RETURNING {COLUMNS}, start, payer
"""
PROMOTE = f"""
    UPDATE tasks SET state = 'queued', start = ?, turn = ?, payer = ?
    WHERE id = ? AND state IN ({states_before(Event.PROMOTED)}) RETURNING {COLUMNS}
"""
SELECT_ANSWERABLE = """
    SELECT t.id, t.recipe FROM tasks t JOIN result_cache c ON c.recipe = t.recipe
    WHERE t.state = 'queued' AND t.repeatable = 1 AND t.model = ? ORDER BY t.turn, t.seq
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """A task that is drawn, or will be, and that others may follow."""

    id: str
    is_queued: bool
    paid: Paid

    @property
    def turn(self) -> float:
        """What it is drawn by."""
        return self.paid.stay.place.turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a task comes in: to be drawn, behind an equal one, or answered with what was found; what else moved up."""

    state: State
    place: Place
    moved: tuple[tuple[str, float], ...] = ()
    found: Found | None = None


def enter(connection: sqlite3.Connection, new: Entrant, found: Found | None, turns: Turns) -> Entry:
    """The task's place among all others; `found`: a picture that answers it.

    One that is answered is never queued, so that no worker and no equal task ever sees it waiting.
    """
    if found is not None:
        return Entry(state=State.FOLLOWING, place=turns.now, found=found)
    leader = find_leader(connection, new) if new.repeatable else None
    place, moved = _take_place(connection, new, leader, turns)
    return Entry(state=State.QUEUED if leader is None else State.FOLLOWING, place=place, moved=moved)


def _take_place(
    connection: sqlite3.Connection, new: Entrant, leader: Leader | None, turns: Turns
) -> tuple[Place, tuple[tuple[str, float], ...]]:
    """A follower has its leader's place. Where its own would come earlier, the leader is moved up there.

    So nobody waits behind the flood of another key because somebody there asked for the same. A drawing is paid once:
    by the key whose place it has. What else moved up by that comes with the place.
    """
    if leader is None:
        return turns.take(new), ()
    if leader.turn <= turns.next(new).turn:
        return leader.paid.stay.place, ()
    place = turns.take(new)
    move_up(connection, new, place)
    return place, turns.give_back(leader.paid, 0.0) if leader.is_queued else ()


def find_picture(connection: sqlite3.Connection, new: Entrant) -> Found | None:
    """The picture of an equal request that was drawn before."""
    return sqlite_cache.find(connection, new.recipe, new.fingerprints, new.now) if new.repeatable else None


def find_leader(connection: sqlite3.Connection, new: Entrant) -> Leader | None:
    """An equal task that waits or is drawn."""
    row = connection.execute(SELECT_LEADER, (new.recipe,)).fetchone()
    if row is None:
        return None
    task_id, state, start, turn, work, payer = row
    paid = Paid(payer=payer, stay=Stay(place=Place(start=start, turn=turn), work=work))
    return Leader(id=task_id, is_queued=state == State.QUEUED, paid=paid)


def move_up(connection: sqlite3.Connection, new: Entrant, place: Place) -> None:
    """The leader of `new` gets an earlier place, which the key of `new` pays."""
    connection.execute(MOVE_LEADER, (place.start, place.turn, new.key_id, new.recipe))


def answer(
    connection: sqlite3.Connection, task_id: str, found: Found, now: float, turns: Turns | None = None
) -> TaskRecord | None:
    """Ready with a picture that was drawn for another task, settled, in the outbox.

    `turns`: the task was waiting to be drawn itself, and gives back what was paid for that.
    """
    row = connection.execute(ANSWER, (now, found.object_name, encode(_again(found.drawn)), task_id)).fetchone()
    if row is None:
        return None
    record = to_record(row)
    end_task(connection, record, Move.SETTLE, settled(record.cost, record.cost), now)
    if turns is None:
        return record
    return replace(record, moved=turns.give_back(paid_for(record, row), record.drawn_before))


def answer_followers(
    connection: sqlite3.Connection, leader: TaskRecord, found: Found, now: float
) -> tuple[TaskRecord, ...]:
    """The leader has its picture: its followers have it too."""
    answered = [answer(connection, task_id, found, now) for task_id in followers_of(connection, leader)]
    return tuple(record for record in answered if record is not None)


def followers_of(connection: sqlite3.Connection, leader: TaskRecord) -> list[str]:
    """Those that wait for the picture of a task that leads, in the order of their coming."""
    if not leader.repeatable:
        return []
    return [task_id for (task_id,) in connection.execute(SELECT_FOLLOWERS, (leader.recipe,))]


def paid_for(record: TaskRecord, row: Sequence[object]) -> Paid:
    """What was paid for a task; its row ends in its start and its payer."""
    *_, start, payer = row
    place = Place(start=start, turn=record.turn)  # type: ignore[arg-type]
    return Paid(payer=payer, stay=Stay(place=place, work=record.work))  # type: ignore[arg-type]


def promote(connection: sqlite3.Connection, ended: TaskRecord, paid: Paid) -> TaskRecord | None:
    """A task ended without a picture. If it led, its first follower takes its place, and the others follow that one."""
    if not ended.repeatable or connection.execute(SELECT_LEADER, (ended.recipe,)).fetchone() is not None:
        return None
    row = connection.execute(f"{SELECT_FOLLOWERS} LIMIT 1", (ended.recipe,)).fetchone()
    if row is None:
        return None
    place = paid.stay.place
    return to_record(connection.execute(PROMOTE, (place.start, place.turn, paid.payer, row[0])).fetchone())


def answer_many(connection: sqlite3.Connection, offers: Sequence[Offer]) -> list[list[TaskRecord]]:
    """Answer what waits for a model with the pictures that its workers would draw again."""
    turns = Turns(connection)
    answered = [_answer_waiting(connection, offer, turns) for offer in offers]
    turns.write()
    return answered


def _answer_waiting(connection: sqlite3.Connection, offer: Offer, turns: Turns) -> list[TaskRecord]:
    answered: list[TaskRecord] = []
    for task_id, recipe in connection.execute(SELECT_ANSWERABLE, (offer.model,)).fetchall():
        found = sqlite_cache.find(connection, recipe, offer.fingerprints, offer.now)
        if found is not None and (record := answer(connection, task_id, found, offer.now, turns)):
            answered += (record, *answer_followers(connection, record, found, offer.now))
    return answered


def _again(drawn: Drawn) -> Drawn:
    """What a task answers whose picture was drawn for another."""
    return replace(drawn, facts={**drawn.facts, CACHED: True})
