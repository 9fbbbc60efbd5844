"""The SQL of tasks on SQLite: submit, prepare, claim, outcomes, leases, retention.

Every function takes the writing connection inside a transaction and a batch of values. Races are decided by
conditional UPDATEs whose sources come from the table of transitions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from fluxserve.accounts.credits import Move, settled
from fluxserve.store import (
    sqlite_cache,
    sqlite_deliveries,
    sqlite_inputs,
    sqlite_preparations,
    sqlite_sharing,
    sqlite_waypoints,
)
from fluxserve.store.base import (
    Cancellation,
    ClaimRequest,
    Completion,
    Failure,
    Lease,
    Loss,
    Picture,
    Refused,
    Submitted,
    TaskRecord,
    Verdict,
)
from fluxserve.store.sqlite_cache import Found
from fluxserve.store.sqlite_rows import (
    COLUMNS,
    GIVE_BACK,
    INSERT_LEDGER,
    encode,
    end_task,
    listed,
    states_before,
    to_record,
)
from fluxserve.store.sqlite_sharing import Entry
from fluxserve.store.sqlite_turns import Turns, move_clock
from fluxserve.store.submissions import Entrant, Prepared, Submission
from fluxserve.tasks.task import ACTIVE, SUSPECT_AFTER, Attempts, Event, State
from fluxserve.tasks.turns import Place

#: The predicate of the index on active tasks, word for word.
_IS_ACTIVE = f"state IN ({listed(ACTIVE)})"
SELECT_EARLIER = f"SELECT {COLUMNS}, request_hash FROM tasks WHERE account_id = ? AND idempotency_key = ?"
COUNT_ACTIVE = f"SELECT count(*), coalesce(sum(work), 0) FROM tasks WHERE key_id = ? AND {_IS_ACTIVE}"
COUNT_OF_MODEL = f"SELECT count(*) FROM tasks WHERE key_id = ? AND model = ? AND {_IS_ACTIVE}"
RESERVE = "UPDATE accounts SET balance = balance - ? WHERE id = ? AND (balance IS NULL OR balance >= ?)"
INSERT_TASK = (
    "INSERT INTO tasks (id, account_id, key_id, state, model, batch_key, start, turn, work, payer, generation, "
    "warnings, dialect, origin, webhook_url, webhook_secret, idempotency_key, request_hash, recipe, repeatable, "
    "cost, created_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SELECT_PREPARING = f"SELECT account_id, cost FROM tasks WHERE id = ? AND state IN ({states_before(Event.PREPARED)})"
_PREPARED = """
    UPDATE tasks SET state = '{state}', batch_key = ?, start = ?, turn = ?, work = ?, payer = ?, generation = ?,
    warnings = ?, recipe = ?, repeatable = ?, cost = ?
    WHERE id = ? AND state IN ({sources}) RETURNING {columns}
"""
PREPARE = _PREPARED.format(state=State.QUEUED, sources=states_before(Event.PREPARED), columns=COLUMNS)
JOIN = _PREPARED.format(state=State.FOLLOWING, sources=states_before(Event.JOINED), columns=COLUMNS)
INSERT_EXTRAS = "INSERT INTO extras (task_id, fields) VALUES (?, ?)"
SELECT_HEAD = f"""
    SELECT batch_key, spoiled, start, turn FROM tasks WHERE state = 'queued' AND model IN ({{models}}) AND turn < ?
    AND {sqlite_waypoints.IS_FOR_WORKER}
    ORDER BY turn, seq LIMIT 1
"""
SELECT_HELD = (
    "SELECT count(*), coalesce(max(spoiled), 0), min(start) FROM tasks WHERE worker_id = ? AND state = 'running'"
)
CLAIM = f"""
    UPDATE tasks
    SET state = 'running', fence = fence + 1, worker_id = ?, lease_until = ?, started_at = coalesce(started_at, ?)
    WHERE state IN ({states_before(Event.CLAIMED)}) AND seq IN (
        SELECT seq FROM tasks WHERE state = 'queued' AND batch_key = ? AND turn < ?
        AND (spoiled < {SUSPECT_AFTER} OR ? = 1)
        AND {sqlite_waypoints.IS_FOR_WORKER}
        ORDER BY turn, seq LIMIT ?)
    RETURNING {COLUMNS}, seq, turn - start
