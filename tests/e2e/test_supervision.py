"""Poison, hanging engines, stopped and grown workers: the queue goes on, the pictures stay, only the guilty end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file
from servers import MakeServer, Server, until
from test_tasks_go_on import begin, steps_made, waypoint, went_on
from test_workers_die import attempts, books_are_in_order, moves

from fluxserve import mini

#: Ways to end an engine that the fake one knows; the last two come as far as that step first.
POISONS = ("[[crash]]", "[[hang]]", "[[crash:3]]", "[[hang:2]]")
#: Starts a program that never ends, as soon as the worker leads a group of its own.
COMPANION = """
import os, subprocess, sys, threading, time

def start():
    while os.getpgrp() != os.getpid():
        time.sleep(0.01)
    subprocess.Popen(["sleep", "987654"])

if "worker" in sys.orig_argv and "--parented" in sys.orig_argv:
    threading.Thread(target=start, daemon=True).start()
"""


def pixels(server: Server, task: str) -> object:
    """The digest of the task's picture."""
    polled = server.wait(task, within=600.0)
    assert polled["status"] == "Ready", polled
    return polled["details"]["pixels_sha256"]  # type: ignore[index]


def is_quarantined(server: Server, task: str) -> bool:
    """It ended in error with its credits back, after it ended two engines in company and one alone."""
    polled = server.wait(task, within=600.0)
    assert (polled["status"], polled["cost"]) == ("Error", 0.0)
    assert moves(server, task) == ["reserve", "refund"]
    assert attempts(server, task)[1] == 3
    return "Quarantined" in str(polled["details"]["error"])  # type: ignore[index]


