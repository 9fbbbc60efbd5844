"""A start after anything: leftovers of killed processes stop nothing, and what must stop it is said in one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from servers import MakeServer, Server, run, until

from fluxserve.worker.connection import run_dir


def refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """It ended with status 1 and one clear line that says all of `words`."""
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


def serve(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    command = ["serve", "--port", "0", "--engine", "fake", "--data-dir", str(data_dir), *arguments]
    return run(*command, within=30.0, **settings)


# What a killed server leaves behind


def test_leftovers_of_a_killed_server_stop_no_start(make_server: MakeServer) -> None:
    server = make_server().start()
    task = server.submit("a red apple")
    assert server.wait(task)["status"] == "Ready"
    server.kill_tree()
    folder = run_dir(server.data_dir)
    assert {path.name for path in folder.iterdir()} >= {"worker.sock", "admin.sock"}
    (folder / "worker.sock").unlink()
    (folder / "worker.sock").write_text("no socket")
    (folder / "local-7-00000000.lock").touch()
    (server.data_dir / "server.lock").write_text("4711")
    server.start()
    assert server.poll(task)["status"] == "Ready"
    assert len(list(folder.glob("*.lock"))) == 1  # the new worker's
    assert server.wait(server.submit("a green apple"))["status"] == "Ready"


def test_a_data_folder_with_a_long_path_works(make_server: MakeServer, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 24) / ("path-" * 24) / "data"
    folder.parent.mkdir(parents=True)
    assert len(str(folder)) > 200
    server = make_server(data_dir=folder).start()
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"
    assert server.command("keys", "list").returncode == 0


@pytest.mark.parametrize(("count", "kills"), [(300, 1), pytest.param(10_000, 20, marks=pytest.mark.long)])
def test_queued_tasks_survive_kills_of_everything(
    make_server: MakeServer, capsys: pytest.CaptureFixture[str], count: int, kills: int
) -> None:
    server = make_server().start(ready=False, workers="0").wait_until_answers()
    with server.client() as client:
        for number in range(count):
            answer = client.post("/v1/flux-dev", json={"prompt": f"{number}", "width": 256, "height": 256})
            assert answer.status_code == 200
    drawn: set[tuple[object, ...]] = set()
    answered, ready = [], []
    for _ in range(kills):
        server.kill_tree()
        began = time.monotonic()
        server.start(ready=False, workers="2").wait_until_answers()
        answered.append(time.monotonic() - began)
        server.wait_until_ready()
        ready.append(time.monotonic() - began)
        assert drawn <= (drawn := set(server.rows("SELECT id, fence, finished_at FROM tasks WHERE state = 'ready'")))
    assert server.rows("SELECT count(*) FROM tasks") == [(count,)]
    until(lambda: server.rows("SELECT count(*) FROM tasks WHERE state = 'ready'") == [(count,)], 200.0, "all are drawn")
    assert drawn <= set(server.rows("SELECT id, fence, finished_at FROM tasks"))  # what was ready is never drawn again
    assert server.command("fsck").returncode == 0
    with capsys.disabled():
        print(
            f"\n  {kills} starts with {count} queued tasks: answers after {max(answered):.2f} s at most, "
            f"ready after {max(ready):.2f} s at most"
        )


# What stops a start


def test_a_second_server_on_the_same_data_folder_is_refused(make_server: MakeServer) -> None:
    server = make_server().start()
    refused(serve(server.data_dir), str(server.data_dir), "in use by another fluxserve")
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"
    assert httpx.get(server.url + "/readyz").status_code == 200


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_run_folder_that_somebody_else_has_put_there_is_refused(tmp_path: Path, kind: str) -> None:
    folder = run_dir(tmp_path / "data")
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if kind == "a file":
        folder.touch()
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    try:
        refused(serve(tmp_path / "data"), str(folder), "remove it")
    finally:
        folder.rmdir() if kind == "open to others" else folder.unlink()


def test_a_damaged_database_stops_the_start_and_names_the_remedy(make_server: MakeServer) -> None:
    server = make_server().start()
    backup = server.data_dir.parent / "backup.db"
    task = server.submit("a red apple")
    assert server.wait(task)["status"] == "Ready"
    assert server.command("backup", str(backup)).returncode == 0
    assert server.stop() == 0
    with (server.data_dir / "fluxserve.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(8 * 4096))
    refused(serve(server.data_dir), "damaged", "fluxserve restore")
    assert server.command("restore", str(backup)).returncode == 0
    server.start()
    assert server.poll(task)["status"] == "Ready"


def test_a_file_that_is_no_database_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "fluxserve.db").write_text("something else" * 1000)
    refused(serve(tmp_path), "damaged", "fluxserve restore")


def test_a_start_that_died_before_its_first_key_counted_makes_another(make_server: MakeServer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    (folder / "api_key").write_text("a key that never counted")
    server = make_server(data_dir=folder).start()
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"


def test_a_public_address_without_a_key_is_refused(tmp_path: Path) -> None:
    refused(serve(tmp_path / "data", "--host", "0.0.0.0"), "fluxserve keys create", "127.0.0.1")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(serve(tmp_path / "data", "--port", port), port, "another program uses it")


def test_a_worker_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(serve(tmp_path / "data", worker_listen=place, worker_token="secret"), place, "worker_listen")
    refused(serve(tmp_path / "data", worker_listen=place), "worker_token")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "flux-weights"
    refused(serve(tmp_path / "data", models=json.dumps({"flux-dev": str(missing)})), str(missing))


def test_a_checkpoint_with_pickles_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(serve(tmp_path / "data", models=json.dumps({"flux-dev": str(folder)})), "diffusion_pytorch_model.bin")


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    refused(serve(tmp_path / "data", wrokers="2"), "FLUXSERVE_WROKERS")
    (tmp_path / "settings.toml").write_text("wrokers = 2\n")
    refused(serve(tmp_path / "data", "--config", str(tmp_path / "settings.toml")), "wrokers")


def test_words_for_speed_that_are_none_or_cannot_be_done_here_stop_the_start(tmp_path: Path) -> None:
    refused(serve(tmp_path / "data", speed="compiled,fast"), "speed.1", "channels-last")
    local = ("--engine", "diffusion")
    refused(serve(tmp_path / "data", *local, device="cpu", speed="graphs"), "speed = graphs", "Leave it out")
    refused(serve(tmp_path / "data", *local, speed="plain,fused"), "speed = fused, plain", "Name it alone")
    assert not (tmp_path / "data").exists()


def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    refused(serve(tmp_path / "data", workers="many"), "workers")
    (tmp_path / "settings.toml").write_text("workers = = 2\n")
    refused(serve(tmp_path / "data", "--config", str(tmp_path / "settings.toml")), "settings.toml", "TOML")


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(serve(tmp_path / "file" / "data"), str(tmp_path / "file" / "data"), "--data-dir")


def test_secrets_that_others_can_read_stop_the_start(make_server: MakeServer) -> None:
    server: Server = make_server().start()
    assert server.stop() == 0
    (server.data_dir / "secrets.json").chmod(0o644)
    refused(serve(server.data_dir), "chmod 600")


def test_workers_draw_where_there_is_an_admin_key(make_server: MakeServer) -> None:
    server = make_server(admin_key="sixteen-letters-and-more").start()
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"
