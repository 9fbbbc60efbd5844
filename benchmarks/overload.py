"""Five times more requests than can be drawn: what is drawn, how soon the rest is refused, what comes after."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing

import uvloop

import load
import machine

CAPACITY_S, OVERLOAD_S, AFTER_S = 15, 60, 20
TIMES = 5
MOST_WAITING = 100
#: Half a second a picture, eight at once: what limits the server is drawing, as it is with real networks.
SETTINGS = {
    "FLUXSERVE_ENGINE": "fake", "FLUXSERVE_FAKE_LATENCY": "0.5", "FLUXSERVE_WORKERS": "1",
    "FLUXSERVE_MAX_QUEUE": str(MOST_WAITING),
}  # fmt: skip
BODY = json.dumps({"prompt": "a red apple", "width": 256, "height": 256}).encode()
HEADINGS = ["what", "measured", "goal"]


def rows() -> list[list[str]]:
    """Capacity, then 60 s of five times as much, then 20 s of half of it."""
    with machine.server(settings=SETTINGS) as server:
        machine.wait_until_ready(server.port)
        _pace(server, 40, 5)  # the queue is full from here on
        capacity, _ = _phase(server, 40, CAPACITY_S)
        goodput, over = _phase(server, round(TIMES * capacity), OVERLOAD_S)
        refused = [tally for tally in over if tally.statuses[503]]
        began = time.monotonic()
        _, after = _phase(server, max(1, round(capacity / 2)), AFTER_S)
        calm = next((second for second, tally in enumerate(after) if set(tally.statuses) == {200}), AFTER_S)
        waited = _query(server, "SELECT max(started_at - created_at) FROM tasks WHERE started_at IS NOT NULL")
        assert time.monotonic() - began >= AFTER_S - 1
    statuses = sum((tally.statuses for tally in over), Counter[int]())
    slowest = load.Tally(latencies=[one for tally in refused for one in tally.latencies])
    return [
        ["drawn a second with a full queue", f"{capacity:.1f}", ""],
        [f"drawn a second at {TIMES} times as many requests", f"{goodput:.1f} ({goodput / capacity:.0%})", "90 %"],
        ["answers meanwhile", ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items())), ""],
        ["p50 / p99 ms of all answers meanwhile", f"{slowest.percentile(50):.1f} / {slowest.percentile(99):.1f}", "20"],
        ["longest wait of a task in the queue, s", f"{waited:.1f}", f"{MOST_WAITING / capacity:.1f} by the bound"],
        ["after it all submits are accepted again after s", str(calm), "10"],
    ]


def _phase(server: machine.Server, rate: int, seconds: int) -> tuple[float, list[load.Tally]]:
    """Tasks drawn a second while so many are asked for, and what was answered in each second."""
    drawn, began = _drawn(server), time.monotonic()
    tallies = _pace(server, rate, seconds)
    return (_drawn(server) - drawn) / (time.monotonic() - began), tallies


def _pace(server: machine.Server, rate: int, seconds: int) -> list[load.Tally]:
    request = load.post("/v1/flux-dev", server.key, BODY)
    tallies = []
    for _ in range(seconds):
        began = time.monotonic()
        tallies.append(uvloop.run(load.run(server.port, [request], connections=8, total=rate)))
        time.sleep(max(0.0, began + 1 - time.monotonic()))
    return tallies


def _drawn(server: machine.Server) -> float:
    return _query(server, "SELECT count(*) FROM tasks WHERE state = 'ready'")


def _query(server: machine.Server, query: str) -> float:
    path = (server.data_dir / "fluxserve.db").absolute().as_uri()
    with closing(sqlite3.connect(f"{path}?mode=ro", uri=True)) as connection:
        return float(connection.execute(query).fetchone()[0])
