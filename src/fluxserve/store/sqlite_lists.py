"""The SQL of an account's list of its own tasks on SQLite.

A page costs at most its own length in each state, however many tasks there are: each state is one walk along the
index `tasks_of_account`, and only the rows that are answered are read.
"""

from __future__ import annotations

import sqlite3

from fluxserve.store.base import Page, PageRequest
from fluxserve.store.sqlite_rows import COLUMNS, to_record

#: Before any task there may be; SQLite's largest row number.
_NEWEST = 2**63 - 1
WALK = """
    SELECT seq FROM (SELECT seq FROM tasks WHERE account_id = :account AND state = '{state}' AND seq < :before
                     ORDER BY seq DESC LIMIT :limit)
"""
SELECT_PAGE = f"""
    SELECT {COLUMNS}, seq FROM tasks WHERE seq IN (SELECT seq FROM ({{walks}}) ORDER BY seq DESC LIMIT :limit)
    ORDER BY seq DESC
"""


def statement(request: PageRequest) -> tuple[str, dict[str, str | int]]:
    """The query for one page and one task more, and its values."""
    walks = " UNION ALL ".join(WALK.format(state=state) for state in request.states)
    before = _NEWEST if request.before is None else request.before
    return SELECT_PAGE.format(walks=walks), {
        "account": request.account_id, "before": before, "limit": request.limit + 1,
    }  # fmt: skip


def page(connection: sqlite3.Connection, request: PageRequest) -> Page:
    """An account's own tasks, newest first."""
    if not request.states:
        return Page(records=(), end=None)
    rows = connection.execute(*statement(request)).fetchall()
    shown = rows[: request.limit]
    return Page(records=tuple(to_record(row) for row in shown), end=shown[-1][-1] if len(rows) > len(shown) else None)