"""
COMPLETE = f"""
    UPDATE tasks SET state = 'ready', finished_at = ?, object_name = ?, result = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND fence = ? AND state IN ({states_before(Event.FINISHED)}) RETURNING {COLUMNS}
"""
FAIL = f"""
    UPDATE tasks SET state = 'error', finished_at = ?, error = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND ((fence = ? AND state = 'running') OR ? IS NULL) AND state IN ({states_before(Event.FAILED)})
    RETURNING {COLUMNS}, start, payer
"""
_REFUSE = """
    UPDATE tasks SET state = '{state}', finished_at = ?, error = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND fence = ? AND state IN ({sources}) RETURNING {columns}, start, payer
"""
REFUSE = {
    state: _REFUSE.format(state=state, sources=states_before(event), columns=COLUMNS)
    for state, event in (
        (State.REQUEST_MODERATED, Event.REQUEST_REFUSED),
        (State.CONTENT_MODERATED, Event.CONTENT_REFUSED),
    )
}
CANCEL = f"""
    UPDATE tasks SET state = 'cancelled', finished_at = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND account_id = ? AND state IN ({states_before(Event.CANCELLED)})
    RETURNING {COLUMNS}, start, payer
"""
RELEASE = f"""
    UPDATE tasks SET state = 'queued', worker_id = NULL, lease_until = NULL, spoiled = ?, best_step = ?
    WHERE id = ? AND fence = ? AND state IN ({states_before(Event.RELEASED)}) RETURNING {COLUMNS}
