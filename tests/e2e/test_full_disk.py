"""A full disk: nothing more is accepted, everything can still be asked for, and nothing accepted is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import MakeServer, Server, until

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> Path:
    """Take all but `leave` bytes of the disk."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:  # closing must not try again what did not fit
        space = os.statvfs(disk)
        for _ in range((space.f_bavail * space.f_frsize - leave) // 4096):
            try:
                file.write(bytes(4096))
            except OSError:
                break
    return ballast


def submit(server: Server) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/flux-dev", json={"prompt": "a red apple", "width": 256, "height": 256})


def test_a_nearly_full_disk_refuses_submits_and_answers_polls(make_server: MakeServer, small_disk: Path) -> None:
    server = make_server(data_dir=small_disk / "data", min_free_disk=str(4 * MIB), workers="0")
    server.start(ready=False).wait_until_answers()
    waiting = server.submit("a red apple")
    ballast = fill(small_disk, leave=2 * MIB)
    until(lambda: submit(server).status_code == 503, 3.0, "submits are refused")
    refused = submit(server)
    assert int(refused.headers["retry-after"]) >= 1
    assert "disk" in refused.json()["detail"]
    assert server.poll(waiting)["status"] == "Pending"
    ballast.unlink()
    until(lambda: submit(server).status_code == 200, 10.0, "submits are accepted again")
    assert "Traceback" not in server.log


def test_a_disk_filled_to_the_last_byte_loses_nothing(make_server: MakeServer, small_disk: Path) -> None:
    server = make_server(data_dir=small_disk / "data", min_free_disk="0", fake_latency="1.5", heartbeat="0.2").start()
    ready = server.submit("a yellow apple")
    assert server.wait(ready)["status"] == "Ready"
    running = [server.submit(f"apple {number}", output_format="png") for number in range(4)]
    for task in running:
        server.wait_until_running(task)
    ballast = fill(small_disk, leave=0)
    until(lambda: submit(server).status_code == 503, 5.0, "submits are refused")
    until(lambda: server.log.count("An outcome waits") >= len(running), 10.0, "the pictures cannot be kept")
    assert server.poll(ready)["status"] == "Ready"
    assert [server.poll(task)["status"] for task in running] == ["Pending"] * len(running)
    server.kill()  # and the server dies into the bargain: the worker still has the pictures
    ballast.unlink()
    server.start()
    assert [server.wait(task)["status"] for task in running] == ["Ready"] * len(running)
    assert server.rows("SELECT max(fence), max(spoiled) FROM tasks") == [(1, 0)]
    assert server.command("fsck").returncode == 0
    assert "Traceback" not in server.log


def test_pictures_wait_for_space_and_are_then_delivered(make_server: MakeServer, small_disk: Path) -> None:
    server = make_server(data_dir=small_disk / "data", min_free_disk="0", fake_latency="1").start()
    task = server.submit("a red apple", output_format="png")
    server.wait_until_running(task)
    ballast = fill(small_disk, leave=0)
    until(lambda: "An outcome waits" in server.log, 10.0, "the picture cannot be kept")
    ballast.unlink()
    assert server.wait(task, within=10.0)["status"] == "Ready"
    known = {name for (name,) in server.rows("SELECT object_name FROM tasks")}
    folder = server.data_dir / "results"
    assert {str(path.relative_to(folder)) for path in folder.glob("??/*")} == known
