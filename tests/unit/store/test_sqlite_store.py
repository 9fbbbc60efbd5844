"""The embedded store beyond the shared suite: its file, its backup, its rows, and kill -9 while it writes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from builders import (
    claimed,
    claimed_one,
    completion,
    failure,
    generation,
    in_event_loop,
    loss,
    new_key,
    submission,
    submitted,
)
from fluxserve import database
from fluxserve.errors import DatabaseDamaged, DatabaseTooNew
from fluxserve.store import sqlite_cache, sqlite_lists, sqlite_sharing, sqlite_turns
from fluxserve.store.base import KeyEntry, PageRequest, Store
from fluxserve.store.sqlite import MIGRATIONS, SqliteStore
from fluxserve.tasks.task import State

TESTS = Path(__file__).parents[2]
TASK_OF_THE_FIRST_SCHEMA = """
    INSERT INTO tasks (id, account_id, key_id, state, model, batch_key, turn, generation, warnings, dialect, origin,
                       request_hash, cost, created_at)
    VALUES (:id, 'a', 'k', 'queued', 'flux-dev', 'flux-dev/512x512', :turn, :drawing, '[]', 'bfl', '', x'00', 0, 0)
"""
#: Submits and finishes for ever; says what was acknowledged, and nothing before it was.
WRITE_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from builders import claimed, completion, new_key, submission
from fluxserve.store.sqlite import SqliteStore

async def submit(store, entry):
    while True:
        (answer,) = await store.submit_many([submission(entry)])
        print("accepted", answer.record.id, flush=True)

async def draw(store, worker):
    while True:
        for record in await claimed(store, worker, limit=4):
            await store.complete_many([completion(record)])
            print("ready", record.id, flush=True)

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    entry = await store.create_key(new_key(credits_=10**9))
    await asyncio.gather(*[submit(store, entry) for _ in range(8)], *[draw(store, f"w{n}") for n in range(3)])

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where this test's database goes."""
    return tmp_path / "fluxserve.db"


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """What another program would read."""
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    found = reader.execute(query).fetchall()
    reader.close()
    return found


