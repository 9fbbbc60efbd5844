"""The SQL of tasks on SQLite: submit, claim, outcomes, leases, retention.

Every function takes the writing connection inside a transaction and a batch of values. Races are decided by
conditional UPDATEs whose sources come from the table of transitions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from fluxserve.accounts.credits import Move, settled
from fluxserve.catalogue import Generation
from fluxserve.store import sqlite_waypoints
from fluxserve.store.base import (
    Cancellation,
    ClaimRequest,
    Completion,
    Drawn,
    Failure,
    Lease,
    Loss,
    Picture,
    Reason,
    Submission,
    Submitted,
    TaskRecord,
    Verdict,
)
from fluxserve.tasks.task import ACTIVE, Attempts, Event, State, sources

COLUMNS = (
    "id, account_id, key_id, state, generation, warnings, dialect, origin, webhook_url, cost, fence, spoiled, "
    "best_step, worker_id, created_at, started_at, finished_at, object_name, result, error"
)
_encode = msgspec.json.Encoder().encode
_generation = msgspec.json.Decoder(Generation).decode
_strings = msgspec.json.Decoder(tuple[str, ...]).decode
_drawn = msgspec.json.Decoder(Drawn).decode
_reason = msgspec.json.Decoder(Reason).decode


def listed(states: Sequence[State]) -> str:
    """States as an SQL list."""
    return ", ".join(f"'{state}'" for state in states)


def _states(event: Event) -> str:
    return listed(sources(event))


#: The predicate of the index on active tasks, word for word.
_IS_ACTIVE = f"state IN ({listed(ACTIVE)})"
SELECT_EARLIER = f"SELECT {COLUMNS}, request_hash FROM tasks WHERE account_id = ? AND idempotency_key = ?"
COUNT_ACTIVE = f"SELECT count(*) FROM tasks WHERE key_id = ? AND {_IS_ACTIVE}"
RESERVE = "UPDATE accounts SET balance = balance - ? WHERE id = ? AND (balance IS NULL OR balance >= ?)"
INSERT_TASK = (
    "INSERT INTO tasks (id, account_id, key_id, state, model, batch_key, turn, generation, warnings, dialect, "
    "origin, webhook_url, webhook_secret, idempotency_key, request_hash, cost, created_at) "
    "VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_EXTRAS = "INSERT INTO extras (task_id, fields) VALUES (?, ?)"
INSERT_LEDGER = "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES (?, ?, ?, ?, ?)"
INSERT_OUTBOX = "INSERT INTO outbox (task_id, state, at) VALUES (?, ?, ?)"
GIVE_BACK = "UPDATE accounts SET balance = balance + ? WHERE id = ?"
SELECT_HEAD = f"""
    SELECT batch_key, spoiled, turn FROM tasks WHERE state = 'queued' AND model IN ({{models}})
    AND {sqlite_waypoints.IS_FOR_WORKER}
    ORDER BY turn, seq LIMIT 1
"""
SELECT_HELD = "SELECT count(*), coalesce(max(spoiled), 0) FROM tasks WHERE worker_id = ? AND state = 'running'"
CLAIM = f"""
    UPDATE tasks
    SET state = 'running', fence = fence + 1, worker_id = ?, lease_until = ?, started_at = coalesce(started_at, ?)
    WHERE state IN ({_states(Event.CLAIMED)}) AND seq IN (
        SELECT seq FROM tasks WHERE state = 'queued' AND batch_key = ? AND (spoiled = 0 OR ? = 1)
        AND {sqlite_waypoints.IS_FOR_WORKER}
        ORDER BY turn, seq LIMIT ?)
    RETURNING {COLUMNS}, turn, seq
"""
COMPLETE = f"""
    UPDATE tasks SET state = 'ready', finished_at = ?, object_name = ?, result = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND fence = ? AND state IN ({_states(Event.FINISHED)}) RETURNING {COLUMNS}
"""
FAIL = f"""
    UPDATE tasks SET state = 'error', finished_at = ?, error = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND ((fence = ? AND state = 'running') OR ? IS NULL) AND state IN ({_states(Event.FAILED)})
    RETURNING {COLUMNS}
