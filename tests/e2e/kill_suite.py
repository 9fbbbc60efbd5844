"""What the kill suite is made of: orders, submitters that never give up, and a killer with a seeded die."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from servers import NO_TLS, Server, until

from fluxserve.tasks.task import MAX_ATTEMPTS

MODEL = "flux-dev"
SUBMITTERS = 2
#: How long a picture takes.
LATENCY_S = 0.12
RUNNING = "SELECT 1 FROM tasks WHERE state = 'running' LIMIT 1"
LAST_ATTEMPT = "SELECT 1 FROM tasks WHERE finished_at IS NULL AND spoiled >= ? LIMIT 1"
Fields = Mapping[str, object]


def orders(count: int) -> list[Fields]:
    """Small pictures of two sizes, each with its own prompt and seed."""
    return [
        {"prompt": f"picture {number}", "seed": number, "width": 256, "height": 256 + 32 * (number % 2)}
        for number in range(count)
    ]


@dataclass(slots=True)
class Submitters:
    """Threads that submit what they are allowed to, each order with its own Idempotency-Key, until it is accepted."""

    server: Server
    key: str
    orders: Sequence[Fields]
    ids: dict[int, str] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)
    retries: int = 0
    _waiting: queue.SimpleQueue[int | None] = field(default_factory=queue.SimpleQueue)
    _allowed: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(SUBMITTERS)]
        for thread in self._threads:
            thread.start()

    def allow(self, count: int) -> None:
        """Let the submitters go on with so many orders more."""
        for _ in range(min(count, len(self.orders) - self._allowed)):
            self._waiting.put(self._allowed)
            self._allowed += 1

    def finish(self, within: float) -> None:
        """Submit all that are left and wait for the last answer."""
        self.allow(len(self.orders))
        for _ in self._threads:
            self._waiting.put(None)
        deadline = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "an order could not be submitted"

    def _run(self) -> None:
        with httpx.Client(headers={"x-key": self.key}, timeout=10.0, verify=NO_TLS) as http:
            while (number := self._waiting.get()) is not None:
                self.ids[number] = self.submit(http, number)

    def submit(self, http: httpx.Client, number: int) -> str:
        """The id of the order's task, however often it has to be asked for."""
        while True:
            try:
                answer = http.post(
                    f"{self.server.url}/v1/{MODEL}",
                    json=self.orders[number],
                    headers={"idempotency-key": f"order-{number}"},
                )
            except (httpx.TransportError, OSError):  # the server was killed: before or after the commit, nobody knows
                self.retries += 1
            else:
                if answer.status_code == 200:
                    return str(answer.json()["id"])
                if answer.status_code != 503:
                    self.surprises.append(f"{answer.status_code}: {answer.text}")
            time.sleep(0.02)


@dataclass(slots=True)
class Killer:
    """Kills at random moments and starts again what a server's keeper would start again: the server."""

    server: Server
    die: random.Random
    kills: Counter[str] = field(default_factory=Counter)

    def plan(self, count: int, trees: int) -> list[str]:
        """Kinds in random order: of `count` two in three are workers, and `trees` are kills of everything."""
        apis = count // 3
        kinds = ["worker"] * (count - apis) + ["api"] * apis + ["tree"] * trees
        self.die.shuffle(kinds)
        return kinds

    def kill(self, kind: str) -> None:
        """Kill one `worker`, the `api` alone or the whole `tree`, at a random moment while something is drawn."""
        self._wait_for_work()
        if kind == "worker":
            until(self._kill_a_worker, 20.0, "a worker to kill")
        elif kind == "api":
            self.server.kill()
        else:
            self.server.kill_tree()
        self.kills[kind] += 1
        if kind != "worker":
            self.server.start(ready=False)
            if self.die.random() < 0.75:  # and sometimes it is killed while it starts
                self.server.wait_until_answers()

    def _kill_a_worker(self) -> bool:
        """A task that loses its worker three times without getting further ends in error, and rightly so: not here."""
        workers = self.server.workers()
        if not workers or self.server.rows(LAST_ATTEMPT, MAX_ATTEMPTS - 1):
            return False
        self.die.choice(workers).kill()
        return True

    def _wait_for_work(self) -> None:
        """Not for long where nothing is drawn."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and not self.server.rows(RUNNING):
            time.sleep(0.01)
        time.sleep(self.die.uniform(0.0, LATENCY_S))
