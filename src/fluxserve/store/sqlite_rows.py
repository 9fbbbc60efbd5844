"""What the SQL of tasks is made of on SQLite: a task's row as a value, states as lists, and the end of a task."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from fluxserve.accounts.credits import Move
from fluxserve.catalogue import Generation
from fluxserve.database import damaged
from fluxserve.store import sqlite_deliveries, sqlite_inputs, sqlite_preparations, sqlite_waypoints
from fluxserve.store.base import Drawn, Reason, TaskRecord
from fluxserve.store.submissions import Refusal
from fluxserve.tasks.task import Attempts, Event, State, sources

COLUMNS = (
    "id, account_id, key_id, state, generation, warnings, dialect, origin, webhook_url, cost, turn, work, fence, "
    "spoiled, best_step, worker_id, recipe, repeatable, created_at, started_at, finished_at, object_name, result, error"
)
INSERT_LEDGER = "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES (?, ?, ?, ?, ?)"
INSERT_OUTBOX = "INSERT INTO outbox (task_id, state, at) VALUES (?, ?, ?)"
GIVE_BACK = "UPDATE accounts SET balance = balance + ? WHERE id = ?"

_encoder = msgspec.json.Encoder()
_generation = msgspec.json.Decoder(Generation).decode
_strings = msgspec.json.Decoder(tuple[str, ...]).decode
_drawn = msgspec.json.Decoder(Drawn).decode
_reason = msgspec.json.Decoder(Reason).decode
_refusal = msgspec.json.Decoder(Refusal).decode
_MODERATED = (State.REQUEST_MODERATED, State.CONTENT_MODERATED)


def encode(value: object) -> str:
    """The value as JSON."""
    return _encoder.encode(value).decode()


def decode_drawn(text: str) -> Drawn:
    """What a ready task's row holds in `result`."""
    return _drawn(text)


def listed(states: Sequence[State]) -> str:
    """States as an SQL list."""
    return ", ".join(f"'{state}'" for state in states)


def states_before(event: Event) -> str:
    """The states in which `event` may happen, as an SQL list."""
    return listed(sources(event))


def to_record(row: Sequence[object]) -> TaskRecord:
    """A row of COLUMNS as a value. Raises DatabaseDamaged where it is none."""
    try:
        return _to_record(row)
    except (msgspec.MsgspecError, ValueError, TypeError):
        raise damaged() from None


def _to_record(row: Sequence[object]) -> TaskRecord:
    (id_, account, key, state, generation, warnings, dialect, origin, webhook, cost, turn, work, fence, spoiled,
     best, worker, recipe, repeatable, created, started, finished, object_name, result, error) = row[:24]  # fmt: skip
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
        turn=turn,  # type: ignore[arg-type]
        work=work,  # type: ignore[arg-type]
        fence=fence,  # type: ignore[arg-type]
        attempts=Attempts(spoiled=spoiled, best_step=best),  # type: ignore[arg-type]
        worker_id=worker,  # type: ignore[arg-type]
        recipe=recipe,  # type: ignore[arg-type]
        repeatable=bool(repeatable),
        created_at=created,  # type: ignore[arg-type]
        started_at=started,  # type: ignore[arg-type]
        finished_at=finished,  # type: ignore[arg-type]
        object_name=object_name,  # type: ignore[arg-type]
        drawn=_drawn(result) if result is not None else None,  # type: ignore[arg-type]
        reason=_reason(error) if error is not None and state not in _MODERATED else None,  # type: ignore[arg-type]
        refusal=_refusal(error) if error is not None and state in _MODERATED else None,  # type: ignore[arg-type]
    )


def end_task(connection: sqlite3.Connection, record: TaskRecord, move: Move, amount: int, now: float) -> None:
    """The end of a task: its last ledger row, the balance, its one outbox row, its webhook, nothing to draw it from."""
    connection.execute(INSERT_LEDGER, (record.account_id, record.id, move, amount, now))
    if amount:
        connection.execute(GIVE_BACK, (amount, record.account_id))
    connection.execute(INSERT_OUTBOX, (record.id, record.state, now))
    sqlite_deliveries.begin(connection, record, now)
    connection.execute(sqlite_waypoints.FORGET, (record.id,))
    connection.execute(sqlite_inputs.FORGET, (record.id,))
    connection.execute(sqlite_preparations.FORGET, (record.id,))
