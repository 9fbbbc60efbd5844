"""The embedded store: SQLite behind the store seam."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fluxserve import database
from fluxserve.store import (
    sqlite_accounts,
    sqlite_cache,
    sqlite_deliveries,
    sqlite_inputs,
    sqlite_lists,
    sqlite_preparations,
    sqlite_rows,
    sqlite_sharing,
    sqlite_tasks,
    sqlite_waypoints,
)
from fluxserve.store.base import (
    QUARANTINE,
    Account,
    Cancellation,
    ClaimRequest,
    Completion,
    Failure,
    Grant,
    KeptWaypoint,
    KeyEntry,
    Lease,
    Loss,
    NewKey,
    NewWaypoint,
    Offer,
    Page,
    PageRequest,
    Picture,
    Refused,
    Submitted,
    TaskRecord,
)
from fluxserve.store.deliveries import Attempted, Delivery, DeliveryPage, DeliveryPageRequest, Replay
from fluxserve.store.submissions import KeptInput, Preparation, Prepared, Submission
from fluxserve.store.writer import GroupWriter

MIGRATIONS = database.load_migrations(Path(__file__).with_name("migrations"))
Answer = TypeVar("Answer")


class SqliteStore:
    """One writing connection on its own thread, one reading connection on another."""

    def __init__(self, path: Path) -> None:
        """Open, check and migrate the database at `path`. Raises DatabaseDamaged or DatabaseTooNew."""
        connection = database.open_writer(path)
        try:
            database.check(connection)
            database.migrate(connection, MIGRATIONS)
        except BaseException:
            connection.close()
            raise
        self._path = path
        self._writer = GroupWriter(connection)
        self._reader = database.open_reader(path)
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="fluxserve-reader")

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Submitted]:
        """Accept each: task, reservation and idempotency key in one transaction."""
        return await self._writer.run(sqlite_tasks.submit_many, submissions)

    async def prepare_many(self, prepared: Sequence[Prepared]) -> list[TaskRecord | None]:
        """Each takes its place as a submission does, and what it does not cost is given back."""
        return await self._writer.run(sqlite_tasks.prepare_many, prepared)

    async def preparations(self, task_ids: Sequence[str]) -> list[Preparation | None]:
        """What each task is prepared from; None where it is not being prepared."""
        return await self._read(lambda reader: sqlite_preparations.select(reader, task_ids))

    async def answer_many(self, offers: Sequence[Offer]) -> list[list[TaskRecord]]:
        """Answer what waits with pictures that were drawn before."""
        return await self._writer.run(sqlite_sharing.answer_many, offers)

    async def claim_many(self, requests: Sequence[ClaimRequest]) -> list[list[TaskRecord]]:
        """Give each worker the next tasks in turn that can be drawn together."""
        return await self._writer.run(sqlite_tasks.claim_many, requests)

    async def complete_many(self, completions: Sequence[Completion]) -> list[TaskRecord | None]:
        """Ready, settled and in the outbox, and its followers too; None where the fence no longer holds."""
        return await self._writer.run(sqlite_tasks.complete_many, completions)

    async def fail_many(self, failures: Sequence[Failure]) -> list[TaskRecord | None]:
        """Error, refunded and in the outbox."""
        return await self._writer.run(sqlite_tasks.fail_many, failures)

    async def refuse_many(self, refused: Sequence[Refused]) -> list[TaskRecord | None]:
        """Moderated, with all followers."""
        return await self._writer.run(sqlite_tasks.refuse_many, refused)

    async def cancel_many(self, cancellations: Sequence[Cancellation]) -> list[TaskRecord | None]:
        """Cancelled, refunded and in the outbox."""
        return await self._writer.run(sqlite_tasks.cancel_many, cancellations)

    async def release_many(self, losses: Sequence[Loss]) -> list[TaskRecord | None]:
        """Back in the queue, or given up."""
        return await self._writer.run(sqlite_tasks.release_many, losses)

    async def keep_waypoints(self, waypoints: Sequence[NewWaypoint]) -> list[bool]:
        """Each takes the place of its task's last one; False where the claim was lost."""
        return await self._writer.run(sqlite_waypoints.keep_many, waypoints)

    async def drop_waypoints(self, waypoints: Sequence[KeptWaypoint]) -> list[bool]:
        """Their tasks start over; False where another one is kept by now."""
        return await self._writer.run(sqlite_waypoints.drop_many, waypoints)

    async def waypoints(self) -> list[KeptWaypoint]:
        """Every waypoint, the oldest first."""
        return await self._read(sqlite_waypoints.select_all)

    async def inputs(self) -> list[KeptInput]:
        """The input pictures of every unfinished task."""
        return await self._read(sqlite_inputs.select_all)

    async def extend_many(self, leases: Sequence[Lease]) -> list[int]:
        """Prolong the leases of each worker."""
        return await self._writer.run(sqlite_tasks.extend_many, leases)

    async def lapsed(self, now: float) -> list[TaskRecord]:
        """Running tasks whose lease has ended."""
        return await self._read(lambda reader: _records(reader.execute(sqlite_tasks.SELECT_LAPSED, (now,))))

    async def get_many(self, ids: Sequence[str]) -> list[TaskRecord | None]:
        """Each task, or None."""

        def query(reader: sqlite3.Connection) -> list[TaskRecord | None]:
            rows = [reader.execute(sqlite_tasks.SELECT_TASK, (id_,)).fetchone() for id_ in ids]
            return [None if row is None else sqlite_rows.to_record(row) for row in rows]

        return await self._read(query)

    async def get_own(self, task_id: str, account_id: str) -> TaskRecord | None:
        """The account's task, or None."""

        def query(reader: sqlite3.Connection) -> TaskRecord | None:
            row = reader.execute(sqlite_tasks.SELECT_OWN, (task_id, account_id)).fetchone()
            return None if row is None else sqlite_rows.to_record(row)

        return await self._read(query)

    async def quarantined(self) -> list[TaskRecord]:
        """Tasks that ended because they ended their engines, newest first."""
        return await self._read_apart(
            lambda reader: _records(reader.execute(sqlite_tasks.SELECT_QUARANTINED, (QUARANTINE,)))
        )

    async def active(self) -> list[TaskRecord]:
        """Every task that is not final, in turn."""
        return await self._read(lambda reader: _records(reader.execute(sqlite_tasks.SELECT_ACTIVE)))

    async def page(self, request: PageRequest) -> Page:
        """An account's own tasks."""
        return await self._read(lambda reader: sqlite_lists.page(reader, request))

    async def waiting_deliveries(self) -> list[Delivery]:
        """Every webhook that waits, in the order they are due."""
        return await self._read(sqlite_deliveries.select_waiting)

    async def sealed_secrets(self, task_ids: Sequence[str]) -> list[str | None]:
        """What signs each task's webhook, sealed; None where there is no such secret or task."""

        def query(reader: sqlite3.Connection) -> list[str | None]:
            rows = [reader.execute(sqlite_tasks.SELECT_SEALED, (task_id,)).fetchone() for task_id in task_ids]
            return [None if row is None else row[0] for row in rows]

        return await self._read(query)

    async def record_attempts(self, attempts: Sequence[Attempted]) -> list[Delivery | None]:
        """Write down how attempts went; None where the delivery no longer waits."""
        return await self._writer.run(sqlite_deliveries.attempted_many, attempts)

    async def replay_many(self, replays: Sequence[Replay]) -> list[Delivery | None]:
        """Deliver anew, from the first attempt on; None where the account has no such delivery."""
        return await self._writer.run(sqlite_deliveries.replay_many, replays)

    async def deliveries(self, request: DeliveryPageRequest) -> DeliveryPage:
        """An account's own deliveries."""
        return await self._read(lambda reader: sqlite_deliveries.page(reader, request))

    async def create_key(self, key: NewKey) -> KeyEntry:
        """Write a key down."""
        return (await self._writer.run(sqlite_accounts.create_keys, [key]))[0]

    async def revoke_key(self, key_id: str, now: float) -> KeyEntry | None:
        """Revoke a key."""
        return (await self._writer.run(sqlite_accounts.revoke_keys, [(now, key_id)]))[0]

    async def keys(self) -> list[KeyEntry]:
        """Every key, revoked ones too."""
        query = sqlite_accounts.SELECT_KEYS + " ORDER BY k.created_at, k.id"
        return await self._read(lambda reader: [sqlite_accounts.to_entry(row) for row in reader.execute(query)])

    async def grant(self, grant: Grant) -> Account | None:
        """Add credits; None when there is no such account."""
        return (await self._writer.run(sqlite_accounts.grant_many, [grant]))[0]

    async def accounts(self) -> list[Account]:
        """Every account."""
        return await self._read(sqlite_accounts.accounts)

    async def balance(self, account_id: str) -> int | None:
        """What is left of the account's credits; None: it is unlimited."""
        query = sqlite_accounts.SELECT_BALANCE
        row = await self._read(lambda reader: reader.execute(query, (account_id,)).fetchone())
        return None if row is None else row[0]

    async def old_pictures(self, finished_before: float, limit: int) -> list[Picture]:
        """Pictures of tasks that ended before then."""
        values = (finished_before, finished_before, limit)
        return await self._read(
            lambda reader: [
                Picture(task_id=row[0], object_name=row[1])
                for row in reader.execute(sqlite_tasks.SELECT_OLD_PICTURES, values)
            ]
        )

    async def forget_pictures(self, pictures: Sequence[Picture]) -> list[bool]:
        """The tasks no longer hold their pictures. True where no task does any more."""
        return await self._writer.run(sqlite_tasks.forget_pictures, pictures)

    async def known_objects(self, names: Sequence[str]) -> set[str]:
        """Those of `names` that a task refers to."""
        query = f"SELECT object_name FROM tasks WHERE object_name IN ({', '.join('?' * len(names))})"
        return await self._read(lambda reader: {row[0] for row in reader.execute(query, tuple(names))})

    async def cached_objects(self) -> list[str]:
        """The pictures that equal requests are answered with."""
        return await self._read(lambda reader: [row[0] for row in reader.execute(sqlite_cache.SELECT_OBJECTS)])

    async def forget_cached(self, names: Sequence[str]) -> list[bool]:
        """Answer no request with these pictures any more."""
        return await self._writer.run(sqlite_cache.forget, names)

    async def delete_old(self, finished_before: float, limit: int) -> int:
        """Delete tasks that ended before then; the ledger stays."""
        return (await self._writer.run(sqlite_tasks.delete_old, [(finished_before, limit)]))[0]

    async def fsck(self) -> list[str]:
        """Violations of the invariants, as sentences."""
        return await self._read_apart(sqlite_accounts.violations)

    async def backup(self, target: Path) -> None:
        """Write a consistent copy while running."""
        await self._read_apart(lambda reader: database.backup(reader, target))

    async def close(self) -> None:
        """Finish what waits and close. The reader goes first: the last to close folds the WAL into the database."""
        await asyncio.to_thread(self._reading.shutdown)
        self._reader.close()
        await self._writer.close()

    async def _read(self, query: Callable[[sqlite3.Connection], Answer]) -> Answer:
        def run() -> Answer:
            try:
                return query(self._reader)
            except database.FAILURES as error:
                raise database.translate(error) from None

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    async def _read_apart(self, query: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """For what takes long: on a connection of its own, so that nobody waits behind it."""

        def run() -> Answer:
            try:
                with contextlib.closing(database.open_reader(self._path)) as reader:
                    return query(reader)
            except database.FAILURES as error:
                raise database.translate(error) from None

        return await asyncio.to_thread(run)


def _records(rows: sqlite3.Cursor) -> list[TaskRecord]:
    return [sqlite_rows.to_record(row) for row in rows]
