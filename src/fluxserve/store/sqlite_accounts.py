"""The SQL of accounts and keys on SQLite, and the books' invariants."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.accounts.credits import Move
from fluxserve.store.base import Account, Grant, KeyEntry, NewKey
from fluxserve.store.sqlite_rows import GIVE_BACK, INSERT_LEDGER, listed
from fluxserve.tasks.task import FINAL, MAX_ATTEMPTS, State

SELECT_KEYS = """
    SELECT k.id, k.account_id, k.name, k.max_active, k.max_work, k.rate_per_minute, k.weight, k.created_at,
           k.revoked_at, k.digest, a.name, a.balance
    FROM api_keys k JOIN accounts a ON a.id = k.account_id
"""
INSERT_ACCOUNT = (
    "INSERT INTO accounts (id, name, balance, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING"
)
INSERT_KEY = (
    "INSERT INTO api_keys (id, account_id, name, digest, max_active, max_work, rate_per_minute, weight, created_at) "
    "VALUES (?, (SELECT id FROM accounts WHERE name = ?), ?, ?, ?, ?, ?, ?, ?)"
)
SELECT_ACCOUNTS = """
    SELECT a.id, a.name, a.balance, coalesce(sum(l.amount) FILTER (WHERE l.kind = 'grant'), 0),
           -coalesce(sum(l.amount) FILTER (WHERE l.kind != 'grant'), 0)
    FROM accounts a LEFT JOIN ledger l ON l.account_id = a.id {where} GROUP BY a.id ORDER BY a.created_at, a.id
"""
SELECT_BALANCE = "SELECT balance FROM accounts WHERE id = ?"
REVOKE = "UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?"


def to_entry(row: Sequence[object]) -> KeyEntry:
    """A row of SELECT_KEYS as a value."""
    id_, account, name, max_active, max_work, rate, weight, created, revoked, digest, account_name, balance = row
    key = ApiKey(
        id=id_,  # type: ignore[arg-type]
        account_id=account,  # type: ignore[arg-type]
        name=name,  # type: ignore[arg-type]
        max_active=max_active,  # type: ignore[arg-type]
        max_work=max_work,  # type: ignore[arg-type]
        rate_per_minute=rate,  # type: ignore[arg-type]
        weight=weight,  # type: ignore[arg-type]
        created_at=created,  # type: ignore[arg-type]
        revoked_at=revoked,  # type: ignore[arg-type]
    )
    return KeyEntry(key=key, digest=digest, account_name=account_name, balance=balance)  # type: ignore[arg-type]


def create_keys(connection: sqlite3.Connection, keys: Sequence[NewKey]) -> list[KeyEntry]:
    """Write each key down, its account too where it is new, and grant its credits."""
    return [_create(connection, key) for key in keys]


def _create(connection: sqlite3.Connection, new: NewKey) -> KeyEntry:
    balance = None if new.unlimited else 0
    connection.execute(INSERT_ACCOUNT, (f"acc_{secrets.token_hex(8)}", new.account, balance, new.now))
    connection.execute(
        INSERT_KEY,
        (
            new.id, new.account, new.name, new.digest, new.max_active, new.max_work, new.rate_per_minute, new.weight,
            new.now,
        ),
    )  # fmt: skip
    entry = to_entry(connection.execute(SELECT_KEYS + " WHERE k.id = ?", (new.id,)).fetchone())
    if new.grant:
        _give(connection, entry.key.account_id, new.grant, new.now)
    return to_entry(connection.execute(SELECT_KEYS + " WHERE k.id = ?", (new.id,)).fetchone())


def _give(connection: sqlite3.Connection, account_id: str, amount: int, now: float) -> None:
    connection.execute(INSERT_LEDGER, (account_id, None, Move.GRANT, amount, now))
    connection.execute(GIVE_BACK, (amount, account_id))


def grant_many(connection: sqlite3.Connection, grants: Sequence[Grant]) -> list[Account | None]:
    """Add credits to accounts that are not unlimited."""
    return [_grant(connection, grant) for grant in grants]


def _grant(connection: sqlite3.Connection, grant: Grant) -> Account | None:
    def look() -> Account | None:
        return next(iter(accounts(connection, "WHERE a.name = ?", grant.account)), None)

    account = look()
    if account is None or account.balance is None:
        return account
    _give(connection, account.id, grant.amount, grant.now)
    return look()


def accounts(connection: sqlite3.Connection, where: str = "", *values: str) -> list[Account]:
    """Accounts as values, oldest first."""
    return [
        Account(id=id_, name=name, balance=balance, granted=granted, spent=spent)
        for id_, name, balance, granted, spent in connection.execute(SELECT_ACCOUNTS.format(where=where), values)
    ]


def revoke_keys(connection: sqlite3.Connection, revocations: Sequence[tuple[float, str]]) -> list[KeyEntry | None]:
    """Revoke each key; the first revocation's time stays."""
    entries: list[KeyEntry | None] = []
    for now, key_id in revocations:
        connection.execute(REVOKE, (now, key_id))
        row = connection.execute(SELECT_KEYS + " WHERE k.id = ?", (key_id,)).fetchone()
        entries.append(None if row is None else to_entry(row))
    return entries


