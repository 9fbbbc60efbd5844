"""What every answer of a dialect must look like, and what no answer may ever hold."""

from __future__ import annotations

import re

import httpx
from inprocess import Json

COMETAPI = "/flux/v1"
ERROR = {"detail", "message", "status_code"}
RESULT = ["id", "status", "result", "progress", "details", "preview"]
#: Texts of libraries, of Python and of this machine.
LEAKS = re.compile(
    r"traceback|exception|\.py\b|pydantic|starlette|fastapi|uvicorn|msgspec|sqlite|errno|site-packages|"
    r"object at 0x|/(?:tmp|home|usr|root|work|var|private)/|line \d+ column|errors\.pydantic\.dev",
    re.IGNORECASE,
)


def is_error(answer: httpx.Response, status: int, dialect: str = "/v1") -> Json:
    """The error's body, of exactly the dialect's keys, JSON, uncached, and without a word of a library."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    body = answer.json()
    assert body.keys() == (ERROR | {"error"} if dialect == COMETAPI else ERROR)
    assert body["status_code"] == status
    assert isinstance(body["message"], str)
    assert body["message"]
    if status == 422:
        assert body["detail"]
        for item in body["detail"]:
            assert item.keys() - {"ctx"} == {"type", "loc", "msg", "input"}
            assert item["loc"][0] in ("body", "query", "header")
    else:
        assert body["detail"] == body["message"]
    if dialect == COMETAPI:
        error = body["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["message"], error["type"]) == (body["message"], "comet_api_error")
        assert all(isinstance(value, str) for value in error.values())
    assert not LEAKS.search(answer.text), answer.text
    return dict(body)
