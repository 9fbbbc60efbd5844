"""Input pictures of an accepted task outlive everything, and nothing is left of them once it has ended."""

from __future__ import annotations

import os
import signal
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from servers import NO_TLS, MakeServer, Process, Server, until

from sample_pictures import PNG, file_of, picture, text_of


def inputs(server: Server) -> list[Path]:
    return [path for path in (server.data_dir / "inputs").rglob("*") if path.is_file()]


def shows_the_picture(server: Server, task_id: str) -> bool:
    """The fake engine draws the first input picture into the upper left quarter."""
    result = server.wait(task_id)
    assert result["status"] == "Ready", result
    link = str(result["result"]["sample"])  # type: ignore[index]
    drawn = Image.open(BytesIO(httpx.get(link, verify=NO_TLS).content)).convert("RGB")
    return drawn.getpixel((4, 4)) == (0, 0, 255) and drawn.getpixel((124, 124)) == (255, 0, 0)


def decoder(server: Server) -> Process | None:
    """The process that reads pictures; it is in a session of its own."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    found = [int(pid) for pid, command in commands.items() if b"fluxserve.delivery.decoder" in command]
    return Process(found[0], found[0], "") if found else None


def test_a_picture_outlives_kill_9_of_everything_while_its_task_waits(make_server: MakeServer) -> None:
    server = make_server(workers="0").start(ready=False).wait_until_answers()
    waiting = server.submit("a waiting one", image_prompt=PNG, output_format="png")
    cancelled = server.submit("an unwanted one", image_prompt=PNG)
    assert len(inputs(server)) == 2
    reader = decoder(server)
    assert reader is not None
    server.kill_tree()
    until(lambda: not Path(f"/proc/{reader.pid}").exists(), 5.0, "the decoder has ended with its server")

    server.start(workers="1")
    with server.client() as client:
        client.delete(f"/v1/tasks/{cancelled}")
    assert shows_the_picture(server, waiting)
    server.wait(cancelled)
    until(lambda: not inputs(server), 5.0, "no input picture is left")
    assert server.rows("SELECT * FROM inputs") == []
    assert server.command("fsck").returncode == 0
    assert server.stop() == 0


def test_a_decoder_that_is_killed_costs_no_request_and_nobody_else_anything(make_server: MakeServer) -> None:
    server = make_server().start()
    first = server.submit("one", image_prompt=PNG, output_format="png")
    reader = decoder(server)
    assert reader is not None
    os.kill(reader.pid, signal.SIGKILL)
    second = server.submit("two", image_prompt=PNG, output_format="png")
    assert shows_the_picture(server, first)
    assert shows_the_picture(server, second)
    bomb = text_of(file_of(picture())[:40])
    with server.client() as client:
        answer = client.post("/v1/flux-dev", json={"prompt": "x", "image_prompt": bomb})
    assert answer.status_code == 422
    assert server.stop() == 0
