"""`fluxserve generate`: on a running server, and on one that is started for the call."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from servers import FLUXSERVE, MakeServer, environment, processes, run, until

ENGINE_IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "transformers"))


def test_a_running_server_is_found_and_draws(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(fake_latency="0.2").start()
    drawn = run("generate", "a red apple", "--seed", "7", "--data-dir", str(server.data_dir), cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("red-apple.jpeg\n")
    assert "seed 7" in drawn.stdout
    with Image.open(tmp_path / "red-apple.jpeg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (1024, 768))
    again = run("generate", "a red apple", "-o", "apple.png", "--url", server.url, "--key", server.key, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    with Image.open(tmp_path / "apple.png") as picture:
        assert picture.format == "PNG"


def test_a_picture_is_verified_by_the_installation_that_drew_it_and_by_nobody_else(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server().start()
    here = ("--data-dir", str(server.data_dir))
    assert run("generate", "a red apple", "--seed", "7", *here, cwd=tmp_path).returncode == 0
    verified = run("verify", "red-apple.jpeg", *here, cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("red-apple.jpeg\n")
    assert "verified: signed by fluxserve pictures" in verified.stdout
    elsewhere = run("verify", "red-apple.jpeg", cwd=tmp_path)
    assert (elsewhere.returncode, "not trusted here" in elsewhere.stdout) == (1, True)


def test_pictures_go_with_the_prompt(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server().start()
    for name, size in (("one.png", (512, 320)), ("mask.png", (512, 320)), ("two.jpeg", (256, 256))):
        Image.new("RGB", size, "white").save(tmp_path / name)
    place = ["--data-dir", str(server.data_dir), "--format", "png"]
    for arguments, drawn_at in (
        (["-m", "flux-kontext-pro", "--image", "one.png", "--image", "two.jpeg", "-o", "a.png"], None),
        (["-m", "flux-pro-1.0-fill", "--image", "one.png", "--mask", "mask.png", "-o", "b.png"], (512, 320)),
    ):
        drawn = run("generate", "a red apple", *arguments, *place, cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
        with Image.open(tmp_path / arguments[-1]) as picture:
            assert drawn_at in (None, picture.size)
    refused = run("generate", "a red apple", "--image", "nothing.png", *place, cwd=tmp_path)
    assert refused.returncode == 1
    assert "There is no picture nothing.png that can be read." in refused.stderr


def test_what_cannot_be_done_is_said_in_one_line(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server().start()
    for arguments, words in (
        (["--url", server.url, "--key", "wrong"], "refused the API key"),
        (["--url", server.url], "needs an API key"),
        (["--url", "http://127.0.0.1:9"], "No server answers"),
        (["--data-dir", str(server.data_dir), "-m", "flux-9"], "no model of this name"),
        (["--data-dir", str(server.data_dir), "-o", "apple.gif"], "apple.gif"),
        (["--data-dir", str(server.data_dir), "--width", "33"], "width"),
    ):
        ended = run("generate", "a red apple", *arguments, cwd=tmp_path)
        assert ended.returncode == 1, arguments
        assert ended.stderr.startswith("error: ")
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
    assert list(tmp_path.glob("*.jpeg")) == []


def test_the_key_of_a_data_folder_goes_to_its_own_server_only(make_server: MakeServer, tmp_path: Path) -> None:
    mine, other = make_server().start(), make_server().start()
    asked = run("generate", "x", "--url", other.url, "--data-dir", str(mine.data_dir), cwd=tmp_path)
    assert asked.returncode == 1
    assert "needs an API key" in asked.stderr


def test_a_server_started_for_the_call_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    settings = environment({"engine": "fake", "fake_latency": "60"}) | {"TMPDIR": str(tmp_path / "temporary")}
    call = subprocess.Popen([*FLUXSERVE, "generate", "x", "--fresh"], cwd=tmp_path, env=settings)
    try:
        until(lambda: list((tmp_path / "temporary").glob("fluxserve-*/data/address")), 30.0, "its server answers")
        call.send_signal(signal.SIGTERM)
        assert call.wait(30) == 128 + signal.SIGTERM
    finally:
        call.kill()
        call.wait()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not [process for process in processes() if str(tmp_path / "temporary") in process.command]


@pytest.mark.skipif(not ENGINE_IS_INSTALLED, reason="needs the packages of the extra `local`")
def test_a_server_whose_worker_cannot_draw_is_not_waited_for(tmp_path: Path) -> None:
    ended = run("generate", "x", "--fresh", cwd=tmp_path, device="cuda:99", within=60.0)
    assert ended.returncode == 1
    assert "torch finds no such device here" in ended.stderr
    assert ended.stderr.endswith("error: The server did not start; its last lines are above.\n")


def test_a_failed_task_is_an_error(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server().start()
    ended = run("generate", "[[error]]", "--data-dir", str(server.data_dir), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")


@pytest.mark.skipif(not ENGINE_IS_INSTALLED, reason="needs the packages of the extra `local`")
def test_a_newcomer_draws_a_red_apple_with_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"  # where the server of the call keeps its data: it can be told by that
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    drawn = run("generate", "a red apple", "--fresh", within=240.0, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("red-apple.jpeg\n")
    assert "drawn by fluxserve-mini" in drawn.stdout
    with Image.open(tmp_path / "red-apple.jpeg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (1024, 768))
    assert [process for process in processes() if str(temporary) in process.command] == []
    assert list(temporary.glob("fluxserve*")) == []
