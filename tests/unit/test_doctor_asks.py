"""What doctor finds out about the endpoint that enriches prompts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fluxserve.doctor import Finding, _upsampler
from fluxserve.settings import Settings, Upsampler

KEY = "the-key-of-the-endpoint"


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """An endpoint on loopback that always answers so, and what it was asked."""
    asked: list[str] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['authorization']}")
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quietly."""

    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


def found(url: str) -> Finding:
    return _upsampler(Settings(prompt_upsampler=Upsampler(url=url, model="tiny-writer", key=KEY)))


@pytest.mark.parametrize(
    ("status", "grade", "words"),
    [(200, "ok", "answers"), (401, "bad", "refuses the key"), (404, "note", "answers 404 to GET /models")],
)
def test_an_endpoint_is_asked_for_its_models_with_its_key(status: int, grade: str, words: str) -> None:
    with answering(status) as (url, asked):
        finding = found(url)
    assert asked == [f"/v1/models Bearer {KEY}"]
    assert (finding.grade, words in finding.text, KEY in finding.text) == (grade, True, False)


def test_one_that_does_not_answer_is_bad() -> None:
    with answering(200) as (url, _):
        pass
    finding = found(url)
    assert (finding.grade, "does not answer" in finding.text) == ("bad", True)


def test_none_is_a_note_and_the_checkpoints_own_needs_no_call() -> None:
    assert _upsampler(Settings()).grade == "note"
    assert _upsampler(Settings(prompt_upsampler="checkpoint")).grade == "ok"
