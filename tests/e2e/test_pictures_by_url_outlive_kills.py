"""Pictures by URL with real processes: fetched by the courier alone, and whatever is killed meanwhile, none is lost."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from servers import NO_TLS, MakeServer, Process, Server, run, until

from sample_pictures import PNG

FILE = base64.b64decode(PNG)
#: Not all of 127.0.0.0/8: a redirect to 127.0.0.2 leads inside.
LOCAL = "127.0.0.1/32"


@dataclass
class Site:
    """A web server in this process. Shut, it holds every request until it is opened."""

    port: int = 0
    #: The paths that were asked for, and the addresses they were asked for at.
    seen: list[tuple[str, str]] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append((handler.path, handler.headers["host"]))
        if handler.path.startswith("/slow"):
            self.is_open.wait(60.0)
        if handler.path == "/inside":
            handler.send_response(302)
            handler.send_header("location", f"http://127.0.0.2:{self.port}/secret")
            handler.end_headers()
            return
        handler.send_response(200)
        handler.send_header("content-length", str(len(FILE)))
        handler.end_headers()
        handler.wfile.write(FILE)


@contextmanager
def site() -> Iterator[Site]:
    """One that listens at every address of this machine."""
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Says nothing."""

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a courier that was killed hangs up
        here.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield here
        finally:
            here.is_open.set()
            server.shutdown()
            thread.join()


def courier(server: Server) -> Process | None:
    return next((process for process in server.processes() if " courier " in process.command), None)


def pixels_of(server: Server, task_id: str) -> str:
    """The sha256 of what was drawn; it shows the input picture."""
    result = server.wait(task_id, within=60.0)
    assert result["status"] == "Ready", result
    link = str(result["result"]["sample"])  # type: ignore[index]
    drawn = Image.open(BytesIO(httpx.get(link, verify=NO_TLS).content)).convert("RGB")
    assert drawn.getpixel((4, 4)) == (0, 0, 255)
    return hashlib.sha256(drawn.tobytes()).hexdigest()


def test_a_picture_by_url_is_drawn_like_the_same_as_base64_and_nothing_inside_is_reached(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with site() as web:
        server = make_server(outbound_allow=LOCAL, result_cache="0").start()
        fields = {"seed": 7, "output_format": "png"}
        by_url = server.submit("an owl", image_prompt=web.url("/a.png?sig=hush"), **fields)
        as_text = server.submit("an owl", image_prompt=PNG, **fields)
        assert pixels_of(server, by_url) == pixels_of(server, as_text)
        inside = server.submit("an owl", image_prompt=web.url("/inside"))
        ended = server.wait(inside)
        assert (ended["status"], ended["cost"]) == ("Error", 0.0)
        assert ended["details"] == {"error": "image_prompt: its URL cannot be reached"}
        with server.client() as client:
            body = {"prompt": "x", "image_prompt": f"http://127.0.0.2:{web.port}/secret"}
            assert client.post("/v1/flux-dev", json=body).status_code == 422
        assert {path for path, _ in web.seen} == {"/a.png?sig=hush", "/inside"}
        place = ("--data-dir", str(server.data_dir), "-o", "owl.png")
        drawn = run("generate", "an owl", "--image", web.url("/b.png"), *place, cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert "hush" not in server.log


def test_servers_and_couriers_that_are_killed_while_pictures_come_lose_none_and_charge_once(
    make_server: MakeServer,
) -> None:
    with site() as web:
        server = make_server(outbound_allow=LOCAL).start()
        tasks = [server.submit(f"owl {number}", image_prompt=web.url(f"/slow/{number}")) for number in range(3)]
        until(lambda: len(web.seen) >= 3, 90.0, "all are asked for")
        fetching = courier(server)
        assert fetching is not None
        fetching.kill()
        until(lambda: len(web.seen) >= 6, 90.0, "all are asked for again")
        server.kill_tree()
        assert {state for (state,) in server.rows("SELECT state FROM tasks")} == {"preparing"}
        server.start()
        until(lambda: len(web.seen) >= 9, 90.0, "all are asked for once more")
        assert {server.poll(task)["status"] for task in tasks} == {"Pending"}
        with server.client() as client:
            client.delete(f"/v1/tasks/{tasks[2]}")
        # A stop leaves them to the next server.
        assert server.stop() == 0
        web.is_open.set()
        server.start()
        for task in tasks[:2]:
            assert server.wait(task, within=60.0)["status"] == "Ready"
        assert server.wait(tasks[2])["status"] == "Error"
        kinds = server.rows("SELECT kind, count(*) FROM ledger GROUP BY kind ORDER BY kind")
        assert kinds == [("refund", 1), ("reserve", 3), ("settle", 2)]
        assert server.rows("SELECT * FROM preparations") == []
        until(
            lambda: not [one for one in (server.data_dir / "inputs").rglob("*") if one.is_file()], 5.0, "none is left"
        )
        assert server.command("fsck").returncode == 0
        assert server.stop() == 0
        assert "Traceback" not in server.log
