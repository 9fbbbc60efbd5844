"""Server-sent events, as far as a task's stream needs them: the data of each event, read as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import httpx

from fluxserve.client.answers import JsonObject

MEDIA_TYPE = "text/event-stream"


def is_stream(response: httpx.Response) -> bool:
    """Whether the server answers with events."""
    media_type, _, _ = response.headers.get("content-type", "").partition(";")
    return response.status_code == 200 and media_type.strip().lower() == MEDIA_TYPE


def read(lines: Iterable[str]) -> Iterator[JsonObject | None]:
    """Each event's data as its empty line comes; None for each other line, so that time can be looked at."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        if line or not data:
            yield None
            continue
        body = _json("\n".join(data))
        data = []
        yield body


def _json(text: str) -> JsonObject | None:
    try:
        body = json.loads(text)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
