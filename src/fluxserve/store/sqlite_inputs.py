"""The SQL of input pictures on SQLite: named when their task is accepted, gone with its end."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fluxserve.store.submissions import KeptInput

COLUMNS = "task_id, name, object_name, size"
KEEP = f"INSERT INTO inputs ({COLUMNS}) VALUES (?, ?, ?, ?)"
#: In the transaction that ends the task.
FORGET = "DELETE FROM inputs WHERE task_id = ?"
SELECT_ALL = f"SELECT {COLUMNS} FROM inputs ORDER BY task_id, name"


def keep(connection: sqlite3.Connection, inputs: Sequence[KeptInput]) -> None:
    """In the transaction that accepts their task."""
    connection.executemany(KEEP, [(one.task_id, one.name, one.object_name, one.size) for one in inputs])


def select_all(connection: sqlite3.Connection) -> list[KeptInput]:
    """Every one."""
    return [
        KeptInput(task_id=task_id, name=name, object_name=object_name, size=size)
        for task_id, name, object_name, size in connection.execute(SELECT_ALL)
    ]
