"""Webhooks that wait, in memory: which may be tried now. Pure; the clock is an argument.

Each receiver, by host and port, has a queue, a number at a time, a pace, and a breaker: after many failures in a row
it is left alone for a while and then probed. Slow receivers may fill half of the room; the other half is for those
that have nothing under way. No account holds more than a quarter.
What it does not know: the store, HTTP, what is delivered.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

#: At once to one host; attempts a second, of which a few may come together.
HOST_AT_ONCE = 10
HOST_INTERVAL_S = 1 / 50
HOST_BURST_S = 10 * HOST_INTERVAL_S
#: Failures in a row that open a host's breaker, and for how long.
BREAKER_FAILURES = 20
BREAKER_PAUSE_S = 300.0
#: So many hosts may be remembered of which nothing waits.
REMEMBERED_HOSTS = 4096


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """A delivery, when it is due, and how often it was tried."""

    due_at: float
    task_id: str
    account_id: str = field(compare=False)
    host: str = field(compare=False)
    attempts: int = field(compare=False, default=0)


@dataclass(slots=True)
class Host:
    """A receiver."""

    name: str
    queue: list[Waiting] = field(default_factory=list)
    under_way: int = 0
    failures: int = 0
    closed_until: float = -math.inf
    free_at: float = -math.inf
    #: When it may next be called, as it stands in the heap of all hosts.
    at: float = math.inf

    @property
    def is_broken(self) -> bool:
        """Its breaker is open, or waits for what becomes of a probe."""
        return self.failures >= BREAKER_FAILURES

    def next_at(self) -> float:
        """When it may be called again, as things are."""
        if not self.queue or self.under_way >= (1 if self.is_broken else HOST_AT_ONCE):
            return math.inf
        return max(self.queue[0].due_at, self.closed_until, self.free_at)


class Postbox:
    """Everything that waits or is under way. `room`: most that may be under way."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._hosts: dict[str, Host] = {}
        self._ready: list[tuple[float, str]] = []
        #: Hosts that could be called if there were room; looked at again when there is more of it.
        self._crowded_out: dict[str, Host] = {}
        self._waiting: dict[str, Waiting] = {}
        self._under_way: dict[str, Waiting] = {}
        self._of_account: dict[str, int] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """How many are being tried."""
        return len(self._under_way)

    def put(self, waiting: Waiting) -> None:
        """It waits from now on; in place of what waited for the same task."""
        if waiting.task_id in self._under_way:
            return
        self._waiting[waiting.task_id] = waiting
        host = self._hosts.setdefault(waiting.host, Host(waiting.host))
        heapq.heappush(host.queue, waiting)
        self._place(host)

    def take(self, now: float) -> Waiting | None:
        """The next that may be tried; it is under way from now on, until it is `done`."""
        for host in self._ready_hosts(now):
            if self._has_room_for(host):
                return self._begin(host, now)
            self._crowded_out[host.name] = host
        return None

    def done(self, task_id: str, *, good: bool | None, now: float) -> None:
        """It was tried; if it is to be tried again, it has to be put again. `good` None: nobody knows how it went."""
        taken = self._under_way.pop(task_id, None)
        if taken is None:
            return
        self._count(taken.account_id, -1)
        host = self._hosts[taken.host]
        host.under_way -= 1
        if good is not None:
            host.failures = 0 if good else host.failures + 1
            host.closed_until = now + BREAKER_PAUSE_S if host.is_broken else -math.inf
        self._place(host)
        crowded_out, self._crowded_out = self._crowded_out, {}
        for other in crowded_out.values():
            self._place(other)

    def next_at(self) -> float:
        """When there may be something to take; infinity: only after something was done or put."""
        self._drop_stale()
        return self._ready[0][0] if self._ready else math.inf

    def _has_room_for(self, host: Host) -> bool:
        head = host.queue[0]
        if self._of_account.get(head.account_id, 0) >= max(1, self._room // 4):
            return False
        return len(self._under_way) < (self._room if not host.under_way else self._room // 2)

    def _begin(self, host: Host, now: float) -> Waiting:
        taken = heapq.heappop(host.queue)
        del self._waiting[taken.task_id]
        self._under_way[taken.task_id] = taken
        self._count(taken.account_id, 1)
        host.under_way += 1
        host.free_at = max(host.free_at, now - HOST_BURST_S) + HOST_INTERVAL_S
        self._place(host)
        return taken

    def _count(self, account_id: str, change: int) -> None:
        count = self._of_account.pop(account_id, 0) + change
        if count:
            self._of_account[account_id] = count

    def _ready_hosts(self, now: float) -> Iterator[Host]:
        """Those that may be called by now, the longest first; each leaves the heap."""
        while self.next_at() <= now:
            _, name = heapq.heappop(self._ready)
            self._hosts[name].at = math.inf
            yield self._hosts[name]

    def _drop_stale(self) -> None:
        while self._ready and self._at(self._ready[0][1]) != self._ready[0][0]:
            heapq.heappop(self._ready)

    def _at(self, name: str) -> float:
        return self._hosts[name].at if name in self._hosts else math.inf

    def _place(self, host: Host) -> None:
        """Where the host stands among all; one with nothing left is forgotten where there are many."""
        while host.queue and self._waiting.get(host.queue[0].task_id) is not host.queue[0]:
            heapq.heappop(host.queue)
        if not host.queue and not host.under_way and len(self._hosts) > REMEMBERED_HOSTS:
            self._hosts.pop(host.name, None)
            return
        host.at = host.next_at()
        if host.at < math.inf:
            heapq.heappush(self._ready, (host.at, host.name))