"""
CANCEL = f"""
    UPDATE tasks SET state = 'cancelled', finished_at = ?, worker_id = NULL, lease_until = NULL
    WHERE id = ? AND account_id = ? AND state IN ({_states(Event.CANCELLED)}) RETURNING {COLUMNS}
"""
RELEASE = f"""
    UPDATE tasks SET state = 'queued', worker_id = NULL, lease_until = NULL, spoiled = ?, best_step = ?
    WHERE id = ? AND fence = ? AND state IN ({_states(Event.RELEASED)}) RETURNING {COLUMNS}
"""
SELECT_ATTEMPTS = "SELECT spoiled, best_step FROM tasks WHERE id = ?"
EXTEND = "UPDATE tasks SET lease_until = ? WHERE worker_id = ? AND state = 'running'"
FORGET_PICTURE = "UPDATE tasks SET object_name = NULL WHERE id = ? AND object_name = ?"
_OLD = "(SELECT id FROM tasks WHERE finished_at < ? ORDER BY finished_at, seq LIMIT ?)"
DELETE_OUTBOX = f"DELETE FROM outbox WHERE task_id IN {_OLD}"
DELETE_EXTRAS = f"DELETE FROM extras WHERE task_id IN {_OLD}"
DELETE_TASKS = f"DELETE FROM tasks WHERE id IN {_OLD}"

SELECT_LAPSED = f"SELECT {COLUMNS} FROM tasks WHERE state = 'running' AND lease_until < ?"
SELECT_ACTIVE = f"SELECT {COLUMNS} FROM tasks WHERE {_IS_ACTIVE} ORDER BY turn, seq"
SELECT_TASK = f"SELECT {COLUMNS} FROM tasks WHERE id = ?"
SELECT_OLD_PICTURES = (
    "SELECT id, object_name FROM tasks WHERE finished_at < ? AND object_name IS NOT NULL ORDER BY finished_at LIMIT ?"
)


def to_record(row: Sequence[object]) -> TaskRecord:
    """A row of COLUMNS as a value."""
    (id_, account, key, state, generation, warnings, dialect, origin, webhook, cost, fence, spoiled, best,
     worker, created, started, finished, object_name, result, error) = row[:20]  # fmt: skip
    return TaskRecord(
        id=id_,  # type: ignore[arg-type]
        account_id=account,  # type: ignore[arg-type]
        key_id=key,  # type: ignore[arg-type]
        state=State(state),  # type: ignore[arg-type]
        generation=_generation(generation),  # type: ignore[arg-type]
        warnings=_strings(warnings),  # type: ignore[arg-type]
        dialect=dialect,  # type: ignore[arg-type]
        origin=origin,  # type: ignore[arg-type]
        webhook_url=webhook,  # type: ignore[arg-type]
        cost=cost,  # type: ignore[arg-type]
        fence=fence,  # type: ignore[arg-type]
        attempts=Attempts(spoiled=spoiled, best_step=best),  # type: ignore[arg-type]
        worker_id=worker,  # type: ignore[arg-type]
        created_at=created,  # type: ignore[arg-type]
        started_at=started,  # type: ignore[arg-type]
        finished_at=finished,  # type: ignore[arg-type]
        object_name=object_name,  # type: ignore[arg-type]
        drawn=_drawn(result) if result is not None else None,  # type: ignore[arg-type]
        reason=_reason(error) if error is not None else None,  # type: ignore[arg-type]
    )


def submit_many(connection: sqlite3.Connection, submissions: Sequence[Submission]) -> list[Submitted]:
    """Accept each submission that may be accepted; fair turns are handed out as they come."""
    (clock,) = connection.execute("SELECT turn FROM clock").fetchone()
    turns: dict[str, float] = {}
    outcomes = [_submit(connection, submission, clock, turns) for submission in submissions]
    connection.executemany(
        "UPDATE api_keys SET last_turn = ? WHERE id = ?", [(turn, key_id) for key_id, turn in turns.items()]
    )
    return outcomes


def _submit(connection: sqlite3.Connection, new: Submission, clock: float, turns: dict[str, float]) -> Submitted:
    if new.idempotency_key is not None:
        earlier = connection.execute(SELECT_EARLIER, (new.account_id, new.idempotency_key)).fetchone()
        if earlier is not None:
            same = earlier[-1] == new.request_hash
            verdict = Verdict.REPLAYED if same else Verdict.CONFLICT
            return Submitted(verdict=verdict, record=to_record(earlier) if same else None)
    if new.max_active is not None:
        (active,) = connection.execute(COUNT_ACTIVE, (new.key_id,)).fetchone()
        if active >= new.max_active:
            return Submitted(verdict=Verdict.TOO_MANY_ACTIVE, record=None)
    if not connection.execute(RESERVE, (new.cost, new.account_id, new.cost)).rowcount:
        return Submitted(verdict=Verdict.NO_CREDITS, record=None)
    turn = _next_turn(connection, new.key_id, clock, turns)
    connection.execute(INSERT_TASK, _task_row(new, turn))
    connection.execute(INSERT_LEDGER, (new.account_id, new.id, Move.RESERVE, -new.cost, new.now))
    if new.extras:
        connection.execute(INSERT_EXTRAS, (new.id, _encode(new.extras).decode()))
    return Submitted(verdict=Verdict.ACCEPTED, record=_fresh_record(new))


def _next_turn(connection: sqlite3.Connection, key_id: str, clock: float, turns: dict[str, float]) -> float:
    """Start-time fair queueing: a key's tasks are one turn apart, and an idle key starts at the clock."""
    if key_id not in turns:
        row = connection.execute("SELECT last_turn FROM api_keys WHERE id = ?", (key_id,)).fetchone()
        turns[key_id] = row[0] if row else 0.0
    turns[key_id] = max(clock, turns[key_id]) + 1.0
    return turns[key_id]


