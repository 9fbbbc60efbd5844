"""fsck: finds each kind of damage, each planted here by hand, and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from builders import claimed, completion, failure, in_event_loop, new_key, preparation, refused, submission
from fluxserve.store.sqlite import SqliteStore

#: What is planted, and the sentences fsck must answer, and no other. Tasks: queued, running, ready, failed.
#: Without the index `ledger_once` the schema no longer refuses a second row of a kind.
DAMAGE = {
    "a balance that moved without the ledger": (
        "UPDATE accounts SET balance = balance + 1 WHERE id = :account",
        ["Account {account}: its balance is not the sum of its ledger."],
    ),
    "a grant that never reached the balance": (
        "INSERT INTO ledger (account_id, kind, amount, at) VALUES (:account, 'grant', 5, 0)",
        ["Account {account}: its balance is not the sum of its ledger."],
    ),
    "a settlement that takes more than was reserved": (
        "UPDATE ledger SET amount = -1, seq = 999 WHERE task_id = :ready AND kind = 'settle';"
        "UPDATE accounts SET balance = balance - 1 WHERE id = :account",
        ["Ledger row 999: its amount has the wrong sign."],
    ),
    "a reservation on another account's ledger": (
        "UPDATE ledger SET account_id = 'rich' WHERE task_id = :queued;"
        "UPDATE accounts SET balance = balance + 1000 WHERE id = :account",
        ["Task {queued}: its ledger is another account's."],
    ),
    "a task without a reservation": (
        "DELETE FROM ledger WHERE task_id = :queued; UPDATE accounts SET balance = balance + 1000 WHERE id = :account",
        ["Task {queued}: it was not reserved exactly once."],
    ),
    "a task reserved twice": (
        "DROP INDEX ledger_once; INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES"
        "(:account, :queued, 'reserve', -1000, 0); UPDATE accounts SET balance = balance - 1000 WHERE id = :account",
        ["Task {queued}: it was not reserved exactly once."],
    ),
    "a reservation below the price": (
        "UPDATE ledger SET amount = -999 WHERE task_id = :queued;"
        "UPDATE accounts SET balance = balance + 1 WHERE id = :account",
        ["Task {queued}: its reservation is not its price."],
    ),
    "a reservation that was lowered below the price": (
        "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES(:account, :queued, 'lower', 1, 0);"
        "UPDATE accounts SET balance = balance + 1 WHERE id = :account",
        ["Task {queued}: its reservation is not its price."],
    ),
    "a task that waits for pictures which nobody knows": (
        "DELETE FROM preparations WHERE task_id = :preparing",
        [
            "Task {preparing}: its pictures are to be fetched, but what it asks for is not written down, "
            "or it was priced already."
        ],
    ),
    "a request that is kept for longer than it is needed": (
        "INSERT INTO preparations VALUES (:queued, '{}')",
        ["Task {queued}: its pictures are not to be fetched any more, but what it asked for is still written down."],
    ),
    "a request whose task is gone": (
        "INSERT INTO preparations VALUES ('gone', '{}')",
        ["Task gone: its pictures are not to be fetched any more, but what it asked for is still written down."],
    ),
    "a ready task that was never settled": (
        "DELETE FROM ledger WHERE task_id = :ready AND kind = 'settle'",
        ["Task {ready}: it ended well but was not settled exactly once and never refunded."],
    ),
    "a ready task settled twice": (
        "DROP INDEX ledger_once; INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES"
        "(:account, :ready, 'settle', 0, 0)",
        ["Task {ready}: it ended well but was not settled exactly once and never refunded."],
    ),
    "a ready task that was refunded too": (
        "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES(:account, :ready, 'refund', 0, 0)",
        ["Task {ready}: it ended well but was not settled exactly once and never refunded."],
    ),
    "a failed task that was not refunded": (
        "DELETE FROM ledger WHERE task_id = :failed AND kind = 'refund';"
        "UPDATE accounts SET balance = balance - 1000 WHERE id = :account",
        ["Task {failed}: it ended without a picture but was not refunded in full exactly once."],
    ),
    "a failed task refunded in part": (
        "UPDATE ledger SET amount = 999 WHERE task_id = :failed AND kind = 'refund';"
        "UPDATE accounts SET balance = balance - 1 WHERE id = :account",
        ["Task {failed}: it ended without a picture but was not refunded in full exactly once."],
    ),
    "a failed task refunded twice": (
        "DROP INDEX ledger_once; INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES"
        "(:account, :failed, 'refund', 1000, 0); UPDATE accounts SET balance = balance + 1000 WHERE id = :account",
        [
            "Task {failed}: it ended without a picture but was not refunded in full exactly once.",
            "Task {failed}: more was given back than was reserved.",
        ],
    ),
    "a refused task that was neither refunded nor charged": (
        "DELETE FROM ledger WHERE task_id = :refused AND kind = 'refund';"
        "UPDATE accounts SET balance = balance - 1000 WHERE id = :account",
        ["Task {refused}: its picture was refused, but it was neither refunded in full nor settled, or both."],
    ),
    "a refused task that says not why": (
        "UPDATE tasks SET error = NULL WHERE id = :refused",
        ["Task {refused}: its state and what it answers disagree."],
    ),
    "a running task that was refunded": (
        "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES(:account, :running, 'refund', 1000, 0);"
        "UPDATE accounts SET balance = balance + 1000 WHERE id = :account",
        ["Task {running}: it is unfinished, yet settled or refunded."],
    ),
    "a settlement above the reservation": (
        "UPDATE ledger SET amount = 1001 WHERE task_id = :ready AND kind = 'settle';"
        "UPDATE accounts SET balance = balance + 1001 WHERE id = :account",
        ["Task {ready}: more was given back than was reserved."],
    ),
    "a finished task that nobody will be told of": (
        "DELETE FROM outbox WHERE task_id = :ready",
        ["Task {ready}: it has ended but is not in the outbox with its final state."],
    ),
    "an outbox that tells another end": (
        "UPDATE outbox SET state = 'ready' WHERE task_id = :failed",
        ["Task {failed}: it has ended but is not in the outbox with its final state."],
    ),
    "an outbox that tells of a running task": (
        "INSERT INTO outbox VALUES (:running, 'ready', 0)",
        ["Task {running}: it is in the outbox but has not ended."],
    ),
    "an outbox that tells of a task that is gone": (
        "INSERT INTO outbox VALUES ('gone', 'ready', 0)",
        ["Task gone: it is in the outbox but has not ended."],
    ),
    "an ended task whose webhook is nowhere": (
        "UPDATE tasks SET webhook_url = 'https://hooks.test/' WHERE id = :ready",
        ["Task {ready}: it has ended, but the webhook that its request named does not exist."],
    ),
    "a webhook of a running task": (
        "INSERT INTO deliveries (task_id, account_id, state, created_at, due_at) "
        "VALUES (:running, :account, 'waiting', 0, 0)",
        ["Task {running}: it has not ended or named no webhook, but there is one."],
    ),
    "a state that does not exist": (
        "UPDATE tasks SET state = 'lost' WHERE id = :queued",
        ["Task {queued}: its state is unknown."],
    ),
    "a running task that has ended": (
        "UPDATE tasks SET finished_at = 1 WHERE id = :running",
        ["Task {running}: its state and its times or its worker disagree."],
    ),
    "a running task without a worker": (
        "UPDATE tasks SET worker_id = NULL WHERE id = :running",
        ["Task {running}: its state and its times or its worker disagree."],
    ),
    "a running task without a lease": (
        "UPDATE tasks SET lease_until = NULL WHERE id = :running",
        ["Task {running}: its state and its times or its worker disagree."],
    ),
    "a running task that was never claimed": (
        "UPDATE tasks SET fence = 0 WHERE id = :running",
        ["Task {running}: its state and its times or its worker disagree."],
    ),
    "a queued task with a worker": (
        "UPDATE tasks SET worker_id = 'w1' WHERE id = :queued",
        ["Task {queued}: its state and its times or its worker disagree."],
    ),
    "a ready task without an answer": (
        "UPDATE tasks SET result = NULL WHERE id = :ready",
        ["Task {ready}: its state and what it answers disagree."],
    ),
    "a failed task without a reason": (
        "UPDATE tasks SET error = NULL WHERE id = :failed",
        ["Task {failed}: its state and what it answers disagree."],
    ),
    "a failed task with a picture": (
        "UPDATE tasks SET object_name = 'x.jpeg' WHERE id = :failed",
        ["Task {failed}: its state and what it answers disagree."],
    ),
    "too many attempts": (
        "UPDATE tasks SET spoiled = 4 WHERE id = :queued",
        ["Task {queued}: it spoiled more attempts than it may have."],
    ),
    "a task that is tried again after its last attempt": (
        "UPDATE tasks SET spoiled = 3 WHERE id = :queued",
        ["Task {queued}: it spoiled more attempts than it may have."],
    ),
    "a task of a key that does not exist": (
        "UPDATE tasks SET key_id = 'nobody' WHERE id = :queued",
        ["Task {queued}: its account or key does not exist."],
    ),
    "a waypoint of a task that has ended": (
        "INSERT INTO waypoints VALUES (:ready, 'x', 'f1', 1, 2, 0, 0)",
        ["Task {ready}: it is gone or has ended, but its waypoint is kept."],
    ),
    "a waypoint of a task that is gone": (
        "INSERT INTO waypoints VALUES ('gone', 'x', 'f1', 1, 2, 0, 0)",
        ["Task gone: it is gone or has ended, but its waypoint is kept."],
    ),
    "a follower of nobody": (
        "UPDATE tasks SET state = 'following' WHERE id = :queued",
        ["Task {queued}: it follows, but no equal task of its account is drawn."],
    ),
    "a follower of another account's task": (
        "UPDATE tasks SET state = 'following', account_id = 'rich', key_id = 'rich' WHERE id = :queued;"
        "UPDATE tasks SET recipe = x'01', repeatable = 1 WHERE id IN (:queued, :running);"
        "UPDATE ledger SET account_id = 'rich' WHERE task_id = :queued;"
        "UPDATE accounts SET balance = balance + 1000 WHERE id = :account",
        [
            "Task {queued}: its account or key does not exist.",
            "Task {queued}: it follows, but no equal task of its account is drawn.",
        ],
    ),
    "a picture that another request holds too": (
        "UPDATE tasks SET object_name = (SELECT object_name FROM tasks WHERE id = :ready) WHERE id = :failed",
        [
            "Task {failed}: its state and what it answers disagree.",
            "Picture {ready}-1.jpeg: tasks of different requests hold it.",
        ],
    ),
    "a cached picture that nobody holds": (
        "INSERT INTO result_cache VALUES (x'01', 'f', 'gone.jpeg', 5, 0); UPDATE result_cache_size SET bytes = 5",
        ["Cached picture gone.jpeg: no ready task of its request holds it."],
    ),
    "a cached picture of another request": (
        "INSERT INTO result_cache SELECT x'01', 'f', object_name, 0, 0 FROM tasks WHERE id = :ready",
        ["Cached picture {ready}-1.jpeg: no ready task of its request holds it."],
    ),
    "cached pictures that were counted wrongly": (
        "UPDATE result_cache_size SET bytes = 7",
        ["Cached pictures: 7 bytes were counted, and that is not their sum."],
    ),
    "fields of a task that is gone": (
        "INSERT INTO extras VALUES ('gone', '{}')",
        ["Task gone: it is gone, but its fields are kept."],
    ),
}


async def books(path: Path) -> dict[str, str]:
    """A database with a task in each state and a second account; the names by which damage is planted."""
    store = SqliteStore(path)
    entry = await store.create_key(new_key(credits_=10_000))
    answers = await store.submit_many([submission(entry, extras={"user": "u1"}) for _ in range(5)])
    (preparing,) = await store.submit_many([submission(entry, preparation=preparation())])
    assert preparing.record is not None
    records = await claimed(store, limit=4)
    await store.complete_many([completion(records[1])])
    await store.fail_many([failure(records[2])])
    await store.refuse_many([refused(records[3])])
    await store.close()
    ids = [answer.record.id for answer in answers if answer.record]
    return dict(zip(("running", "ready", "failed", "refused", "queued"), ids, strict=True)) | {
        "account": entry.key.account_id, "preparing": preparing.record.id,
    }  # fmt: skip


def plant(path: Path, script: str, names: dict[str, str]) -> None:
    """Run the statements of `script` with `names` filled in."""
    connection = sqlite3.connect(path)
    for statement in script.split(";"):
        connection.execute(statement, names)
    connection.commit()
    connection.close()


async def violations(path: Path) -> list[str]:
    """What fsck says."""
    store = SqliteStore(path)
    try:
        return await store.fsck()
    finally:
        await store.close()


@in_event_loop
async def test_sound_books_have_no_violations(tmp_path: Path) -> None:
    path = tmp_path / "fluxserve.db"
    await books(path)
    assert await violations(path) == []


@pytest.mark.parametrize("damage", DAMAGE)
@in_event_loop
async def test_each_damage_is_named_and_nothing_else_is(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "fluxserve.db"
    names = await books(path)
    script, sentences = DAMAGE[damage]

    plant(path, script, names)

    assert await violations(path) == [sentence.format(**names) for sentence in sentences]


@in_event_loop
async def test_many_violations_of_a_kind_are_cut_to_twenty(tmp_path: Path) -> None:
    path = tmp_path / "fluxserve.db"
    await books(path)
    plant(
        path,
        "INSERT INTO extras WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30) "
        "SELECT 'gone' || i, '{}' FROM n",
        {},
    )
    assert len(await violations(path)) == 20


@in_event_loop
async def test_an_index_that_misses_a_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fluxserve.db"
    await books(path)
    plant(
        path,
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'finished_at IS NOT NULL', "
        "'finished_at IS NULL') WHERE name = 'tasks_finished'",
        {},
    )
    found = await violations(path)
    assert found
    assert all(sentence.startswith("SQLite: ") for sentence in found)