def kill_while_writing(path: Path, after: int) -> dict[str, set[str]]:
    """Start a writing process, kill it -9 after `after` acknowledgements; answers all that it said."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))},
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(after)]
    child.kill()
    rest, _ = child.communicate()
    words = [line.split() for line in [*said, *rest.splitlines(keepends=True)] if line.endswith("\n")]
    return {verb: {id_ for said_verb, id_ in words if said_verb == verb} for verb in ("accepted", "ready")}


@pytest.mark.parametrize("after", [20, 333, 1200])
@in_event_loop
async def test_kill_9_while_writing_loses_nothing_that_was_acknowledged(path: Path, after: int) -> None:
    acknowledged = kill_while_writing(path, after)

    store = SqliteStore(path)
    accepted = await store.get_many(list(acknowledged["accepted"]))
    ready = await store.get_many(list(acknowledged["ready"]))
    assert len(accepted) + len(ready) >= after
    assert None not in accepted
    assert {record.state for record in ready if record} <= {"ready"}
    assert None not in ready
    assert await store.fsck() == []
    await store.close()


@in_event_loop
async def test_a_backup_made_while_the_store_works_is_a_sound_copy(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    entry = await store.create_key(new_key(credits_=1_000_000))
    before = await submitted(store, entry, count=50)
    target = tmp_path / "backups" / "backup.db"

    work = [asyncio.create_task(churn(store, entry, f"w{n}")) for n in range(4)]
    await store.backup(target)
    await asyncio.gather(*work)
    await store.close()

    copy = SqliteStore(target)
    assert await copy.fsck() == []
    assert None not in await copy.get_many([task.id for task in before])
    await copy.close()


async def churn(store: Store, entry: KeyEntry, worker: str) -> None:
    """Submits, completions, failures and losses, one after the other."""
    for _ in range(10):
        await submitted(store, entry)
        await store.complete_many([completion(await claimed_one(store, worker))])
        await submitted(store, entry)
        await store.fail_many([failure(await claimed_one(store, worker))])
        await store.release_many([loss(await claimed_one(store, worker), suspected=False)])


@in_event_loop
async def test_each_ended_task_is_in_the_outbox_once_with_its_end(path: Path) -> None:
    store = SqliteStore(path)
    entry = await store.create_key(new_key())
    ids = [task.id for task in await submitted(store, entry, count=4)]
    ready, failed, lost = await claimed(store, limit=3)
    await store.complete_many([completion(ready), completion(ready)])
    await store.fail_many([failure(failed), failure(failed)])
    await store.release_many([loss(lost)])
    await store.close()
    assert sorted(rows(path, "SELECT task_id, state FROM outbox")) == sorted([(ids[0], "ready"), (ids[1], "error")])


@in_event_loop
async def test_fields_that_are_not_drawn_from_go_with_their_task(path: Path) -> None:
    store = SqliteStore(path)
    entry = await store.create_key(new_key())
    await store.submit_many([submission(entry, extras={"user": "u1", "image_prompt": "aGVsbG8="})])
    await store.submit_many([submission(entry)])
    kept = rows(path, "SELECT fields FROM extras")
    (task, _) = await claimed(store, limit=2)
    await store.complete_many([completion(task, now=0.0)])
    await store.delete_old(1.0, 10)
    await store.close()
    assert kept == [('{"user":"u1","image_prompt":"aGVsbG8="}',)]
    assert rows(path, "SELECT * FROM extras") == []


@in_event_loop
async def test_names_that_look_like_sql_are_only_text(path: Path) -> None:
    store = SqliteStore(path)
    nasty = new_key(name="'; DROP TABLE tasks; --", account='"; DELETE FROM accounts; --')
    entry = await store.create_key(nasty)
    await submitted(store, entry)
    assert [key.key.name for key in await store.keys()] == [nasty.name]
    assert len(await store.active()) == 1
    await store.close()


@in_event_loop
async def test_a_database_of_the_first_schema_is_brought_up_to_date_and_lists_its_tasks(path: Path) -> None:
    connection = database.open_writer(path)
    database.migrate(connection, MIGRATIONS[:1])
    connection.execute("INSERT INTO accounts VALUES ('a', 'alice', NULL, 0)")
    connection.execute(
        "INSERT INTO api_keys (id, account_id, name, digest, created_at) VALUES ('k', 'a', 'k', x'00', 0)"
    )
    for number in range(3):
        values = {"id": f"t{number}", "turn": number, "drawing": msgspec.json.encode(generation()).decode()}
        connection.execute(TASK_OF_THE_FIRST_SCHEMA, values)
        connection.execute(
            "INSERT INTO ledger (account_id, task_id, kind, amount, at) VALUES ('a', :id, 'reserve', 0, 0)", values
        )
    connection.close()

    store = SqliteStore(path)

    page = await store.page(PageRequest(account_id="a", states=tuple(State), limit=9))
    assert [record.id for record in page.records] == ["t2", "t1", "t0"]
    assert [record.id for record in await claimed(store, limit=9)] == ["t0", "t1", "t2"]
    assert rows(path, "PRAGMA user_version") == [(MIGRATIONS[-1].number,)]
    assert await store.fsck() == []
    await store.close()


@pytest.mark.parametrize("states", [tuple(State), (State.READY,), (State.ERROR, State.CANCELLED)])
def test_a_page_walks_along_an_index_and_sorts_no_more_than_it_answers(path: Path, states: tuple[State, ...]) -> None:
    asyncio.run(SqliteStore(path).close())
    request = PageRequest(account_id="a", states=states, limit=50, before=1000)
    query, values = sqlite_lists.statement(request)
    reader = database.open_reader(path)
    plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query}", values)]
    reader.close()
    walk = "SEARCH tasks USING COVERING INDEX tasks_of_account (account_id=? AND state=? AND rowid<?)"
    on_tasks = [step for step in plan if (" tasks" in step and "tasks_of" in step) or step.startswith("SCAN tasks")]
    assert on_tasks == [walk] * len(states)
    assert "SEARCH tasks USING INTEGER PRIMARY KEY (rowid=?)" in plan


@pytest.mark.parametrize(
    "query",
    [
        sqlite_sharing.SELECT_LEADER,
        sqlite_sharing.SELECT_FOLLOWERS,
        sqlite_sharing.MOVE_LEADER,
        sqlite_turns.SELECT_STAYS,
        sqlite_cache.SELECT_ENTRY,
        sqlite_cache.SELECT_HOLDER,
        sqlite_cache.DELETE_ENTRY_OF,
    ],
)
def test_equal_requests_are_found_along_an_index(path: Path, query: str) -> None:
    asyncio.run(SqliteStore(path).close())
    reader = database.open_reader(path)
    plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {query}", [None] * query.count("?"))]
    reader.close()
    assert plan
    assert all(step.startswith("SEARCH") for step in plan)


def test_a_damaged_database_stops_the_start(path: Path) -> None:
    asyncio.run(SqliteStore(path).close())
    path.write_bytes(os.urandom(8192))
    with pytest.raises(DatabaseDamaged):
        SqliteStore(path)


def test_a_database_of_a_newer_fluxserve_stops_the_start(path: Path) -> None:
    asyncio.run(SqliteStore(path).close())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(DatabaseTooNew):
        SqliteStore(path)
