"""Input pictures over HTTP: taken as base64, refused with the field's name, told of in answers."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest
from facts import PREFIXES
from inprocess import Server
from PIL import Image
from shapes import is_error

from sample_pictures import PNG, file_of, picture, text_of


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_picture_is_drawn_from_and_told_of(shared: Server, prefix: str) -> None:
    large = text_of(file_of(picture(1000, 500), "JPEG"))
    task = shared.submit({"image_prompt": large, "output_format": "png"}, f"{prefix}/flux-dev")
    assert task["input_mp"] == 0.5
    shared.draw()
    result = shared.poll(task)
    assert result["details"]["input_pictures"] == {"image_prompt": "1000x500"}
    drawn = Image.open(BytesIO(shared.ask("GET", result["result"]["sample"]).content)).convert("RGB")
    blue = drawn.getpixel((2, 2))
    assert isinstance(blue, tuple)
    assert blue[2] > 240
    assert blue[0] < 16


def test_a_request_without_pictures_has_none(shared: Server) -> None:
    assert shared.submit()["input_mp"] == 0
    assert shared.submit({"image_prompt": ""})["input_mp"] == 0


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" https://example.com/a.png", "picture"),
        ("http://10.0.0.1/", "picture_url"),
        ("aGk=", "picture"),
        ("é" * 300, "picture"),
    ],
)
def test_what_is_no_picture_is_a_422_that_names_the_field(shared: Server, prefix: str, text: str, kind: str) -> None:
    answer = shared.post(f"{prefix}/flux-dev", {"prompt": "x", "image_prompt": text})
    error = is_error(answer, 422, prefix)
    (item,) = answer.json()["detail"] if prefix == "/v1" else [error]
    if prefix == "/v1":
        assert (item["type"], item["loc"]) == (kind, ["body", "image_prompt"])
        assert len(item["input"]) <= 201


def test_equal_pixels_are_one_request_however_they_are_packed(server: Server) -> None:
    webp = text_of(file_of(picture(256, 256), "WEBP", lossless=True))
    first = server.post("/v1/flux-dev", {"prompt": "x", "image_prompt": PNG}, idempotency_key="k").json()
    again = server.post("/v1/flux-dev", {"prompt": "x", "image_prompt": webp}, idempotency_key="k").json()
    assert again["id"] == first["id"]
    other = text_of(file_of(picture(256, 256, colour="green")))
    answer = server.post("/v1/flux-dev", {"prompt": "x", "image_prompt": other}, idempotency_key="k")
    assert answer.status_code == 422


def test_a_key_that_asks_too_often_is_refused_before_its_picture_is_read(serve: Callable[..., Server]) -> None:
    server = serve()
    key = server.new_key(rate_per_minute=1)
    headers = {"X-Key": key}
    server.submit_with("/v1/flux-dev", headers, {"prompt": "x"})
    answer = server.ask("POST", "/v1/flux-dev", headers=headers, body=b'{"prompt": "x", "image_prompt": "aGk="}')
    assert answer.status_code == 429


def test_where_there_is_no_room_for_pictures_a_request_without_one_is_still_welcome(
    serve: Callable[..., Server],
) -> None:
    server = serve(input_budget=0)
    answer = server.post("/v1/flux-dev", {"prompt": "x", "image_prompt": PNG})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    server.submit()
