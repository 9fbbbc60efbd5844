"""The SQL of webhooks on SQLite: a delivery begins in the transaction that ends its task, and lives as long as it.

As long as one waits, and after its end for as long as any task's, its task and its picture are kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fluxserve.store.base import TaskRecord
from fluxserve.store.deliveries import Attempted, Delivery, DeliveryPage, DeliveryPageRequest, DeliveryState, Replay

#: Before any delivery there may be; SQLite's largest row number.
_NEWEST = 2**63 - 1
_COLUMNS = "d.task_id, d.account_id, t.webhook_url, d.state, d.attempts, d.created_at, d.due_at, d.tried_at, d.status, "
_SELECT = f"SELECT {_COLUMNS} d.problem, d.ended_at, d.seq FROM deliveries d JOIN tasks t ON t.id = d.task_id"
BEGIN = "INSERT INTO deliveries (task_id, account_id, state, created_at, due_at) VALUES (?, ?, 'waiting', ?, ?)"
SELECT_WAITING = f"{_SELECT} WHERE d.state = 'waiting' ORDER BY d.due_at"
SELECT_ONE = f"{_SELECT} WHERE d.task_id = ?"
ATTEMPTED = """
    UPDATE deliveries
    SET attempts = attempts + 1, state = ?, due_at = ?, tried_at = ?, status = ?, problem = ?, ended_at = ?
    WHERE task_id = ? AND state = 'waiting'
"""
REPLAY = """
    UPDATE deliveries SET attempts = 0, state = 'waiting', due_at = ?, ended_at = NULL
    WHERE task_id = ? AND account_id = ?
"""
#: One walk along the index `deliveries_of_account` for each state.
WALK = """
    SELECT seq FROM (SELECT seq FROM deliveries WHERE account_id = :account AND state = '{state}' AND seq < :before
                     ORDER BY seq DESC LIMIT :limit)
"""
SELECT_PAGE = (
    f"{_SELECT} WHERE d.seq IN (SELECT seq FROM ({{walks}}) ORDER BY seq DESC LIMIT :limit) ORDER BY d.seq DESC"
)
#: Of a row of tasks: its webhook still waits, or ended at the given time or later.
IS_NEEDED = "EXISTS (SELECT 1 FROM deliveries d WHERE d.task_id = tasks.id AND (d.ended_at IS NULL OR d.ended_at >= ?))"


def begin(connection: sqlite3.Connection, record: TaskRecord, now: float) -> None:
    """In the transaction that ends the task."""
    if record.webhook_url is not None:
        connection.execute(BEGIN, (record.id, record.account_id, now, now))


def attempted_many(connection: sqlite3.Connection, attempts: Sequence[Attempted]) -> list[Delivery | None]:
    """Write down how attempts went; None where the delivery no longer waits."""
    return [_attempted(connection, attempt) for attempt in attempts]


def _attempted(connection: sqlite3.Connection, attempt: Attempted) -> Delivery | None:
    ended_at = None if attempt.state is DeliveryState.WAITING else attempt.now
    values = (attempt.state, attempt.due_at, attempt.now, attempt.status, attempt.problem, ended_at, attempt.task_id)
    return _one(connection, attempt.task_id) if connection.execute(ATTEMPTED, values).rowcount else None


def replay_many(connection: sqlite3.Connection, replays: Sequence[Replay]) -> list[Delivery | None]:
    """Begin them anew; None where the account has no such delivery."""
    return [
        _one(connection, replay.task_id)
        if connection.execute(REPLAY, (replay.now, replay.task_id, replay.account_id)).rowcount
        else None
        for replay in replays
    ]


def _one(connection: sqlite3.Connection, task_id: str) -> Delivery:
    return _delivery(connection.execute(SELECT_ONE, (task_id,)).fetchone())


def select_waiting(connection: sqlite3.Connection) -> list[Delivery]:
    """Every one that waits, in the order they are due."""
    return [_delivery(row) for row in connection.execute(SELECT_WAITING)]


def page(connection: sqlite3.Connection, request: DeliveryPageRequest) -> DeliveryPage:
    """An account's own deliveries, newest first."""
    walks = " UNION ALL ".join(WALK.format(state=state) for state in request.states)
    before = _NEWEST if request.before is None else request.before
    values = {"account": request.account_id, "before": before, "limit": request.limit + 1}
    rows = connection.execute(SELECT_PAGE.format(walks=walks), values).fetchall()
    shown = rows[: request.limit]
    return DeliveryPage(deliveries=tuple(map(_delivery, shown)), end=shown[-1][-1] if len(rows) > len(shown) else None)


def _delivery(row: Sequence[object]) -> Delivery:
    task_id, account_id, url, state, attempts, created_at, due_at, tried_at, status, problem, ended_at = row[:11]
    return Delivery(
        task_id=task_id,  # type: ignore[arg-type]
        account_id=account_id,  # type: ignore[arg-type]
        url=url,  # type: ignore[arg-type]
        state=DeliveryState(state),  # type: ignore[arg-type]
        attempts=attempts,  # type: ignore[arg-type]
        created_at=created_at,  # type: ignore[arg-type]
        due_at=due_at,  # type: ignore[arg-type]
        tried_at=tried_at,  # type: ignore[arg-type]
        status=status,  # type: ignore[arg-type]
        problem=problem,  # type: ignore[arg-type]
        ended_at=ended_at,  # type: ignore[arg-type]
    )