def _task_row(new: Submission, turn: float) -> tuple[object, ...]:
    return (
        new.id, new.account_id, new.key_id, new.generation.model, new.generation.batch_key, turn,
        _encode(new.generation).decode(), _encode(new.warnings).decode(), new.dialect, new.origin,
        new.webhook_url, new.webhook_secret, new.idempotency_key, new.request_hash, new.cost, new.now,
    )  # fmt: skip


def _fresh_record(new: Submission) -> TaskRecord:
    return TaskRecord(
        id=new.id, account_id=new.account_id, key_id=new.key_id, state=State.QUEUED, generation=new.generation,
        warnings=new.warnings, dialect=new.dialect, origin=new.origin, webhook_url=new.webhook_url, cost=new.cost,
        fence=0, attempts=Attempts(), worker_id=None, created_at=new.now, started_at=None, finished_at=None,
        object_name=None, drawn=None, reason=None,
    )  # fmt: skip


def claim_many(connection: sqlite3.Connection, requests: Sequence[ClaimRequest]) -> list[list[TaskRecord]]:
    """For each worker: the head of the queue and what can be drawn with it. A suspect task has a worker alone."""
    return [_claim(connection, request) for request in requests]


def _claim(connection: sqlite3.Connection, request: ClaimRequest) -> list[TaskRecord]:
    marks = ", ".join("?" * len(request.models))
    may_have = (request.strangers_since, _encode(request.fingerprints).decode())
    head = connection.execute(SELECT_HEAD.format(models=marks), (*request.models, *may_have)).fetchone()
    if head is None or request.limit < 1:
        return []
    batch_key, spoiled, turn = head
    suspect = Attempts(spoiled=spoiled).is_suspect
    held, most_spoiled = connection.execute(SELECT_HELD, (request.worker_id,)).fetchone()
    if most_spoiled or (suspect and held):  # a worker that dies of one task must not spoil another
        return []
    limit = 1 if suspect else request.limit
    values = (request.worker_id, request.lease_until, request.now, batch_key, int(suspect), *may_have, limit)
    rows = connection.execute(CLAIM, values).fetchall()
    rows.sort(key=lambda row: row[-2:])
    # The head's turn and not the last's: a batch may reach far back, and newcomers are not to wait for that.
    connection.execute("UPDATE clock SET turn = max(turn, ?)", (turn,))
    return [to_record(row) for row in rows]


