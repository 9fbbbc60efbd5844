"""The SQL of preparations on SQLite: written down with the task, gone with its being prepared or its end."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from fluxserve.store.submissions import Preparation

KEEP = "INSERT INTO preparations (task_id, request) VALUES (?, ?)"
SELECT = "SELECT request FROM preparations WHERE task_id = ?"
#: In the transaction that prepares or ends the task.
FORGET = "DELETE FROM preparations WHERE task_id = ?"
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Preparation).decode


def keep(connection: sqlite3.Connection, task_id: str, preparation: Preparation) -> None:
    """In the transaction that accepts the task."""
    connection.execute(KEEP, (task_id, _encode(preparation).decode()))


def select(connection: sqlite3.Connection, task_ids: Sequence[str]) -> list[Preparation | None]:
    """Of each task, or None."""
    rows = [connection.execute(SELECT, (task_id,)).fetchone() for task_id in task_ids]
    return [None if row is None else _decode(row[0]) for row in rows]
