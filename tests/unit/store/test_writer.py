"""The group-committing writer: waiting calls share a transaction, and no call harms its neighbour."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builders import in_event_loop
from fluxserve import database
from fluxserve.errors import DiskFull, FluxserveError, StoreUnavailable
from fluxserve.store.writer import MAX_GROUP, GroupWriter

Call = Coroutine[object, object, list[int]]
SCHEMA = """
CREATE TABLE notes (n INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE replies (n INTEGER REFERENCES notes (n) DEFERRABLE INITIALLY DEFERRED);
"""


def note(connection: sqlite3.Connection, items: Sequence[str]) -> list[int]:
    """Write each text; answers the numbers of the rows."""
    return [connection.execute("INSERT INTO notes (text) VALUES (?)", (item,)).lastrowid or 0 for item in items]


def shout(connection: sqlite3.Connection, items: Sequence[str]) -> list[int]:
    """Another operation than `note`."""
    return note(connection, [item.upper() for item in items])


def reply(connection: sqlite3.Connection, items: Sequence[int]) -> list[int]:
    """Refer to notes; whether they exist is checked by the COMMIT."""
    return [connection.execute("INSERT INTO replies VALUES (?)", (item,)).rowcount for item in items]


@dataclass
class Scene:
    """A writer, a second connection that looks, and everything the writer said to SQLite."""

    path: Path
    connection: sqlite3.Connection
    writer: GroupWriter
    said: list[str] = field(default_factory=list)

    def count(self, statement: str) -> int:
        """How often the writer said it."""
        return self.said.count(statement)

    def texts(self) -> list[str]:
        """The committed notes in order."""
        reader = sqlite3.connect(self.path)
        rows = reader.execute("SELECT text FROM notes ORDER BY n").fetchall()
        reader.close()
        return [row[0] for row in rows]

    async def together(self, *calls: Call) -> list[list[int] | BaseException]:
        """Run the calls so that all of them wait while the writer is busy."""
        started, release = threading.Event(), threading.Event()

        def be_busy(_: sqlite3.Connection, items: Sequence[int]) -> Sequence[int]:
            started.set()
            assert release.wait(10)
            return items

        busy = asyncio.create_task(self.writer.run(be_busy, [0]))
        await asyncio.to_thread(started.wait, 10)
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0)
        self.said.clear()
        release.set()
        await busy
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self.said.pop(0)  # the COMMIT of the call that was busy
        return outcomes


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A writer on a small database of two tables."""
    path = tmp_path / "notes.db"
    connection = database.open_writer(path)
    connection.executescript(SCHEMA)
    scene = Scene(path, connection, GroupWriter(connection))
    connection.set_trace_callback(scene.said.append)
    yield scene
    asyncio.run(scene.writer.close())


@in_event_loop
async def test_a_lone_call_is_committed_at_once(scene: Scene) -> None:
    assert await scene.writer.run(note, ["a", "b"]) == [1, 2]
    assert scene.texts() == ["a", "b"]
    assert (scene.count("BEGIN IMMEDIATE"), scene.count("COMMIT")) == (1, 1)


@in_event_loop
async def test_calls_that_wait_together_share_one_transaction_and_each_gets_its_own_answers(scene: Scene) -> None:
    outcomes = await scene.together(*[scene.writer.run(note, ["x"] * (n % 3 + 1)) for n in range(30)])

    assert [len(outcome) for outcome in outcomes if isinstance(outcome, list)] == [n % 3 + 1 for n in range(30)]
    assert [row for outcome in outcomes if isinstance(outcome, list) for row in outcome] == list(range(1, 61))
    assert (scene.count("BEGIN IMMEDIATE"), scene.count("COMMIT")) == (1, 1)


@in_event_loop
async def test_one_transaction_holds_at_most_its_number_of_calls(scene: Scene) -> None:
    outcomes = await scene.together(*[scene.writer.run(note, ["x"]) for _ in range(MAX_GROUP + 1)])
    assert outcomes == [[n + 1] for n in range(MAX_GROUP + 1)]
    assert scene.count("COMMIT") == 2


@in_event_loop
async def test_operations_of_several_kinds_keep_their_order(scene: Scene) -> None:
    run = scene.writer.run
    await scene.together(
        run(note, ["a"]), run(note, ["b"]), run(shout, ["c"]), run(note, ["d"]), run(shout, ["e"]), run(shout, ["f"])
    )
    assert scene.texts() == ["a", "b", "C", "d", "E", "F"]
    assert scene.count("COMMIT") == 1


@in_event_loop
async def test_no_items_are_no_call(scene: Scene) -> None:
    assert await scene.writer.run(note, []) == []
    assert scene.said == []


@in_event_loop
async def test_a_call_that_breaks_a_rule_fails_alone(scene: Scene) -> None:
    def repeat(connection: sqlite3.Connection, items: Sequence[int]) -> list[int]:
        return [connection.execute("INSERT INTO notes VALUES (?, '')", (item,)).rowcount for item in items]

    first, broken, last = await scene.together(
        scene.writer.run(note, ["a"]), scene.writer.run(repeat, [7, 7]), scene.writer.run(note, ["b"])
    )

    assert (first, last) == ([1], [2])
    assert isinstance(broken, StoreUnavailable)
    assert scene.texts() == ["a", "b"]


@in_event_loop
async def test_an_error_of_ours_reaches_its_caller_as_it_is(scene: Scene) -> None:
    def refuse(_: sqlite3.Connection, items: Sequence[int]) -> Sequence[int]:
        raise DiskFull("no room")

    refused, taken = await scene.together(scene.writer.run(refuse, [1]), scene.writer.run(note, ["a"]))

    assert isinstance(refused, DiskFull)
    assert refused.message == "no room"
    assert taken == [1]


@in_event_loop
async def test_a_defect_in_an_operation_is_logged_and_not_shown(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def stumble(_: sqlite3.Connection, items: Sequence[str]) -> list[int]:
        return [int(item) for item in items]

    with pytest.raises(StoreUnavailable) as caught:
        await scene.writer.run(stumble, ["a secret prompt"])

    assert "prompt" not in caught.value.message
    assert "defect of fluxserve" in caplog.text
    assert await scene.writer.run(note, ["a"]) == [1]


@in_event_loop
async def test_a_full_disk_fails_what_does_not_fit_and_takes_what_does(scene: Scene) -> None:
    (pages,) = scene.connection.execute("PRAGMA page_count").fetchone()
    scene.connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    before, large, after = await scene.together(
        scene.writer.run(note, ["a"]), scene.writer.run(note, ["b", "x" * 100_000]), scene.writer.run(note, ["c"])
    )

    assert (before, after) == ([1], [2])
    assert isinstance(large, DiskFull)
    assert scene.texts() == ["a", "c"]
    assert scene.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@in_event_loop
async def test_a_full_disk_is_used_again_as_soon_as_there_is_room(scene: Scene) -> None:
    (pages,) = scene.connection.execute("PRAGMA page_count").fetchone()
    scene.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull):
        await scene.writer.run(note, ["x" * 100_000])
    scene.connection.execute("PRAGMA max_page_count = 1000000")
    assert await scene.writer.run(note, ["x" * 100_000]) == [1]


@in_event_loop
async def test_a_commit_that_fails_fails_its_whole_group_and_changes_nothing(scene: Scene) -> None:
    await scene.writer.run(note, ["before"])

    outcomes = await scene.together(
        scene.writer.run(note, ["a"]), scene.writer.run(reply, [404]), scene.writer.run(note, ["b"])
    )

    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert scene.texts() == ["before"]
    assert scene.count("ROLLBACK") == 1
    assert await scene.writer.run(note, ["after"]) == [2]


@in_event_loop
async def test_a_database_that_another_program_holds_fails_a_group_after_one_wait(scene: Scene) -> None:
    scene.connection.execute("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(scene.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    outcomes = await asyncio.gather(*[scene.writer.run(note, ["x"]) for _ in range(50)], return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 50
    assert scene.count("BEGIN IMMEDIATE") <= 2  # for the first call, and with it for those that gathered meanwhile
    other.close()
    assert await scene.writer.run(note, ["y"]) == [1]


@in_event_loop
async def test_a_caller_that_went_away_does_not_disturb_the_others(scene: Scene) -> None:
    async def impatient() -> list[int]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scene.writer.run(note, ["a"]), 0)
        return []

    _, other = await scene.together(impatient(), scene.writer.run(note, ["b"]))

    assert other == [len(scene.texts())]


@in_event_loop
async def test_a_closed_writer_refuses_calls_and_has_committed_those_before(scene: Scene) -> None:
    calls = [asyncio.create_task(scene.writer.run(note, [f"{n}"])) for n in range(5)]
    await asyncio.sleep(0)
    await scene.writer.close()

    assert await asyncio.gather(*calls) == [[1], [2], [3], [4], [5]]
    assert scene.texts() == ["0", "1", "2", "3", "4"]
    with pytest.raises(StoreUnavailable):
        await scene.writer.run(note, ["late"])


def test_calls_of_several_event_loops_share_one_writer(scene: Scene) -> None:
    def client(name: str) -> Callable[[], None]:
        async def write() -> None:
            for _ in range(20):
                await scene.writer.run(note, [name])

        return lambda: asyncio.run(write())

    threads = [threading.Thread(target=client(name)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scene.texts()) == ["a"] * 20 + ["b"] * 20 + ["c"] * 20


def test_a_loop_that_ended_before_its_answer_came_stops_nobody(scene: Scene) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection, items: Sequence[str]) -> list[int]:
        started.set()
        assert release.wait(10)
        return note(connection, items)

    async def leave() -> None:
        task = asyncio.create_task(scene.writer.run(slow, ["written all the same"]))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()

    asyncio.run(leave())
    release.set()

    assert asyncio.run(scene.writer.run(note, ["next"])) == [2]
    assert scene.texts() == ["written all the same", "next"]


def test_every_failure_is_one_of_ours(scene: Scene) -> None:
    scene.connection.close()
    with pytest.raises(FluxserveError):
        asyncio.run(scene.writer.run(note, ["x"]))
