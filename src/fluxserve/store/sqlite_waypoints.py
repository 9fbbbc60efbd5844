"""The SQL of waypoints on SQLite: kept under a claim, gone with the task's end, and who may go on from them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fluxserve.store.base import KeptWaypoint, NewWaypoint

COLUMNS = "task_id, object_name, fingerprint, step, steps, size"
KEEP = f"""
    INSERT INTO waypoints ({COLUMNS}, waits_since)
    SELECT id, ?, ?, ?, ?, ?, ? FROM tasks WHERE id = ? AND fence = ? AND state = 'running'
    ON CONFLICT (task_id) DO UPDATE SET
        object_name = excluded.object_name, fingerprint = excluded.fingerprint, step = excluded.step,
        steps = excluded.steps, size = excluded.size, waits_since = excluded.waits_since
"""
DROP = "DELETE FROM waypoints WHERE task_id = ? AND object_name = ?"
#: In the transaction that ends the task.
FORGET = "DELETE FROM waypoints WHERE task_id = ?"
#: In the transaction that puts the task back in the queue.
WAIT = "UPDATE waypoints SET waits_since = ? WHERE task_id = ?"
#: An equal task takes the place of the one that it was written for.
GO_TO_HEIR = "UPDATE waypoints SET task_id = ?, waits_since = ? WHERE task_id = ? RETURNING step, steps"
SELECT_ALL = f"SELECT {COLUMNS} FROM waypoints ORDER BY waits_since, task_id"
#: Bound to a time and to fingerprints by model, as JSON: a task that was written down is kept for workers of its
#: fingerprint, and is anybody's once it has waited since that time.
IS_FOR_WORKER = """
    NOT EXISTS (
        SELECT 1 FROM waypoints w WHERE w.task_id = tasks.id AND w.waits_since > ?
        AND NOT EXISTS (SELECT 1 FROM json_each(?) f WHERE f.key = tasks.model AND f.value = w.fingerprint))
"""


def keep_many(connection: sqlite3.Connection, waypoints: Sequence[NewWaypoint]) -> list[bool]:
    """Each takes the place of the task's last one; False where the claim was lost."""
    return [_keep(connection, new) for new in waypoints]


def _keep(connection: sqlite3.Connection, new: NewWaypoint) -> bool:
    kept = new.waypoint
    values = (
        kept.object_name, kept.fingerprint, kept.step, kept.steps, kept.size, new.now, kept.task_id, new.fence,
    )  # fmt: skip
    return bool(connection.execute(KEEP, values).rowcount)


def drop_many(connection: sqlite3.Connection, waypoints: Sequence[KeptWaypoint]) -> list[bool]:
    """Their tasks start over; False where another one is kept by now."""
    return [bool(connection.execute(DROP, (one.task_id, one.object_name)).rowcount) for one in waypoints]


def pass_on(connection: sqlite3.Connection, task_id: str, heir: str, now: float) -> float:
    """The heir goes on from where the task was last written down; how far that is, from 0 to 1."""
    row = connection.execute(GO_TO_HEIR, (heir, now, task_id)).fetchone()
    return 0.0 if row is None else float(row[0] / row[1])


def select_all(connection: sqlite3.Connection) -> list[KeptWaypoint]:
    """Every waypoint, the oldest first."""
    return [
        KeptWaypoint(
            task_id=task_id, object_name=object_name, fingerprint=fingerprint, step=step, steps=steps, size=size
        )
        for task_id, object_name, fingerprint, step, steps, size in connection.execute(SELECT_ALL)
    ]