def complete_many(connection: sqlite3.Connection, completions: Sequence[Completion]) -> list[TaskRecord | None]:
    """Ready, settled, in the outbox: only where the fence still holds."""
    return [_complete(connection, done) for done in completions]


def _complete(connection: sqlite3.Connection, done: Completion) -> TaskRecord | None:
    row = connection.execute(
        COMPLETE, (done.now, done.object_name, _encode(done.drawn).decode(), done.task_id, done.fence)
    ).fetchone()
    if row is None:
        return None
    record = to_record(row)
    used = record.cost if done.used is None else done.used
    _move(connection, record, Move.SETTLE, settled(record.cost, used), done.now)
    return record


def fail_many(connection: sqlite3.Connection, failures: Sequence[Failure]) -> list[TaskRecord | None]:
    """Error, refunded, in the outbox."""
    return [_fail(connection, failure) for failure in failures]


def _fail(connection: sqlite3.Connection, failure: Failure) -> TaskRecord | None:
    row = connection.execute(
        FAIL,
        (failure.now, _encode(failure.reason).decode(), failure.task_id, failure.fence, failure.fence),
    ).fetchone()
    if row is None:
        return None
    record = to_record(row)
    _move(connection, record, Move.REFUND, record.cost, failure.now)
    return record


def cancel_many(connection: sqlite3.Connection, cancellations: Sequence[Cancellation]) -> list[TaskRecord | None]:
    """Cancelled, refunded, in the outbox. The fence stays: it is the state that refuses what comes too late."""
    return [_cancel(connection, cancellation) for cancellation in cancellations]


def _cancel(connection: sqlite3.Connection, wish: Cancellation) -> TaskRecord | None:
    row = connection.execute(CANCEL, (wish.now, wish.task_id, wish.account_id)).fetchone()
    if row is None:
        return None
    record = to_record(row)
    _move(connection, record, Move.REFUND, record.cost, wish.now)
    return record


def _move(connection: sqlite3.Connection, record: TaskRecord, move: Move, amount: int, now: float) -> None:
    """The end of a task: its last ledger row, the balance, its one outbox row, and nothing to go on from."""
    connection.execute(INSERT_LEDGER, (record.account_id, record.id, move, amount, now))
    if amount:
        connection.execute(GIVE_BACK, (amount, record.account_id))
    connection.execute(INSERT_OUTBOX, (record.id, record.state, now))
    connection.execute(sqlite_waypoints.FORGET, (record.id,))


def release_many(connection: sqlite3.Connection, losses: Sequence[Loss]) -> list[TaskRecord | None]:
    """Back in the queue with the attempt counted where it counts, or given up."""
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
    if attempts.is_exhausted:
        return _fail(connection, Failure(task_id=loss.task_id, fence=None, reason=loss.reason, now=loss.now))
    return to_record(released)


def extend_many(connection: sqlite3.Connection, leases: Sequence[Lease]) -> list[int]:
    """Prolong each worker's leases."""
    return [connection.execute(EXTEND, (lease.until, lease.worker_id)).rowcount for lease in leases]


def forget_pictures(connection: sqlite3.Connection, pictures: Sequence[Picture]) -> list[bool]:
    """Their objects are deleted."""
    return [
        bool(connection.execute(FORGET_PICTURE, (picture.task_id, picture.object_name)).rowcount)
        for picture in pictures
    ]


def delete_old(connection: sqlite3.Connection, cutoffs: Sequence[tuple[float, int]]) -> list[int]:
    """Tasks that ended before each cutoff, at most so many at a time."""
    return [_delete_old(connection, cutoff) for cutoff in cutoffs]


def _delete_old(connection: sqlite3.Connection, cutoff: tuple[float, int]) -> int:
    connection.execute(DELETE_OUTBOX, cutoff)
    connection.execute(DELETE_EXTRAS, cutoff)
    return connection.execute(DELETE_TASKS, cutoff).rowcount
