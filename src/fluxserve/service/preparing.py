"""Tasks that wait for pictures to be fetched, in memory: which is next. Pure; the clock is an argument.

Accounts take turns, and none has more than half of the room, so that nobody waits behind one that names slow hosts.
What it does not know: the store, URLs, how pictures come.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fluxserve.catalogue import InputPicture
from fluxserve.service.watches import Signal
from fluxserve.store.submissions import KeptInput


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A task on its way: the pictures that are there so far, and attempts at the one that is next.

    `is_over` is set once nobody wants it prepared any more.
    """

    task_id: str
    account_id: str
    attempts: int = 0
    pictures: dict[str, InputPicture] = field(default_factory=dict)
    kept: tuple[KeptInput, ...] = ()
    is_under_way: bool = False
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class Preparing:
    """Every task that waits or is under way; at most `room` are under way."""

    def __init__(self, room: int) -> None:
        #: Fires when something waits that did not before, or is over.
        self.changed = Signal()
        self._room = room
        self._jobs: dict[str, Job] = {}
        #: By account, and the account whose turn is next first.
        self._ready: OrderedDict[str, deque[Job]] = OrderedDict()
        self._later: list[tuple[float, int, Job]] = []
        self._numbers = 0
        self._under_way: dict[str, int] = {}
        self._over: list[Job] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._jobs)

    def put(self, task_id: str, account_id: str) -> None:
        """The task is to be prepared, unless it is already known."""
        if task_id not in self._jobs:
            job = self._jobs[task_id] = Job(task_id=task_id, account_id=account_id)
            self._ready.setdefault(account_id, deque()).append(job)
            self.changed.fire()

    def drop(self, task_id: str) -> None:
        """The task is not to be prepared, or not any more."""
        if (job := self._jobs.pop(task_id, None)) is not None:
            job.is_over.set()
            if not job.is_under_way:
                self._over.append(job)
            self.changed.fire()

    def take(self, now: float) -> Job | None:
        """The next one; it is under way until it is `done`."""
        while self._later and self._later[0][0] <= now:
            _, _, job = heapq.heappop(self._later)
            self._ready.setdefault(job.account_id, deque()).append(job)
        if sum(self._under_way.values()) >= self._room:
            return None
        for account_id in list(self._ready):
            waiting = self._ready[account_id]
            while waiting and waiting[0].is_over.is_set():
                waiting.popleft()
            if not waiting:
                del self._ready[account_id]
            elif self._under_way.get(account_id, 0) < max(1, self._room // 2):
                self._ready.move_to_end(account_id)
                self._under_way[account_id] = self._under_way.get(account_id, 0) + 1
                job = waiting.popleft()
                job.is_under_way = True
                return job
        return None

    def again(self, job: Job, due_at: float) -> None:
        """What is under way is to be taken up again then; it still has to be `done`."""
        self._numbers += 1
        heapq.heappush(self._later, (due_at, self._numbers, job))

    def done(self, job: Job) -> None:
        """It is not under way any more."""
        job.is_under_way = False
        left = self._under_way.pop(job.account_id) - 1
        if left:
            self._under_way[job.account_id] = left
        self.changed.fire()

    def take_over(self) -> list[Job]:
        """Those that were over while they waited, each once."""
        over, self._over = self._over, []
        return over

    def next_at(self) -> float:
        """When the next one that was put off is due; infinity: only after something changes."""
        while self._later and self._later[0][2].is_over.is_set():
            heapq.heappop(self._later)
        return self._later[0][0] if self._later else math.inf
