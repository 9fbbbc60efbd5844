"""Another program holds the database (R6): for a moment nobody notices, for longer submits are told to wait."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from servers import MakeServer, Server, until

from fluxserve.database import BUSY_TIMEOUT_S

CALLERS = 8


@contextmanager
def locked(server: Server) -> Iterator[None]:
    """As a program does that was not asked to: a backup tool, a database browser."""
    with closing(sqlite3.connect(server.data_dir / "fluxserve.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def submitting(server: Server, end: threading.Event, statuses: Counter[int], slowest: list[float]) -> None:
    with server.client() as client:
        while not end.is_set():
            began = time.monotonic()
            answer = client.post("/v1/flux-dev", json={"prompt": "x", "width": 256, "height": 256})
            slowest.append(time.monotonic() - began)
            statuses[answer.status_code] += 1
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1


def test_a_short_lock_is_seen_by_nobody_and_a_long_one_is_a_503_while_polls_are_answered(
    make_server: MakeServer, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(lease="60").start()
    ready = server.submit("a red apple")
    assert server.wait(ready)["status"] == "Ready"
    end, statuses, slowest = threading.Event(), Counter[int](), list[float]()
    callers = [threading.Thread(target=submitting, args=(server, end, statuses, slowest)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    with locked(server):
        threading.Event().wait(4.0 if long else 2.0)
        assert server.poll(ready)["status"] == "Ready"
    assert set(statuses) <= {200}
    with locked(server):
        until(lambda: statuses[503] >= CALLERS, BUSY_TIMEOUT_S + 2.0, "submits are told to wait")
        assert server.poll(ready)["status"] == "Ready"
    accepted = statuses[200]
    until(lambda: statuses[200] > accepted, 2.0, "submits are accepted again")
    end.set()
    for caller in callers:
        caller.join()
    assert set(statuses) == {200, 503}
    states = "SELECT count(*) FROM tasks WHERE state != 'ready'"
    until(lambda: server.rows(states) == [(0,)], 60.0, "everything that was accepted is drawn")
    assert server.rows("SELECT count(*) FROM tasks") == [(statuses[200] + 1,)]
    assert server.command("fsck").returncode == 0
    assert "Traceback" not in server.log
    with capsys.disabled():
        print(f"\n  a foreign lock: {dict(statuses)}, the slowest answer after {max(slowest):.1f} s")