_KNOWN = listed(tuple(State))
_FINAL = listed(sorted(FINAL))
_EXPLAINED = listed((State.ERROR, State.REQUEST_MODERATED, State.CONTENT_MODERATED))
_READY, _DRAWN = f"'{State.READY}'", listed((State.READY, State.CONTENT_MODERATED))

#: Each query answers the rows that break a rule; the text says what is wrong with `{0}`.
INVARIANTS: tuple[tuple[str, str], ...] = (
    (
        "Account {0}: its balance is not the sum of its ledger.",
        "SELECT a.id FROM accounts a WHERE a.balance IS NOT NULL AND a.balance != "
        "(SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.account_id = a.id)",
    ),
    (
        "Ledger row {0}: its amount has the wrong sign.",
        "SELECT seq FROM ledger WHERE (kind = 'reserve' AND amount > 0) OR (kind != 'reserve' AND amount < 0)",
    ),
    (
        "Task {0}: its ledger is another account's.",
        "SELECT DISTINCT t.id FROM tasks t JOIN ledger l ON l.task_id = t.id WHERE l.account_id != t.account_id",
    ),
    (
        "Task {0}: it was not reserved exactly once.",
        "SELECT t.id FROM tasks t "
        "WHERE (SELECT count(*) FROM ledger l WHERE l.task_id = t.id AND kind = 'reserve') != 1",
    ),
    (
        "Task {0}: its reservation is not its price.",
        "SELECT t.id FROM tasks t JOIN ledger l ON l.task_id = t.id AND l.kind = 'reserve' WHERE l.amount + "
        "coalesce((SELECT amount FROM ledger w WHERE w.task_id = t.id AND w.kind = 'lower'), 0) != -t.cost",
    ),
    (
        "Task {0}: it ended well but was not settled exactly once and never refunded.",
        f"SELECT t.id FROM tasks t WHERE t.state = {_READY} AND "
        "((SELECT count(*) FROM ledger l WHERE l.task_id = t.id AND kind = 'settle') != 1 "
        "OR EXISTS (SELECT 1 FROM ledger l WHERE l.task_id = t.id AND kind = 'refund'))",
    ),
    (
        "Task {0}: it ended without a picture but was not refunded in full exactly once.",
        f"SELECT t.id FROM tasks t WHERE t.state IN ({_FINAL}) AND t.state NOT IN ({_DRAWN}) AND "
        "((SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.task_id = t.id AND kind = 'refund') != t.cost "
        "OR EXISTS (SELECT 1 FROM ledger l WHERE l.task_id = t.id AND kind = 'settle'))",
    ),
    (
        "Task {0}: its picture was refused, but it was neither refunded in full nor settled, or both.",
        f"SELECT t.id FROM tasks t WHERE t.state = '{State.CONTENT_MODERATED}' AND "
        "((SELECT count(*) FROM ledger l WHERE l.task_id = t.id AND kind IN ('settle', 'refund')) != 1 "
        "OR EXISTS (SELECT 1 FROM ledger l WHERE l.task_id = t.id AND kind = 'refund' AND l.amount != t.cost))",
    ),
    (
        "Task {0}: it is unfinished, yet settled or refunded.",
        f"SELECT DISTINCT t.id FROM tasks t JOIN ledger l ON l.task_id = t.id WHERE t.state NOT IN ({_FINAL}) "
        "AND l.kind IN ('settle', 'refund')",
    ),
    (
        "Task {0}: more was given back than was reserved.",
        "SELECT task_id FROM ledger WHERE task_id IS NOT NULL GROUP BY task_id HAVING sum(amount) > 0",
    ),
    (
        "Task {0}: it has ended but is not in the outbox with its final state.",
        f"SELECT t.id FROM tasks t LEFT JOIN outbox o ON o.task_id = t.id WHERE t.state IN ({_FINAL}) "
        "AND (o.state IS NULL OR o.state != t.state)",
    ),
    (
        "Task {0}: it is in the outbox but has not ended.",
        f"SELECT o.task_id FROM outbox o LEFT JOIN tasks t ON t.id = o.task_id WHERE t.id IS NULL "
        f"OR t.state NOT IN ({_FINAL})",
    ),
    (
        "Task {0}: it has ended, but the webhook that its request named does not exist.",
        f"SELECT t.id FROM tasks t WHERE t.state IN ({_FINAL}) AND t.webhook_url IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.task_id = t.id AND d.account_id = t.account_id)",
    ),
    (
        "Task {0}: it has not ended or named no webhook, but there is one.",
        "SELECT d.task_id FROM deliveries d LEFT JOIN tasks t ON t.id = d.task_id WHERE t.webhook_url IS NULL "
        f"OR t.state NOT IN ({_FINAL})",
    ),
    (
        "Task {0}: its pictures are to be fetched, but what it asks for is not written down, or it was priced already.",
        "SELECT t.id FROM tasks t WHERE t.state = 'preparing' AND "
        "(NOT EXISTS (SELECT 1 FROM preparations p WHERE p.task_id = t.id) "
        "OR EXISTS (SELECT 1 FROM ledger l WHERE l.task_id = t.id AND l.kind = 'lower'))",
    ),
    (
        "Task {0}: its pictures are not to be fetched any more, but what it asked for is still written down.",
        "SELECT p.task_id FROM preparations p LEFT JOIN tasks t ON t.id = p.task_id "
        "WHERE t.id IS NULL OR t.state != 'preparing'",
    ),
    (
        "Task {0}: its state is unknown.",
        f"SELECT id FROM tasks WHERE state NOT IN ({_KNOWN})",
    ),
    (
        "Task {0}: its state and its times or its worker disagree.",
        f"SELECT id FROM tasks WHERE (state IN ({_FINAL})) != (finished_at IS NOT NULL) "
        "OR (state = 'running') != (worker_id IS NOT NULL) OR (state = 'running') != (lease_until IS NOT NULL) "
        "OR (state = 'running' AND fence < 1)",
    ),
    (
        "Task {0}: its state and what it answers disagree.",
        "SELECT id FROM tasks WHERE (state = 'ready') != (result IS NOT NULL) "
        f"OR (state IN ({_EXPLAINED})) != (error IS NOT NULL) OR (object_name IS NOT NULL AND state != 'ready')",
    ),
    (
        "Task {0}: it spoiled more attempts than it may have.",
        f"SELECT id FROM tasks WHERE spoiled > {MAX_ATTEMPTS} "
        f"OR (spoiled = {MAX_ATTEMPTS} AND state NOT IN ({_FINAL}))",
    ),
    (
        "Task {0}: its turn comes before its start.",
        "SELECT id FROM tasks WHERE turn < start",
    ),
    (
        "Task {0}: its account or key does not exist.",
        "SELECT t.id FROM tasks t LEFT JOIN api_keys k ON k.id = t.key_id "
        "WHERE k.id IS NULL OR k.account_id != t.account_id",
    ),
    (
        "Task {0}: it is gone or has ended, but its waypoint is kept.",
        "SELECT w.task_id FROM waypoints w LEFT JOIN tasks t ON t.id = w.task_id WHERE t.id IS NULL "
        f"OR t.state IN ({_FINAL})",
    ),
    (
        "Task {0}: it is gone or has ended, but its input pictures are kept.",
        "SELECT i.task_id FROM inputs i LEFT JOIN tasks t ON t.id = i.task_id WHERE t.id IS NULL "
        f"OR t.state IN ({_FINAL})",
    ),
    (
        "Task {0}: it has not ended, but its input pictures are not kept.",
        f"SELECT t.id FROM tasks t WHERE t.state NOT IN ({_FINAL}) AND EXISTS (SELECT 1 FROM "
        "json_each(t.generation, '$.pictures') p WHERE NOT EXISTS (SELECT 1 FROM inputs i "
        "WHERE i.task_id = t.id AND i.name = json_extract(p.value, '$.name')))",
    ),
    (
        "Task {0}: it follows, but no equal task of its account is drawn.",
        "SELECT f.id FROM tasks f WHERE f.state = 'following' AND NOT EXISTS (SELECT 1 FROM tasks l "
        "WHERE l.recipe = f.recipe AND l.account_id = f.account_id AND l.repeatable = 1 "
        "AND l.state IN ('queued', 'running'))",
    ),
    (
        "Picture {0}: tasks of different requests hold it.",
        "SELECT object_name FROM tasks WHERE object_name IS NOT NULL GROUP BY object_name HAVING count(*) > 1 "
        "AND (count(recipe) < count(*) OR count(DISTINCT recipe) > 1 OR count(DISTINCT account_id) > 1)",
    ),
    (
        "Cached picture {0}: no ready task of its request holds it.",
        "SELECT c.object_name FROM result_cache c WHERE NOT EXISTS (SELECT 1 FROM tasks t "
        "WHERE t.object_name = c.object_name AND t.recipe = c.recipe AND t.state = 'ready')",
    ),
    (
        "Cached pictures: {0} bytes were counted, and that is not their sum.",
        "SELECT bytes FROM result_cache_size WHERE bytes != (SELECT coalesce(sum(size), 0) FROM result_cache)",
    ),
    (
        "Task {0}: it is gone, but its fields are kept.",
        "SELECT e.task_id FROM extras e LEFT JOIN tasks t ON t.id = e.task_id WHERE t.id IS NULL",
    ),
)


def violations(connection: sqlite3.Connection) -> list[str]:
    """Every broken invariant as a sentence, at most 20 of a kind."""
    found = [f"SQLite: {row[0]}" for row in connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    for sentence, query in INVARIANTS:
        found += [sentence.format(row[0]) for row in connection.execute(f"{query} LIMIT 20")]
    return found
