"""Whatever is killed, and whatever is missing, no picture gets out that was refused or that nobody looked at."""

from __future__ import annotations

import random
import time
from pathlib import Path

import httpx
import pytest
from servers import NO_TLS, MakeServer, Server, until

from fluxserve.engine.fake import MAGENTA
from fluxserve.moderation import opennsfw


def pictures(server: Server) -> list[Path]:
    return [path for path in (server.data_dir / "results").rglob("*") if path.is_file()]


def test_workers_that_are_killed_deliver_no_refused_picture(make_server: MakeServer) -> None:
    server = make_server(workers="2", fake_latency="0.2").start()
    prompts = [MAGENTA if number % 2 else "a red apple" for number in range(16)]
    tasks = [server.submit(prompt) for prompt in prompts]
    rng = random.Random(4)
    for _ in range(3):
        time.sleep(rng.uniform(0.05, 0.15))  # somewhere in the middle of a picture
        if workers := server.workers():
            rng.choice(workers).kill()
    statuses = [server.wait(task)["status"] for task in tasks]
    assert statuses == ["Content Moderated" if prompt == MAGENTA else "Ready" for prompt in prompts]
    assert len(pictures(server)) == 8
    assert server.command("fsck").returncode == 0
    assert server.stop() == 0


def test_without_a_working_classifier_nothing_is_ready(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "elsewhere" / opennsfw.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / opennsfw.FILE).write_bytes(b"other weights")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    pytest.importorskip("torch")
    server = make_server(engine="diffusion", device="cpu").start(ready=False).wait_until_answers()
    task = server.submit("a red apple")
    answer = httpx.get(f"{server.url}/readyz", verify=NO_TLS)
    assert (answer.status_code, answer.json()["moderation"]) == (503, "on")
    assert "not those that were tested" in answer.json()["reason"]
    until(lambda: "not those that were tested" in server.log, 20.0, "the worker says why it ends")
    assert server.poll(task)["status"] == "Pending"
    assert pictures(server) == []
