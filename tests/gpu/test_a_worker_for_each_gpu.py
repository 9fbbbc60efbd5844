"""A machine with several GPUs: a worker for each, all of them draw, and what they draw is the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from servers import NO_TLS, Server, until

from fluxserve.worker.connection import run_dir

pytestmark = pytest.mark.gpu
#: Importing torch, finding the GPU and getting warm, all workers at once.
START_S = 240.0
#: Pictures for each worker: as many as it holds at most, and more.
EACH = 12


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With everything as it is by default, and mini."""
    started = Server(data_dir=tmp_path / "data", settings={"engine": "diffusion", "log_level": "info"})
    yield started
    started.close()
    shutil.rmtree(run_dir(started.data_dir), ignore_errors=True)


def test_each_gpu_has_a_worker_that_draws_the_pictures_of_the_others(server: Server) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("needs two GPUs or more")
    server.start(ready=False).wait_until_answers()
    until(lambda: _ready(server) == count, START_S, f"{count} workers are ready")
    assert sorted(map(_visible, server.workers())) == sorted(map(str, range(count)))
    tasks = [server.submit("a red apple", seed=number) for number in range(EACH * count)]
    drawers: set[object] = set()
    until(lambda: len(drawers.update(_drawing(server)) or drawers) == count, 120.0, "every worker draws")
    ended = [server.wait(task, within=120.0) for task in tasks]
    assert {answer["status"] for answer in ended} == {"Ready"}
    assert len({answer["details"]["fingerprint"] for answer in ended}) == 1  # type: ignore[index]


def _ready(server: Server) -> int:
    return int(httpx.get(f"{server.url}/readyz", timeout=5.0, verify=NO_TLS).json()["workers"])


def _visible(worker: object) -> str:
    """What the worker sees of the GPUs."""
    variables = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")  # type: ignore[attr-defined]
    return next(one.partition("=")[2] for one in variables if one.startswith("CUDA_VISIBLE_DEVICES="))


def _drawing(server: Server) -> set[object]:
    """The workers that hold a task now."""
    return {worker for (worker,) in server.rows("SELECT DISTINCT worker_id FROM tasks WHERE state = 'running'")}
