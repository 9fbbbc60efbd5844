"""Short tasks beside a flood of long ones, through a real server, a real worker and the embedded model."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from servers import MakeServer, Server

from fluxserve.client import Client, Progress, Result

SETTINGS = {"engine": "diffusion", "device": "cpu", "result_cache": "0"}
LONG: dict[str, object] = {"width": 512, "height": 512, "steps": 28}
SHORT: dict[str, object] = {"width": 256, "height": 256, "steps": 4}
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Someone with a key of their own, or with the first one."""

    server: Server
    key: str

    def submit(self, number: int, fields: dict[str, object]) -> str:
        """A task; no two are equal."""
        body = {"prompt": f"an apple {number}", "seed": number, **fields}
        with self.server.client(self.key) as client:
            answer = client.post("/v1/flux-dev", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def seconds(self, number: int) -> float:
        """From the submit of a short task to its picture, as its caller sees it."""
        began = time.monotonic()
        task = self.submit(number, SHORT)
        with self.server.client(self.key) as client:
            while (status := self._status(client, task)) == "Pending":
                assert time.monotonic() - began < PATIENCE_S
        assert status == "Ready"
        return time.monotonic() - began

    @staticmethod
    def _status(client: httpx.Client, task: str) -> str:
        answer = client.get("/v1/get_result", params={"id": task, "wait": 5})
        return str(answer.json()["status"])

    def all_at_once(self, count: int, first: int) -> list[float]:
        """The seconds of so many short tasks."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(self.seconds, range(first, first + count)))


def new_caller(server: Server) -> Caller:
    """Someone new."""
    made = server.command("keys", "create", "short")
    assert made.returncode == 0, made.stderr
    return Caller(server=server, key=made.stdout.strip())


def p95(seconds: list[float]) -> float:
    """Of a few values: the second highest of twenty."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


def begin(make_server: MakeServer) -> Server:
    """A server whose worker has drawn something, so that nothing has to be loaded or compiled any more."""
    server = make_server(**SETTINGS)
    server.start(ready=False).wait_until_answers()
    server.wait(server.submit("warm", **SHORT), within=PATIENCE_S)
    return server


@pytest.mark.long
@pytest.mark.parametrize("own", [False, True], ids=["another key's flood", "the same key's flood"])
def test_ten_short_tasks_beside_a_hundred_long_ones_take_at_most_three_times_as_long_as_alone(
    make_server: MakeServer, own: bool
) -> None:
    server = begin(make_server)
    flood = Caller(server=server, key=server.key)
    short = flood if own else new_caller(server)
    alone = short.all_at_once(10, 1000)
    for number in range(100):
        flood.submit(number, LONG)
    beside = short.all_at_once(10, 2000)
    print(f"p95 of ten short tasks: {p95(alone):.2f} s alone, {p95(beside):.2f} s beside the flood")
    ((unfinished,),) = server.rows("SELECT count(*) FROM tasks WHERE state IN ('queued', 'running')")
    assert int(str(unfinished)) > 50  # the flood was still there
    assert p95(beside) <= 3 * p95(alone), (alone, beside)


def test_a_short_task_is_ready_before_the_long_ones_of_its_own_key_that_came_before_it(
    make_server: MakeServer,
) -> None:
    server = begin(make_server)
    caller = Caller(server=server, key=server.key)
    long = [caller.submit(number, LONG) for number in range(6)]
    server.wait_until_running(long[0])
    caller.seconds(1000)
    states = dict(server.rows("SELECT id, state FROM tasks"))
    assert [states[task] for task in long].count("ready") <= 1
    assert server.stop() == 0


def test_a_short_task_waits_at_most_two_steps_behind_a_long_one(make_server: MakeServer) -> None:
    """As callers see it: steps of the long one between the answer to the submit and the first step of the short one."""
    server = begin(make_server)
    steps: list[float] = []
    with ThreadPoolExecutor(1) as watching, Client(server.url, server.key) as client:
        long = client.create("flux-dev", "an apple", LONG | {"steps": 50})
        server.wait_until_running(long.id)
        done = watching.submit(lambda: steps.extend(time.monotonic() for _ in client.events(long, timeout=PATIENCE_S)))
        waited = []
        for number in range(1, 6):
            task = client.create("flux-dev", f"an apple {number}", SHORT)
            accepted = time.monotonic()
            stepped = next(time.monotonic() for news in client.events(task, timeout=PATIENCE_S) if _has_moved(news))
            waited.append((accepted, stepped))
        assert not done.done()  # the long one is still drawn
        done.result(PATIENCE_S)
    counts = [sum(accepted < step <= stepped for step in steps) for accepted, stepped in waited]
    print(f"steps of a long task before the first step of each of five short ones: {counts}")
    assert statistics.median(counts) <= 2, counts


def _has_moved(news: Progress | Result) -> bool:
    return isinstance(news, Result) or news.progress > 0
