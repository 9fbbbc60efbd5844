"""SIGTERM and SIGINT: what runs is finished, what waits stays queued, and the process ends in time with status 0."""

from __future__ import annotations

import os
import signal
import time

import pytest
from servers import MakeServer, Server, until

from fluxserve.worker.connection import run_dir


def states(server: Server) -> set[object]:
    return {state for (state,) in server.rows("SELECT DISTINCT state FROM tasks")}


def signalled(server: Server, number: signal.Signals = signal.SIGTERM) -> None:
    """Send the signal and wait until the server has taken notice."""
    assert server.process is not None
    os.kill(server.process.pid, number)
    until(lambda: "Stopping" in server.log, 5.0, "the server stops")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_under_load_loses_nothing(make_server: MakeServer, number: signal.Signals) -> None:
    server = make_server(workers="2", fake_latency="0.5").start()
    tasks = [server.submit(f"apple {index}") for index in range(60)]
    until(lambda: states(server) >= {"running", "ready"}, 10.0, "some are ready, some run")
    began = time.monotonic()
    assert server.stop(number, group=True) == 0
    assert time.monotonic() - began < 5.0
    server.wait_until_gone(1.0)
    assert "Traceback" not in server.log
    server.start(ready=False, workers="0").wait_until_answers()
    assert states(server) == {"ready", "queued"}
    assert server.stop() == 0
    server.start()
    assert [server.wait(task)["status"] for task in tasks] == ["Ready"] * 60
    assert server.rows("SELECT sum(spoiled) FROM tasks") == [(0,)]
    assert server.command("fsck").returncode == 0


def test_while_it_stops_submits_are_refused_and_polls_answered(make_server: MakeServer) -> None:
    server = make_server(fake_latency="1.5").start()
    task = server.submit("a red apple")
    server.wait_until_running(task)
    with server.client() as client:
        signalled(server)
        refused = client.post("/v1/flux-dev", json={"prompt": "another"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/get_result", params={"id": task}).json()["status"] == "Pending"
    assert server.process is not None
    assert server.process.wait(10.0) == 0
    server.start(ready=False, workers="0").wait_until_answers()
    assert server.poll(task)["status"] == "Ready"


def test_a_second_signal_hurries(make_server: MakeServer) -> None:
    server = make_server(fake_latency="60").start()
    task = server.submit("a red apple")
    until(lambda: server.worker_of(task), 5.0, "the task is given to a worker")
    signalled(server)
    began = time.monotonic()
    assert server.stop(group=True) == 0
    assert time.monotonic() - began < 4.0
    server.wait_until_gone(1.0)
    server.start(ready=False, fake_latency="0").wait_until_answers()
    assert server.wait(task)["status"] == "Ready"
    assert server.rows("SELECT spoiled FROM tasks") == [(0,)]


def test_a_picture_that_takes_too_long_is_drawn_again_later(make_server: MakeServer) -> None:
    server = make_server(fake_latency="60", drain="1").start()
    task = server.submit("a red apple")
    until(lambda: server.worker_of(task), 5.0, "the task is given to a worker")
    assert server.stop(within=6.0) == 0
    server.start(fake_latency="0")
    assert server.wait(task)["status"] == "Ready"
    assert server.rows("SELECT spoiled FROM tasks") == [(0,)]


def test_a_server_whose_workers_are_still_starting_stops_at_once(make_server: MakeServer) -> None:
    server = make_server(workers="2").start(ready=False)
    server.wait_until_answers()
    assert server.stop(group=True, within=4.0) == 0
    server.wait_until_gone(1.0)
    assert "Traceback" not in server.log


def test_nothing_is_left_behind(make_server: MakeServer) -> None:
    server = make_server().start()
    folder = run_dir(server.data_dir)
    assert folder.is_dir()
    assert server.stop() == 0
    server.wait_until_gone(1.0)
    assert not folder.exists()
    assert not (server.data_dir / "address").exists()
