"""Provenance over HTTP: drawn, answered from the cache or followed, every picture is marked, signed and verifiable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from inprocess import Json, Server
from PIL import Image

from fluxserve.delivery import provenance
from fluxserve.engine import marks
from fluxserve.engine.fake import FINGERPRINT

FORMATS = ("jpeg", "png", "webp")
CANARY = "a yellow canary that nobody else may hear of"


def picture_of(server: Server, task: Json) -> tuple[Json, bytes]:
    """A ready task as it is polled, and its picture."""
    polled = server.poll(task)
    assert polled["status"] == "Ready"
    return polled, server.ask("GET", polled["result"]["sample"]).content


def anchors(server: Server) -> bytes:
    answer = server.ask("GET", "/c2pa/certificates.pem")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-pem-file")
    return answer.content


def told_by(folder: Path, file: bytes) -> dict[str, str]:
    path = folder / "picture"
    path.write_bytes(file)
    return marks.read(path)


@pytest.mark.parametrize("output_format", FORMATS)
def test_drawn_followed_and_cached_pictures_all_verify(server: Server, output_format: str, tmp_path: Path) -> None:
    server.run(server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
    asked = {"prompt": CANARY, "seed": 42, "output_format": output_format}
    drawn, followed = server.submit(asked), server.submit(asked)
    server.draw()
    cached = server.submit(asked)
    assert server.poll(cached)["details"]["cached"]
    for task in (drawn, followed, cached):
        polled, file = picture_of(server, task)
        assert provenance.read(file, anchors(server)).state == "trusted"
        told = told_by(tmp_path, file)
        assert told["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
        assert (told["Model"], told["Seed"], told["AISystemUsed"]) == ("flux-dev", "42", polled["details"]["drawn_by"])
        assert "warnings" not in polled["details"]
        for secret in (CANARY, CANARY.partition(" ")[2], str(task["id"]), server.key, "default"):
            assert secret.encode() not in file
        if output_format == "png":
            pixels = Image.open(BytesIO(file)).convert("RGB").tobytes()
            assert polled["details"]["pixels_sha256"] == hashlib.sha256(pixels).hexdigest()


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_operator_may_have_the_prompt_told(serve: Callable[..., Server], output_format: str, tmp_path: Path) -> None:
    server = serve(prompt_in_pictures=True)
    task = server.submit({"prompt": CANARY, "output_format": output_format})
    server.draw()
    _, file = picture_of(server, task)
    assert told_by(tmp_path, file)["AIPromptInformation"] == CANARY
    assert provenance.read(file, anchors(server)).state == "trusted"


def test_two_drawings_of_one_seed_have_the_same_pixels_and_signatures_of_their_own(
    serve: Callable[..., Server],
) -> None:
    server = serve(result_cache=0)
    tasks = [server.submit({"seed": 7, "output_format": "png"}) for _ in range(2)]
    server.draw()
    (one, first), (other, second) = (picture_of(server, task) for task in tasks)
    assert one["details"]["pixels_sha256"] == other["details"]["pixels_sha256"]
    assert Image.open(BytesIO(first)).tobytes() == Image.open(BytesIO(second)).tobytes()
    assert first != second


def test_where_pictures_are_not_signed_they_are_marked_all_the_same(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(c2pa="off")
    task = server.submit()
    server.draw()
    polled, file = picture_of(server, task)
    assert provenance.read(file, b"").state == "none"
    assert told_by(tmp_path, file)["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert "warnings" not in polled["details"]
    refused = server.ask("GET", "/c2pa/certificates.pem")
    assert (refused.status_code, json.loads(refused.content)["status_code"]) == (404, 404)
    assert not (server.folder / "c2pa").exists()


def test_a_picture_in_the_cache_does_not_outlive_a_change_of_what_is_told(tmp_path: Path) -> None:
    """Whoever turns the prompt off again must not hand out files that tell it."""
    from inprocess import serving

    asked = {"prompt": CANARY, "seed": 7}
    for tells in (True, False):
        with serving(tmp_path / "data", prompt_in_pictures=tells) as server:
            server.run(server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
            task = server.submit(asked)
            server.draw()
            _, file = picture_of(server, task)
            assert (CANARY.encode() in file) is tells
