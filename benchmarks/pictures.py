"""Pictures a second with mini through the whole server, beside the bare pipeline looped at its best thread count.

Both deliver JPEG of the same size from prompts that never repeat. They take turns in every round, and what counts is
the median of the rounds' ratios: the machine's own ups and downs hit both.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import machine
from bare import SIZE, STEPS

ROUNDS = 5
#: Pictures in a round, of the bare pipeline and of the server at each number of requests at once.
BARE = 12
AT_ONCE = {1: 12, 4: 24, 16: 48}
GOALS = {1: "0.95", 4: "over 1", 16: "over 1"}
SETTINGS = {"FLUXSERVE_ENGINE": "diffusion", "FLUXSERVE_DEVICE": "cpu", "FLUXSERVE_RESULT_CACHE": "0"}


class Drawing:
    """A process that draws on request: the bare pipeline, or the engine alone. `core`: the only one it may use."""

    def __init__(self, script: str, *arguments: str, core: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=None if core is None else lambda: machine.pin(core),
        )
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def rate(self, count: int) -> float:
        """Pictures a second."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return count / float(self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(10)


@contextlib.contextmanager
def drawing(script: str, *arguments: str, core: int | None = None) -> Iterator[Drawing]:
    """One that ends with the block."""
    one = Drawing(script, *arguments, core=core)
    try:
        yield one
    finally:
        one.end()


@contextlib.contextmanager
def best_bare() -> Iterator[tuple[int, Drawing]]:
    """The bare pipeline with as many threads as serve it best, and how many those are."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, 2, max(1, cores // 2), cores} & set(range(1, cores + 1)))
    bares = {threads: Drawing("bare.py", str(threads)) for threads in counts}
    try:
        best = max(bares, key=lambda threads: statistics.median(bares[threads].rate(4) for _ in range(3)))
        for threads, bare in bares.items():
            if threads != best:
                bare.end()
        yield best, bares[best]
    finally:
        for bare in bares.values():
            bare.end()


class Caller:
    """Submits, waits and fetches over connections of its own, one for each request at once."""

    def __init__(self, server: machine.Server, side: int = SIZE, steps: int = STEPS) -> None:
        self._server = server
        self._body = {"width": side, "height": side, "steps": steps}
        self._numbers = itertools.count(1)

    def rate(self, at_once: int, count: int) -> float:
        """Pictures a second."""
        connections = [http.client.HTTPConnection("127.0.0.1", self._server.port) for _ in range(at_once)]
        shares = [count // at_once] * at_once
        with ThreadPoolExecutor(at_once) as threads:
            began = time.perf_counter()
            list(threads.map(self._draw, connections, shares))
            seconds = time.perf_counter() - began
        for connection in connections:
            connection.close()
        return count / seconds

    def _draw(self, connection: http.client.HTTPConnection, count: int) -> None:
        for _ in range(count):
            number = next(self._numbers)
            body = {"prompt": f"a red apple, number {number}", **self._body}
            task = self._ask(connection, "POST", "/v1/flux-dev", json.dumps({**body, "seed": number}))
            polling = urlsplit(str(task["polling_url"]))
            answer: dict[str, object] = {"status": "Pending"}
            while answer["status"] == "Pending":
                answer = self._ask(connection, "GET", f"{polling.path}?{polling.query}&wait=20")
            assert answer["status"] == "Ready", answer
            result = answer["result"]
            assert isinstance(result, dict)
            connection.request("GET", urlsplit(result["sample"])._replace(scheme="", netloc="").geturl())
            assert connection.getresponse().read().startswith(b"\xff\xd8")

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> dict:
        connection.request(method, path, body, {"x-key": self._server.key, "content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)


def rows() -> list[list[str]]:
    """A row for the bare pipeline, and one for each number of requests at once."""
    rates: dict[int, list[float]] = {at_once: [] for at_once in AT_ONCE}
    with best_bare() as (threads, bare), machine.server(core=None, settings=SETTINGS) as server:
        machine.wait_until_ready(server.port)
        caller = Caller(server)
        caller.rate(16, 32)  # every worker has drawn
        bares = []
        for _ in range(ROUNDS):
            bares.append(bare.rate(BARE))
            for at_once, count in AT_ONCE.items():
                rates[at_once].append(caller.rate(at_once, count))
        first = ["bare pipeline", str(threads), "", f"{statistics.median(bares):.2f}", "", ""]
    return [first, *(_row(at_once, rates[at_once], bares) for at_once in AT_ONCE)]


def _row(at_once: int, rates: list[float], bares: list[float]) -> list[str]:
    ratios = [rate / bare for rate, bare in zip(rates, bares, strict=True)]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return ["server", "", str(at_once), f"{statistics.median(rates):.2f}", spread, GOALS[at_once]]
