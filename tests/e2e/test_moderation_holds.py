"""Whatever is killed, and whatever is missing, no picture gets out that was refused or that nobody looked at."""

from __future__ import annotations

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class Judge(BaseHTTPRequestHandler):
    """Refuses what speaks of a pear."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = json.dumps({"scores": {"hate": 1.0 if "pear" in asked["text"] else 0.0}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Nothing."""


def test_a_judge_in_the_house_is_asked_and_callers_urls_lead_no_nearer_to_it(make_server: MakeServer) -> None:
    judge = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=judge.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{judge.server_port}/judge"
    try:
        server = make_server(moderation_judges=json.dumps([{"url": url, "kind": "http", "key": "hush"}])).start()
        apple, pear = server.submit("a red apple"), server.submit("a green pear")
        assert server.wait(apple)["status"] == "Ready"
        assert server.wait(pear)["status"] == "Request Moderated"
        with server.client() as client:
            refused = client.post("/v1/flux-dev", json={"prompt": "an apple", "webhook_url": url})
        assert refused.status_code == 422
        judge.shutdown()
        judge.server_close()
        with server.client() as client:
            assert client.post("/v1/flux-dev", json={"prompt": "a red apple"}).status_code == 503
        assert "hush" not in server.log
        assert server.stop() == 0
    finally:
        judge.server_close()
