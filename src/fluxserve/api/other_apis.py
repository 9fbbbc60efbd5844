"""What another public API is here: its own paths, answered over the same service.

Whoever adds one writes one file, and one line in `fluxserve.api`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Receive, Scope, Send

from fluxserve.api.body import Bodies
from fluxserve.api.dialect import Body, RenderError, RenderResult, Statuses
from fluxserve.api.events import Streams
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.storage import Storage
from fluxserve.service.service import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What calls are answered with."""

    service: Service
    signer: LinkSigner
    storage: Storage
    bodies: Bodies
    streams: Streams
    now: Callable[[], float]


class Calls(Protocol):
    """Answers calls."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call, plain ASGI. Raises FluxserveError before an answer has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherApi:
    """A public API whose calls are not those of the Flux API.

    `paths` are its own, and `methods` those of each, as the Allow header has them. `render_result` is there where tasks
    of it may have webhooks. `open` raises ConfigurationError. `document` tells its operations as OpenAPI does, by path.
    """

    name: str
    title: str
    paths: re.Pattern[str]
    methods: Callable[[str], str]
    open: Callable[[Parts], Calls]
    document: Callable[[], Body]
    render_error: RenderError
    render_result: RenderResult | None = None
    statuses: Statuses = field(default_factory=dict)


def operation(name: str, title: str, summary: str, answers: Mapping[str, tuple[str, Body]]) -> Body:
    """An operation as OpenAPI tells it; `answers` by their status, each with a description and its schema."""
    return {
        "operationId": name,
        "summary": summary,
        "tags": [title],
        "security": [{"XKey": []}, {"Bearer": []}],
        "responses": {
            status: {"description": about, "content": {"application/json": {"schema": schema}}}
            for status, (about, schema) in answers.items()
        },
    }


def parameter(name: str, where: str, about: str = "") -> Body:
    """A text in a path, a query or a header, as OpenAPI tells it."""
    return {"name": name, "in": where, "description": about, "required": where == "path", "schema": {"type": "string"}}