"""
SELECT_ATTEMPTS = "SELECT spoiled, best_step FROM tasks WHERE id = ?"
EXTEND = "UPDATE tasks SET lease_until = ? WHERE worker_id = ? AND state = 'running'"
FORGET_PICTURE = "UPDATE tasks SET object_name = NULL WHERE id = ? AND object_name = ?"
SELECT_OLD = (
    f"SELECT id FROM tasks WHERE finished_at < ? AND NOT {sqlite_deliveries.IS_NEEDED} "
    "ORDER BY finished_at, seq LIMIT ?"
)
_LISTED = "(SELECT value FROM json_each(?))"
DELETE_OF_OLD = f"DELETE FROM {{table}} WHERE task_id IN {_LISTED}"
SELECT_PICTURES_OF_OLD = f"SELECT object_name FROM tasks WHERE id IN {_LISTED} AND object_name IS NOT NULL"
DELETE_TASKS = f"DELETE FROM tasks WHERE id IN {_LISTED}"

SELECT_LAPSED = f"SELECT {COLUMNS} FROM tasks WHERE state = 'running' AND lease_until < ?"
SELECT_QUARANTINED = (
    f"SELECT {COLUMNS} FROM tasks WHERE state = 'error' AND json_extract(error, '$.code') = ? "
    "ORDER BY finished_at DESC, seq DESC"
)
SELECT_ACTIVE = f"SELECT {COLUMNS} FROM tasks WHERE {_IS_ACTIVE} ORDER BY turn, seq"
SELECT_TASK = f"SELECT {COLUMNS} FROM tasks WHERE id = ?"
SELECT_OWN = f"{SELECT_TASK} AND account_id = ?"
SELECT_SEALED = "SELECT webhook_secret FROM tasks WHERE id = ?"
SELECT_OLD_PICTURES = (
    "SELECT id, object_name FROM tasks WHERE finished_at < ? AND object_name IS NOT NULL "
    f"AND NOT {sqlite_deliveries.IS_NEEDED} ORDER BY finished_at LIMIT ?"
)


def submit_many(connection: sqlite3.Connection, submissions: Sequence[Submission]) -> list[Submitted]:
    """Accept each submission that may be accepted; fair turns are handed out as they come."""
    turns = Turns(connection)
    outcomes = [_submit(connection, submission, turns) for submission in submissions]
    turns.write()
    return outcomes


def _too_many(connection: sqlite3.Connection, new: Submission) -> Submitted | None:
    """Which limit of unfinished tasks the key has come to; None: none. A task alone may be any amount of work."""

    def refused(verdict: Verdict, in_use: float) -> Submitted:
        return Submitted(verdict=verdict, record=None, in_use=in_use)

    if new.max_active is not None or new.max_work is not None:
        active, work = connection.execute(COUNT_ACTIVE, (new.key_id,)).fetchone()
        if new.max_active is not None and active >= new.max_active:
            return refused(Verdict.TOO_MANY_ACTIVE, active)
        if new.max_work is not None and active and work + new.work > new.max_work:
            return refused(Verdict.TOO_MUCH_WORK, work)
    if new.max_of_model is not None:
        (active,) = connection.execute(COUNT_OF_MODEL, (new.key_id, new.generation.model)).fetchone()
        if active >= new.max_of_model:
            return refused(Verdict.TOO_MANY_OF_MODEL, active)
    return None


def _submit(connection: sqlite3.Connection, new: Submission, turns: Turns) -> Submitted:
    if new.idempotency_key is not None:
        earlier = connection.execute(SELECT_EARLIER, (new.account_id, new.idempotency_key)).fetchone()
        if earlier is not None:
            same = earlier[-1] == new.request_hash
            verdict = Verdict.REPLAYED if same else Verdict.CONFLICT
            return Submitted(verdict=verdict, record=to_record(earlier) if same else None)
    found = sqlite_sharing.find_picture(connection, new)
    if found is None and new.refusal is None and (too_many := _too_many(connection, new)) is not None:
        return too_many
    if not connection.execute(RESERVE, (new.cost, new.account_id, new.cost)).rowcount:
        return Submitted(verdict=Verdict.NO_CREDITS, record=None)
    if new.refusal is not None:
        entry = Entry(state=State.PREPARING, place=turns.now)  # until it ends, a moment later
    elif new.preparation is None:
        entry = sqlite_sharing.enter(connection, new, found, turns)
    else:
        entry = Entry(state=State.PREPARING, place=turns.now)
        sqlite_preparations.keep(connection, new.id, new.preparation)
    connection.execute(INSERT_TASK, _task_row(new, entry))
    connection.execute(INSERT_LEDGER, (new.account_id, new.id, Move.RESERVE, -new.cost, new.now))
    sqlite_inputs.keep(connection, new.inputs)
    if new.extras:
        connection.execute(INSERT_EXTRAS, (new.id, encode(new.extras)))
    if entry.found is not None:
        record = sqlite_sharing.answer(connection, new.id, entry.found, new.now)
        return Submitted(verdict=Verdict.ACCEPTED, record=record)
    if new.refusal is not None:
        end = Refused(
            task_id=new.id, fence=0, state=State.REQUEST_MODERATED, refusal=new.refusal, drawn=0.0, now=new.now
        )
        return Submitted(verdict=Verdict.ACCEPTED, record=_refuse(connection, end, turns))
    return Submitted(verdict=Verdict.ACCEPTED, record=_fresh_record(new, entry))


def _task_row(new: Submission, entry: Entry) -> tuple[object, ...]:
    return (
        new.id, new.account_id, new.key_id, entry.state, new.generation.model, new.generation.batch_key,
        entry.place.start, entry.place.turn, new.work, _payer(new, entry), encode(new.generation),
        encode(new.warnings), new.dialect, new.origin, new.webhook_url, new.sealed_secret, new.idempotency_key,
        new.request_hash, new.recipe, new.repeatable, new.cost, new.now,
    )  # fmt: skip


def _payer(new: Entrant, entry: Entry) -> str | None:
    return new.key_id if entry.state is State.QUEUED else None


def _fresh_record(new: Submission, entry: Entry) -> TaskRecord:
    return TaskRecord(
        id=new.id, account_id=new.account_id, key_id=new.key_id, state=entry.state, generation=new.generation,
        warnings=new.warnings, dialect=new.dialect, origin=new.origin, webhook_url=new.webhook_url, cost=new.cost,
        turn=entry.place.turn, work=new.work, fence=0, attempts=Attempts(), worker_id=None, recipe=new.recipe,
        repeatable=new.repeatable, created_at=new.now, started_at=None, finished_at=None, object_name=None, drawn=None,
        reason=None, refusal=None, moved=entry.moved,
    )  # fmt: skip


def prepare_many(connection: sqlite3.Connection, prepared: Sequence[Prepared]) -> list[TaskRecord | None]:
    """Each takes its place among all others, and gets back what was reserved beyond its price."""
    turns = Turns(connection)
    records = [_prepare(connection, new, turns) for new in prepared]
    turns.write()
    return records


def _prepare(connection: sqlite3.Connection, new: Prepared, turns: Turns) -> TaskRecord | None:
    row = connection.execute(SELECT_PREPARING, (new.id,)).fetchone()
    if row is None:
        return None
    account_id, reserved = row
    rest = settled(reserved, new.cost)
    entry = sqlite_sharing.enter(connection, new, sqlite_sharing.find_picture(connection, new), turns)
    query = PREPARE if entry.state is State.QUEUED else JOIN
    record = to_record(connection.execute(query, (*_prepared_row(new, entry), reserved - rest, new.id)).fetchone())
    if rest:
        connection.execute(INSERT_LEDGER, (account_id, new.id, Move.LOWER, rest, new.now))
        connection.execute(GIVE_BACK, (rest, account_id))
    sqlite_inputs.keep(connection, new.inputs)
    connection.execute(sqlite_preparations.FORGET, (new.id,))
    if entry.found is not None:
        return sqlite_sharing.answer(connection, new.id, entry.found, new.now)
    return replace(record, moved=entry.moved)


def _prepared_row(new: Prepared, entry: Entry) -> tuple[object, ...]:
    return (
        new.generation.batch_key, entry.place.start, entry.place.turn, new.work, _payer(new, entry),
        encode(new.generation), encode(new.warnings), new.recipe, new.repeatable,
    )  # fmt: skip


def claim_many(connection: sqlite3.Connection, requests: Sequence[ClaimRequest]) -> list[list[TaskRecord]]:
    """For each worker: the head of the queue and what can be drawn with it. A suspect task has a worker alone."""
    return [_claim(connection, request) for request in requests]


def _claim(connection: sqlite3.Connection, request: ClaimRequest) -> list[TaskRecord]:
    marks = ", ".join("?" * len(request.models))
    may_have = (request.strangers_since, encode(request.fingerprints))
    head = connection.execute(SELECT_HEAD.format(models=marks), (*request.models, request.before, *may_have)).fetchone()
    if head is None or request.limit < 1:
        return []
    batch_key, spoiled, start, turn = head
    suspect = Attempts(spoiled=spoiled).is_suspect
    held, most_spoiled, earliest = connection.execute(SELECT_HELD, (request.worker_id,)).fetchone()
    # A suspect runs alone: an engine that ends then was ended by it, and by nobody beside it.
    if Attempts(spoiled=most_spoiled).is_suspect or (suspect and held):
        return []
    limit = 1 if suspect else request.limit
    values = (
        request.worker_id, request.lease_until, request.now, batch_key, request.before, int(suspect), *may_have, limit,
    )  # fmt: skip
    rows = connection.execute(CLAIM, values).fetchall()
    claimed = sorted(((to_record(row), row[-2]) for row in rows), key=lambda pair: (pair[0].turn, pair[1]))
    # The head's place and not the last's: a batch may reach far back, and newcomers are not to wait for that.
    move_clock(connection, Place(start=start, turn=turn), earliest if held else start, sum(row[-1] for row in rows))
    return [record for record, _ in claimed]


def complete_many(connection: sqlite3.Connection, completions: Sequence[Completion]) -> list[TaskRecord | None]:
    """Ready, settled, in the outbox, with its followers: only where the fence still holds."""
    return [_complete(connection, done) for done in completions]


def _complete(connection: sqlite3.Connection, done: Completion) -> TaskRecord | None:
    row = connection.execute(
        COMPLETE, (done.now, done.object_name, encode(done.drawn), done.task_id, done.fence)
    ).fetchone()
    if row is None:
        return None
    record = to_record(row)
    used = record.cost if done.used is None else done.used
    end_task(connection, record, Move.SETTLE, settled(record.cost, used), done.now)
    if done.kept is not None and record.recipe is not None:
        sqlite_cache.keep(connection, record.recipe, done.object_name, done.kept, done.now)
    found = Found(object_name=done.object_name, drawn=done.drawn)
    return replace(record, followers=sqlite_sharing.answer_followers(connection, record, found, done.now))


def fail_many(connection: sqlite3.Connection, failures: Sequence[Failure]) -> list[TaskRecord | None]:
    """Error, refunded, in the outbox; its first follower takes its place."""
    turns = Turns(connection)
    failed = [_fail(connection, failure, turns) for failure in failures]
    turns.write()
    return failed


def _fail(connection: sqlite3.Connection, failure: Failure, turns: Turns) -> TaskRecord | None:
    row = connection.execute(
        FAIL,
        (failure.now, encode(failure.reason), failure.task_id, failure.fence, failure.fence),
    ).fetchone()
    if row is None:
        return None
    record = to_record(row)
    end_task(connection, record, Move.REFUND, record.cost, failure.now)
    paid, drawn = sqlite_sharing.paid_for(record, row), max(failure.drawn, record.drawn_before)
    heir = sqlite_sharing.promote(connection, record, paid)
    if heir is None:
        return replace(record, moved=turns.give_back(paid, drawn))
    turns.charge(paid, drawn)  # it starts over: what was drawn may be what is wrong
    return replace(record, followers=(heir,))


def refuse_many(connection: sqlite3.Connection, refused: Sequence[Refused]) -> list[TaskRecord | None]:
    """Moderated, refunded or charged, in the outbox; and so are its followers."""
    turns = Turns(connection)
    ended = [_refuse(connection, end, turns) for end in refused]
    turns.write()
    return ended


def _refuse(connection: sqlite3.Connection, end: Refused, turns: Turns) -> TaskRecord | None:
    record = _moderate(connection, end, turns)
    if record is None:
        return None
    ends = (replace(end, task_id=one, fence=0) for one in sqlite_sharing.followers_of(connection, record))
    followers = [_moderate(connection, one, turns) for one in ends]
    return replace(record, followers=tuple(one for one in followers if one is not None))


def _moderate(connection: sqlite3.Connection, end: Refused, turns: Turns) -> TaskRecord | None:
    refusal = encode(end.refusal)
    row = connection.execute(REFUSE[end.state], (end.now, refusal, end.task_id, end.fence)).fetchone()
    if row is None:
        return None
    record = to_record(row)
    move = Move.SETTLE if end.refusal.charged else Move.REFUND
    end_task(connection, record, move, 0 if end.refusal.charged else record.cost, end.now)
    paid = sqlite_sharing.paid_for(record, row)
    return replace(record, moved=turns.give_back(paid, max(end.drawn, record.drawn_before)))


def cancel_many(connection: sqlite3.Connection, cancellations: Sequence[Cancellation]) -> list[TaskRecord | None]:
    """Cancelled, refunded, in the outbox; its first follower takes its place and goes on with what was drawn for it.

    The fence stays: it is the state that refuses what comes too late.
    """
    turns = Turns(connection)
    cancelled = [_cancel(connection, cancellation, turns) for cancellation in cancellations]
    turns.write()
    return cancelled


def _cancel(connection: sqlite3.Connection, wish: Cancellation, turns: Turns) -> TaskRecord | None:
    row = connection.execute(CANCEL, (wish.now, wish.task_id, wish.account_id)).fetchone()
    if row is None:
        return None
    record = to_record(row)
    paid, drawn = sqlite_sharing.paid_for(record, row), max(wish.drawn, record.drawn_before)
    heir = sqlite_sharing.promote(connection, record, paid)
    if heir is not None:
        turns.charge(paid, drawn - sqlite_waypoints.pass_on(connection, record.id, heir.id, wish.now))
    end_task(connection, record, Move.REFUND, record.cost, wish.now)
    if heir is None:
        return replace(record, moved=turns.give_back(paid, drawn))
    return replace(record, followers=(heir,))


def release_many(connection: sqlite3.Connection, losses: Sequence[Loss]) -> list[TaskRecord | None]:
    """Back in the queue with the attempt counted where it counts, or quarantined."""
    return [_release(connection, loss) for loss in losses]


def _release(connection: sqlite3.Connection, loss: Loss) -> TaskRecord | None:
    row = connection.execute(SELECT_ATTEMPTS, (loss.task_id,)).fetchone()
    if row is None:
        return None
    attempts = Attempts(spoiled=row[0], best_step=row[1]).after_loss(step=loss.step, suspected=loss.suspected)
    released = connection.execute(RELEASE, (attempts.spoiled, attempts.best_step, loss.task_id, loss.fence)).fetchone()
    if released is None:
        return None
    connection.execute(sqlite_waypoints.WAIT, (loss.now, loss.task_id))
    return _quarantine(connection, loss) if attempts.is_exhausted else to_record(released)


def _quarantine(connection: sqlite3.Connection, loss: Loss) -> TaskRecord | None:
    """The followers first: left to take its place, each of them would end engines as their leader did."""
    leader = to_record(connection.execute(SELECT_TASK, (loss.task_id,)).fetchone())
    ids = [*sqlite_sharing.followers_of(connection, leader), loss.task_id]
    # What ended engines gives nothing back.
    *followers, record = fail_many(
        connection,
        [Failure(task_id=task_id, fence=None, reason=loss.reason, drawn=1.0, now=loss.now) for task_id in ids],
    )
    if record is None:
        return None
    return replace(record, followers=tuple(follower for follower in followers if follower is not None))


def extend_many(connection: sqlite3.Connection, leases: Sequence[Lease]) -> list[int]:
    """Prolong each worker's leases."""
    return [connection.execute(EXTEND, (lease.until, lease.worker_id)).rowcount for lease in leases]


