"""How long it takes to be told that a task is not there: one of another account's, and one that nobody has."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
import uuid

import httpx

import machine

EACH = 2000
HEADINGS = ["asked for", "p50 ms of another's", "p50 ms of nobody's", "p of Mann and Whitney", "goal"]
PATHS = {
    "a poll of a task that waits": ("GET", "/v1/get_result?id={}"),
    "cancelling a task that waits": ("POST", "/v1/tasks/{}/cancel"),
}


def rows() -> list[list[str]]:
    """In turns, in an order by chance."""
    found = []
    with machine.server(settings={"FLUXSERVE_ENGINE": "none"}) as server:
        origin = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=origin, headers={"x-key": server.key}) as owner:
            body = json.dumps({"prompt": "a red apple"})
            tasks = [owner.post("/v1/flux-dev", content=body).json()["id"] for _ in range(20)]
        stranger = machine.new_key(server)
        for name, (method, path) in PATHS.items():
            found.append([name, *_compared(origin, stranger, method, path, tasks), "over 0.01"])
    return found


def _compared(origin: str, key: str, method: str, path: str, tasks: list[str]) -> list[str]:
    rng = random.Random(1)
    wanted = [(True, rng.choice(tasks)) for _ in range(EACH)] + [(False, str(uuid.uuid4())) for _ in range(EACH)]
    rng.shuffle(wanted)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    bodies = set()
    with httpx.Client(base_url=origin, headers={"x-key": key}) as client:
        for is_anothers, task_id in wanted:
            began = time.perf_counter()
            answer = client.request(method, path.format(task_id))
            seconds[is_anothers].append(time.perf_counter() - began)
            bodies.add((answer.status_code, answer.text.replace(task_id, "")))
    assert len(bodies) == 1, bodies
    medians = [f"{1000 * statistics.median(seconds[kind]):.3f}" for kind in (True, False)]
    return [*medians, f"{_p_value(seconds[True], seconds[False]):.2f}"]


def _p_value(ours: list[float], others: list[float]) -> float:
    """That both are of one distribution: Mann and Whitney's U, by its normal approximation (no ties to speak of)."""
    ranked = sorted((value, index) for index, values in enumerate((ours, others)) for value in values)
    ranks = sum(rank for rank, (_, index) in enumerate(ranked, 1) if index == 0)
    n, m = len(ours), len(others)
    u = ranks - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))
