"""The SQL of the result cache on SQLite: which stored picture answers a recipe.

An entry holds no picture of its own: it points at one that ready tasks hold, and goes with the last of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.store.base import Drawn, Kept
from fluxserve.store.sqlite_rows import decode_drawn

SELECT_ENTRY = """
    SELECT c.fingerprint, c.object_name, t.result FROM result_cache c JOIN tasks t ON t.object_name = c.object_name
    WHERE c.recipe = ? LIMIT 1
"""
TOUCH_ENTRY = "UPDATE result_cache SET used_at = ? WHERE recipe = ?"
INSERT_ENTRY = "INSERT INTO result_cache (recipe, fingerprint, object_name, size, used_at) VALUES (?, ?, ?, ?, ?)"
DELETE_ENTRY = "DELETE FROM result_cache WHERE recipe = ? RETURNING size"
DELETE_ENTRY_OF = "DELETE FROM result_cache WHERE object_name = ? RETURNING size"
SELECT_LEAST_USED = "SELECT recipe FROM result_cache ORDER BY used_at, recipe LIMIT 1"
RESIZE = "UPDATE result_cache_size SET bytes = bytes + ? RETURNING bytes"
SELECT_HOLDER = "SELECT 1 FROM tasks WHERE object_name = ? LIMIT 1"
SELECT_OBJECTS = "SELECT object_name FROM result_cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A stored picture, and what the tasks that hold it answer beside it."""

    object_name: str
    drawn: Drawn


def find(connection: sqlite3.Connection, recipe: bytes | None, fingerprints: Sequence[str], now: float) -> Found | None:
    """The picture that one of `fingerprints` would draw for the recipe, used now."""
    row = connection.execute(SELECT_ENTRY, (recipe,)).fetchone()
    if row is None or row[0] not in fingerprints:
        return None
    connection.execute(TOUCH_ENTRY, (now, recipe))
    return Found(object_name=row[1], drawn=decode_drawn(row[2]))


def keep(connection: sqlite3.Connection, recipe: bytes, object_name: str, kept: Kept, now: float) -> None:
    """Answer the recipe with this picture from now on; those used longest ago leave until all are within the budget."""
    _delete(connection, DELETE_ENTRY, recipe)
    if kept.size > kept.budget:
        return
    connection.execute(INSERT_ENTRY, (recipe, kept.fingerprint, object_name, kept.size, now))
    (total,) = connection.execute(RESIZE, (kept.size,)).fetchone()
    while total > kept.budget:
        (least_used,) = connection.execute(SELECT_LEAST_USED).fetchone()
        total -= _delete(connection, DELETE_ENTRY, least_used)


def let_go(connection: sqlite3.Connection, object_name: str) -> bool:
    """A task no longer holds the picture. True when none does, so that it has to be deleted: the entry is gone too."""
    if connection.execute(SELECT_HOLDER, (object_name,)).fetchone() is not None:
        return False
    _delete(connection, DELETE_ENTRY_OF, object_name)
    return True


def forget(connection: sqlite3.Connection, object_names: Sequence[str]) -> list[bool]:
    """Answer nothing with these pictures any more."""
    return [bool(_delete(connection, DELETE_ENTRY_OF, object_name)) for object_name in object_names]


def _delete(connection: sqlite3.Connection, query: str, key: bytes | str) -> int:
    """Delete an entry if it is there; the bytes that it counted."""
    row = connection.execute(query, (key,)).fetchone()
    if row is None:
        return 0
    connection.execute(RESIZE, (-row[0],))
    return int(row[0])
