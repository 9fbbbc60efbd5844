"""Equal requests under faults: whatever is killed or fails at whichever statement, no task is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builders import NOW, cancellation, claim_request, completion, failure, in_event_loop, loss, new_key, submission
from fluxserve import database
from fluxserve.errors import StoreUnavailable
from fluxserve.store import sqlite_accounts, sqlite_sharing, sqlite_tasks
from fluxserve.store.base import Kept, KeyEntry, Offer, Picture, TaskRecord
from fluxserve.store.sqlite import MIGRATIONS, SqliteStore
from fluxserve.store.writer import GroupWriter, Item, Operation, Outcome
from fluxserve.tasks.task import State

HERE = ("the weights of today",)
TABLES = ("tasks", "ledger", "outbox", "accounts", "api_keys", "clock", "result_cache", "result_cache_size")
EVERYTHING = [f"SELECT * FROM {table} ORDER BY 1" for table in TABLES]  # noqa: S608 - our own names
KEPT = Kept(fingerprint=HERE[0], size=10, budget=25)


@dataclass
class Story:
    """Everything that can happen to equal requests, one write after the other; `acknowledged` is what callers know."""

    writer: GroupWriter
    entry: KeyEntry
    acknowledged: dict[str, State] = field(default_factory=dict)
    records: dict[str, TaskRecord] = field(default_factory=dict)

    async def run(self) -> None:
        """Leaders that end in every way, followers that come at every moment, hits, offers, retention."""
        for name in ("leader", "first", "second", "third"):
            await self.ask(name)
        await self.claim("leader")
        await self.ask("late")
        await self.write(sqlite_tasks.release_many, loss(self.records["leader"], suspected=False))
        await self.claim("leader")
        await self.write(sqlite_tasks.cancel_many, cancellation(self.records["leader"]))
        await self.claim("first")
        await self.write(sqlite_tasks.fail_many, failure(self.records["first"]))
        await self.write(sqlite_tasks.cancel_many, cancellation(self.records["third"]))
        await self.claim("second")
        await self.write(sqlite_tasks.complete_many, completion(self.records["second"], kept=KEPT, now=NOW + 1))
        await self.ask("hit")
        await self.ask("unknown weights", fingerprints=())
        await self.ask("its follower", fingerprints=())
        offer = Offer(model="flux-dev", fingerprints=HERE, now=NOW + 2)
        for answered in await self.writer.run(sqlite_sharing.answer_many, [offer]):
            self.note(*answered)
        for number in range(2):
            await self.ask(f"other {number}", recipe=b"other %d" % number)
            await self.claim(f"other {number}")
            done = completion(self.records[f"other {number}"], kept=KEPT, now=NOW + 3 + number)
            await self.write(sqlite_tasks.complete_many, done)
        pictures = [
            Picture(task_id=record.id, object_name=record.object_name or "")
            for record in self.records.values()
            if record.object_name
        ]
        for picture in pictures:
            await self.writer.run(sqlite_tasks.forget_pictures, [picture])
        await self.writer.run(sqlite_tasks.delete_old, [(NOW + 0.5, 1)])
        await self.ask("waiting")
        await self.ask("its own follower")

    async def ask(self, name: str, *, recipe: bytes = b"recipe", fingerprints: Sequence[str] = HERE) -> None:
        new = submission(self.entry, task_id=name, recipe=recipe, fingerprints=tuple(fingerprints))
        (answer,) = await self.writer.run(sqlite_tasks.submit_many, [new])
        assert answer.record is not None
        self.note(answer.record)

    async def claim(self, name: str) -> None:
        ((record,),) = await self.writer.run(sqlite_tasks.claim_many, [claim_request(f"worker of {name}")])
        assert record.id == name
        self.note(record)

    async def write(self, operation: Operation[object, TaskRecord | None], outcome: object) -> None:
        (record,) = await self.writer.run(operation, [outcome])
        assert record is not None
        self.note(record, *record.followers)

    def note(self, *records: TaskRecord) -> None:
        for record in records:
            self.records[record.id] = record
            self.acknowledged[record.id] = record.state


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[sqlite3.Connection, KeyEntry]]:
    """A database with one account that pays."""
    connection = database.open_writer(path)
    database.migrate(connection, MIGRATIONS)
    connection.execute("BEGIN")
    (entry,) = sqlite_accounts.create_keys(connection, [new_key(credits_=100_000)])
    connection.execute("COMMIT")
    yield connection, entry


@dataclass
class Snapshots:
    """What a kill -9 leaves on the disk, taken before each statement; the same state is taken once."""

    path: Path
    folder: Path
    story: Story | None = None
    taken: dict[str, tuple[Path, dict[str, State]]] = field(default_factory=dict)

    def __call__(self, _: str) -> None:
        if self.story is None:
            return
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        state = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()
        if state not in self.taken:
            copy = self.folder / f"{len(self.taken)}.db"
            for file in files:
                if file.exists():
                    shutil.copyfile(file, self.folder / file.name.replace(self.path.name, copy.name))
            self.taken[state] = (copy, dict(self.story.acknowledged))


async def everything_ends_well(path: Path, acknowledged: dict[str, State]) -> None:
    """After a kill: nothing acknowledged is lost, and all that is unfinished can be drawn."""
    store = SqliteStore(path)
    assert await store.fsck() == []
    ids = [id_ for id_ in acknowledged if id_ not in ("leader", "first", "third")]  # retention may have taken those
    records = await store.get_many(ids)
    for record, id_ in zip(records, ids, strict=True):
        assert record is not None
        assert record.state is acknowledged[id_] or acknowledged[id_].is_active
    running = [record for record in await store.active() if record.state is State.RUNNING]
    await store.release_many([loss(record, suspected=False) for record in running])
    while claims := (await store.claim_many([claim_request("a new worker")]))[0]:
        await store.complete_many([completion(claim, kept=KEPT) for claim in claims])
    assert await store.active() == []
    assert await store.fsck() == []
    await store.close()


@in_event_loop
async def test_a_kill_at_any_statement_loses_no_task_and_leaves_none_behind(tmp_path: Path) -> None:
    path, folder = tmp_path / "fluxserve.db", tmp_path / "snapshots"
    folder.mkdir()
    with opened(path) as (connection, entry):
        snapshots = Snapshots(path, folder)
        connection.set_trace_callback(snapshots)
        writer = GroupWriter(connection)
        snapshots.story = Story(writer, entry)
        await snapshots.story.run()
        snapshots("the end")
        await writer.close()
    assert len(snapshots.taken) > 30
    for copy, acknowledged in snapshots.taken.values():
        await everything_ends_well(copy, acknowledged)


class Interrupting(GroupWriter):
    """Each write is tried again and again, each time interrupted a little later, until it goes through."""

    def __init__(self, connection: sqlite3.Connection, dump: Callable[[], list[str]]) -> None:
        self.interruptions = 0
        self._dump = dump
        super().__init__(connection)

    async def run(self, operation: Operation[Item, Outcome], items: Sequence[Item]) -> list[Outcome]:
        """Nothing is changed by an interrupted one."""
        before = self._dump()
        for allowed in itertools.count():
            try:
                return await super().run(interrupted(operation, allowed), items)
            except StoreUnavailable:
                self.interruptions += 1
                assert self._dump() == before
        raise AssertionError


def interrupted(operation: Operation[Item, Outcome], allowed: int) -> Operation[Item, Outcome]:
    """The operation, interrupted after `allowed` pieces of its work; what is around it is not."""

    def run(connection: sqlite3.Connection, items: Sequence[Item]) -> Sequence[Outcome]:
        countdown = itertools.chain([0] * allowed, itertools.repeat(1))
        connection.set_progress_handler(lambda: next(countdown), 50)
        try:
            return operation(connection, items)
        finally:
            connection.set_progress_handler(None, 50)

    return run


@in_event_loop
async def test_a_write_that_fails_at_any_moment_changes_nothing_and_can_be_made_again(tmp_path: Path) -> None:
    path = tmp_path / "fluxserve.db"
    with opened(path) as (connection, entry), contextlib.closing(database.open_reader(path)) as reader:

        def dump() -> list[str]:
            return [repr(reader.execute(query).fetchall()) for query in EVERYTHING]

        writer = Interrupting(connection, dump)
        story = Story(writer, entry)
        await story.run()
        await writer.close()
    assert writer.interruptions > 200
    await everything_ends_well(path, story.acknowledged)


def test_the_story_ends_as_it_should(tmp_path: Path) -> None:
    with opened(tmp_path / "fluxserve.db") as (connection, entry):

        async def tell() -> dict[str, State]:
            writer = GroupWriter(connection)
            story = Story(writer, entry)
            await story.run()
            await writer.close()
            return story.acknowledged

        ends = asyncio.run(tell())
    ready = ("second", "late", "hit", "unknown weights", "its follower", "other 0", "other 1")
    assert {name: state for name, state in ends.items() if name not in ready} == {
        "leader": State.CANCELLED,
        "first": State.ERROR,
        "third": State.CANCELLED,
        "waiting": State.QUEUED,
        "its own follower": State.FOLLOWING,
    }
    assert {ends[name] for name in ready} == {State.READY}