@pytest.mark.parametrize("counts", [pytest.param((10, 90), marks=pytest.mark.long), (2, 18)])
def test_poisoned_tasks_are_quarantined_and_all_the_others_are_drawn(
    make_server: MakeServer, counts: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(workers="2", fake_latency="0.05", step_patience="1").start()
    began = time.monotonic()
    poisoned, healthy = counts
    poisons, apples = [], []
    for number in range(poisoned):
        apples += [server.submit(f"apple {number} {other}") for other in range(healthy // poisoned)]
        poisons.append(server.submit(f"{POISONS[number % len(POISONS)]} {number}"))
    assert [server.wait(task, within=600.0)["status"] for task in apples] == ["Ready"] * healthy
    assert all(is_quarantined(server, task) for task in poisons)
    seconds = time.monotonic() - began
    listed = server.command("quarantine")
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 1 + poisoned)
    assert all(task in listed.stdout for task in poisons)
    assert "apple" not in listed.stdout
    assert books_are_in_order(server)
    with capsys.disabled():
        print(
            f"\n  {poisoned} poisoned among {poisoned + healthy}: all ended in {seconds:.0f} s, "
            f"{server.log.count('A worker process ended')} workers ended"
        )


def test_equals_of_a_poisoned_task_end_no_further_engines(make_server: MakeServer) -> None:
    server = make_server(fake_latency="0.5").start()
    poison, *equals = [server.submit("[[crash:2]]", seed=7) for _ in range(5)]
    assert is_quarantined(server, poison)
    assert [server.wait(task)["status"] for task in equals] == ["Error"] * 4
    assert [attempts(server, task) for task in equals] == [(0, 0)] * 4
    assert [moves(server, task) for task in equals] == [["reserve", "refund"]] * 4
    assert pixels(server, server.submit("a red apple"))
    assert books_are_in_order(server)


def test_pictures_beside_one_that_hangs_go_on_elsewhere_and_are_the_same(make_server: MakeServer) -> None:
    settings = {"fake_latency": "4", "fake_steps": "20", "waypoint_interval": "0", "result_cache": "0"}
    server = make_server(step_patience="1.5", **settings).start()
    poison = server.submit("[[hang:8]]")
    apples = [server.submit(f"apple {seed}", seed=seed) for seed in range(3)]
    drawn = [pixels(server, task) for task in apples]
    assert {task for task, step in went_on(server) if step >= 5} >= set(apples)
    assert is_quarantined(server, poison)
    assert "Timeout" in server.log
    again = [pixels(server, server.submit(f"apple {seed}", seed=seed)) for seed in range(3)]
    assert again == drawn


@pytest.mark.parametrize("engine", ["fake", pytest.param("diffusion", marks=pytest.mark.long)])
def test_a_worker_that_is_stopped_loses_its_pictures_to_others_who_end_them_in_the_same_pixels(
    make_server: MakeServer, engine: str
) -> None:
    settings = {"fake_latency": "6", "fake_steps": "40"} if engine == "fake" else {"device": "cpu"}
    server = begin(make_server(
        engine=engine, workers="2", lease="3", heartbeat="0.5", waypoint_interval="0", result_cache="0", **settings
    ))  # fmt: skip
    task = server.submit("a red apple", seed=7, steps=40)
    until(lambda: waypoint(server, task) >= 5, 600.0, "it is on its way")
    worker = server.worker_of(task)
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    stopped_at = waypoint(server, task)
    until(lambda: worker not in server.workers(), 30.0, "the stopped worker is ended")
    assert steps_made(server, task) >= stopped_at - 0.01
    disturbed = pixels(server, task)
    assert [one for one, step in went_on(server) if step >= stopped_at] == [task]
    assert pixels(server, server.submit("a red apple", seed=7, steps=40)) == disturbed


def test_a_worker_that_has_grown_too_large_makes_way_between_two_tasks_and_none_is_blamed(
    make_server: MakeServer,
) -> None:
    server = make_server(fake_latency="0.2", worker_memory=str(2**20)).start()
    first = server.workers()
    tasks = [server.submit(f"apple {number}") for number in range(12)]
    assert all(pixels(server, task) for task in tasks)
    assert "The worker has grown too large" in server.log
    assert "status=75" in server.log
    until(lambda: server.workers() not in ([], first), 20.0, "another worker is there")
    assert {attempts(server, task)[1] for task in tasks} == {0}


def test_a_worker_whose_process_is_spent_makes_way_and_what_was_drawn_beside_goes_on_in_the_same_pixels(
    make_server: MakeServer,
) -> None:
    settings = {"fake_latency": "4", "fake_steps": "20", "waypoint_interval": "60", "result_cache": "0"}
    server = make_server(**settings).start()
    first = server.workers()
    spends = server.submit("[[spend:8]]")
    apples = [server.submit(f"apple {seed}", seed=seed) for seed in range(3)]
    drawn = [pixels(server, task) for task in apples]
    polled = server.wait(spends)
    assert (polled["status"], polled["cost"]) == ("Error", 0.0)
    assert moves(server, spends) == ["reserve", "refund"]
    assert {task for task, step in went_on(server) if step >= 5} == set(apples)
    assert "status=75" in server.log
    assert server.workers() not in ([], first)
    assert {attempts(server, task)[1] for task in (spends, *apples)} == {0}
    assert [pixels(server, server.submit(f"apple {seed}", seed=seed)) for seed in range(3)] == drawn
    assert books_are_in_order(server)


@pytest.mark.long
@pytest.mark.parametrize("megabytes", [4, *(pytest.param(other, marks=pytest.mark.long) for other in (1, 16, 64))])
def test_workers_that_the_system_refuses_memory_end_every_task_and_draw_the_same_when_there_is_memory_again(
    make_server: MakeServer, megabytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real networks, and a limit that the process meets in the middle of its work. All pictures are of other shapes."""
    server = begin(make_server(engine="diffusion", device="cpu", workers="1", result_cache="0"))
    wishes = [{"seed": seed, "steps": 4, "width": 256 + 96 * seed, "height": 1024 - 96 * seed} for seed in range(8)]
    pixels(server, server.submit("apple", seed=1))
    (worker,) = server.workers()
    taken = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (taken + megabytes * 2**20, resource.RLIM_INFINITY))
    short = [server.wait(task, within=600.0) for task in [server.submit("apple", **wish) for wish in wishes]]
    with suppress(ProcessLookupError):
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    whole = [pixels(server, task) for task in [server.submit("apple", **wish) for wish in wishes]]
    for polled, sound in zip(short, whole, strict=True):
        details = polled["details"]
        assert isinstance(details, dict)
        if polled["status"] == "Ready":
            assert details["pixels_sha256"] == sound or "drawn_with" in details
        else:
            assert (polled["status"], polled["cost"]) == ("Error", 0.0)
            assert "out of memory" in str(details["error"])
    assert books_are_in_order(server)
    with capsys.disabled():
        failed = sum(polled["status"] == "Error" for polled in short)
        print(f"\n  {megabytes} MB: {failed} of 8 failed, worker replaced: {server.workers() != [worker]}")


def test_what_a_worker_has_started_ends_with_it(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(COMPANION)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    server = make_server().start()

    def companions() -> list[int]:
        return [process.pid for process in server.processes() if "sleep 987654" in process.command]

    (first,) = until(companions, 10.0, "the worker has started a program")
    (worker,) = server.workers()
    worker.kill()
    until(lambda: first not in companions(), 10.0, "the program has ended with its worker")
    assert server.stop() == 0
    server.wait_until_gone(5.0)


def test_weights_that_cannot_be_loaded_are_told_of_without_where_they_lie(
    make_server: MakeServer, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(mini.folder(), broken)
    (weights,) = (broken / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["x_embedder.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    server = make_server(engine="diffusion", device="cpu", models=json.dumps({"flux-schnell": str(broken)})).start()
    (line,) = httpx.get(server.url + "/readyz").json()["left_out"]
    assert "lacks the tensor x_embedder.bias" in line
    assert "broken/transformer" in line
    assert str(tmp_path) not in line
    assert str(broken) in server.log
    assert server.wait(server.submit("a red apple", width=256, height=256, steps=2), within=60.0)["status"] == "Ready"
