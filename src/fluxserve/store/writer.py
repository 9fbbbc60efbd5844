"""Group commit: one thread, one connection; whatever waits together shares one transaction.

There is no timer: a lone call commits at once, and while it commits the next group gathers. Adjacent calls of the
same operation are merged into one batch.
What it does not know: which tables there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fluxserve.database import translate
from fluxserve.errors import FluxserveError, StoreUnavailable

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Operation = Callable[[sqlite3.Connection, Sequence[Item]], Sequence[Outcome]]
#: Calls in one transaction; bounds how long the first of them waits.
MAX_GROUP = 512


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    operation: Operation[Any, Any]
    items: Sequence[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class GroupWriter:
    """Runs operations on the one writing connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fluxserve-writer", daemon=True)
        self._thread.start()

    async def run(self, operation: Operation[Item, Outcome], items: Sequence[Item]) -> list[Outcome]:
        """Run `operation` on `items` inside a transaction; returns after its commit."""
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        if not items:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Outcome]] = loop.create_future()
        self._calls.put(_Call(operation, items, loop, future))
        return await future

    async def close(self) -> None:
        """Commit what waits, then end the thread and close the connection."""
        self._closed = True
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (group := self._next_group()) is not None:
            self._deliver(self._commit(group))
        self._connection.close()

    def _next_group(self) -> list[_Call] | None:
        call = self._calls.get()
        group: list[_Call] = []
        while call is not None:
            group.append(call)
            if len(group) == MAX_GROUP:
                break
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
        if call is None and group:
            self._calls.put(None)  # end after this group
        return group or None

    def _gathered(self) -> list[_Call]:
        """Those that came while the group before them waited in vain; they waited as well."""
        gathered: list[_Call] = []
        with contextlib.suppress(queue.Empty):
            while (call := self._calls.get_nowait()) is not None:
                gathered.append(call)
            self._calls.put(None)  # end after these
        return gathered

    def _commit(self, group: list[_Call]) -> list[tuple[_Call, Sequence[Any] | FluxserveError]]:
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # the file is locked or lost: no call would fare better alone, or a moment later
            self._roll_back()
            return [(call, translate(error)) for call in (*group, *self._gathered())]
        try:
            outcomes = [outcome for run in _runs(group) for outcome in _run_merged(connection, run)]
        except Exception as error:  # noqa: BLE001 - any failure of an element must leave the others unharmed
            self._roll_back()
            if len(group) > 1:
                return [pair for call in group for pair in self._commit([call])]
            return [(group[0], _ours(error))]
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            return [(call, translate(error)) for call in group]
        return list(zip(group, outcomes, strict=True))

    def _roll_back(self) -> None:
        # After SQLITE_FULL the transaction is already gone, and ROLLBACK itself raises.
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")

    @staticmethod
    def _deliver(pairs: list[tuple[_Call, Sequence[Any] | FluxserveError]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Call, Sequence[Any] | FluxserveError]]] = {}
        for pair in pairs:
            by_loop.setdefault(pair[0].loop, []).append(pair)
        for loop, mine in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, mine)


def _runs(group: Sequence[_Call]) -> list[list[_Call]]:
    runs: list[list[_Call]] = []
    for call in group:
        if runs and runs[-1][0].operation == call.operation:
            runs[-1].append(call)
        else:
            runs.append([call])
    return runs


def _run_merged(connection: sqlite3.Connection, run: list[_Call]) -> list[list[Any]]:
    items = [item for call in run for item in call.items]
    outcomes = iter(run[0].operation(connection, items))
    return [[next(outcomes) for _ in call.items] for call in run]


def _resolve(pairs: list[tuple[_Call, Sequence[Any] | FluxserveError]]) -> None:
    for call, outcome in pairs:
        if call.future.done():
            continue
        if isinstance(outcome, FluxserveError):
            call.future.set_exception(outcome)
        else:
            call.future.set_result(outcome)


def _ours(error: Exception) -> FluxserveError:
    if isinstance(error, FluxserveError):
        return error
    if isinstance(error, sqlite3.Error):
        return translate(error)
    logger.error("A write failed in a way that is a defect of fluxserve", exc_info=error)
    return StoreUnavailable("The database refused the write; nothing was changed.")