def forget_pictures(connection: sqlite3.Connection, pictures: Sequence[Picture]) -> list[bool]:
    """The tasks no longer hold their pictures. True where no task does any more."""
    return [_forget_picture(connection, picture) for picture in pictures]


def _forget_picture(connection: sqlite3.Connection, picture: Picture) -> bool:
    held = connection.execute(FORGET_PICTURE, (picture.task_id, picture.object_name)).rowcount
    return bool(held) and sqlite_cache.let_go(connection, picture.object_name)


def delete_old(connection: sqlite3.Connection, cutoffs: Sequence[tuple[float, int]]) -> list[int]:
    """Tasks that ended before each cutoff, at most so many at a time."""
    return [_delete_old(connection, cutoff) for cutoff in cutoffs]


def _delete_old(connection: sqlite3.Connection, cutoff: tuple[float, int]) -> int:
    finished_before, limit = cutoff
    ids = [id_ for (id_,) in connection.execute(SELECT_OLD, (finished_before, finished_before, limit))]
    old = encode(ids)
    for table in ("outbox", "extras", "deliveries"):
        connection.execute(DELETE_OF_OLD.format(table=table), (old,))
    pictures = connection.execute(SELECT_PICTURES_OF_OLD, (old,)).fetchall()
    connection.execute(DELETE_TASKS, (old,))
    for (object_name,) in pictures:
        sqlite_cache.let_go(connection, object_name)
    return len(ids)
