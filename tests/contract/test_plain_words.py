"""What callers are told of their mistakes is said in words, and not in patterns."""

from __future__ import annotations

import pytest
from inprocess import Server


@pytest.mark.parametrize("url", ["nowhere", "ftp://example.com/hook", "https://", "https://exa mple.com"])
def test_a_webhook_that_is_no_url_is_told_so(shared: Server, url: str) -> None:
    answer = shared.post("/v1/flux-dev", {"prompt": "x", "webhook_url": url})
    assert answer.status_code == 422
    assert answer.json()["message"] == "webhook_url: Input should be an http or https URL"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/a.png", "S3://bucket/a.png", "gopher://x"])
def test_a_picture_at_another_kind_of_url_is_told_what_is_taken(shared: Server, url: str) -> None:
    answer = shared.post("/v1/flux-kontext-pro", {"prompt": "x", "input_image": url})
    assert answer.status_code == 422
    assert answer.json()["message"] == (
        "input_image: Input should be base64, a data URI, or an http or https URL: nothing else is fetched"
    )


def test_who_has_too_many_tasks_is_told_how_many(server: Server) -> None:
    key = server.new_key(max_active=2)
    body = b'{"prompt": "x"}'
    for _ in range(2):
        assert server.ask("POST", "/v1/flux-dev", key=key, body=body).status_code == 200
    answer = server.ask("POST", "/v1/flux-dev", key=key, body=body)
    assert answer.status_code == 429
    assert "may have 2 unfinished tasks at a time, and has 2." in answer.json()["message"]
