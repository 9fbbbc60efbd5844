"""What another public API is here: its own paths, answered over the same service.

Whoever adds one writes one file, and one line in `fluxserve.api`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Receive, Scope, Send

from fluxserve.api.body import Bodies
from fluxserve.api.dialect import Body, RenderError, Statuses
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

    `paths` are its own. `open` raises ConfigurationError. `document` tells its operations as OpenAPI does, by path.
    """

    name: str
    title: str
    paths: re.Pattern[str]
    open: Callable[[Parts], Calls]
    document: Callable[[], Body]
    render_error: RenderError
    statuses: Statuses = field(default_factory=dict)
