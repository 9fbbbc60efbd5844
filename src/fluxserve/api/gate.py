"""The front door, plain ASGI: host, key and size are checked before anything is parsed.

A wrong key with 40 MB of broken JSON is a 401 at once. What callers ask for all day, from submits to pictures, never
reaches the framework behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.api import auth
from fluxserve.api.body import limited
from fluxserve.api.cors import Cors
from fluxserve.api.dialect import Dialect
from fluxserve.api.estimates import Estimates
from fluxserve.api.images import Pictures
from fluxserve.api.polls import Polls
from fluxserve.api.responses import INTERNAL, send_error
from fluxserve.api.submit import Submits
from fluxserve.api.tasks import Tasks, target_at
from fluxserve.api.webhooks import Deliveries, deliveries_at
from fluxserve.errors import FluxserveError, UnknownRoute
from fluxserve.service.service import Service

logger = logging.getLogger(__name__)


class Gate:
    """Sends submits, polls, lists, cancellations and pictures to their fast paths and guards the rest."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: Service,
        submits: Submits,
        estimates: Estimates,
        polls: Polls,
        tasks: Tasks,
        deliveries: Deliveries,
        pictures: Pictures,
        dialects: Sequence[Dialect],
    ) -> None:
        self._app = app
        self._service = service
        self._submits = submits
        self._estimates = estimates
        self._polls = polls
        self._tasks = tasks
        self._deliveries = deliveries
        self._pictures = pictures
        self._dialects = dialects
        self._cors = Cors(service.settings.cors_origins, b"GET, HEAD, POST, DELETE")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        dialect = next((d for d in self._dialects if path.startswith(d.prefix + "/")), None)
        is_picture = path.startswith("/results/")
        # Pictures tell browsers for themselves.
        cors = [] if is_picture else self._cors.headers(scope)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            if cors and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *cors]
            started = True
            await send(message)

        try:
            auth.check_host(scope, self._service.settings)
            if not is_picture and await self._cors.answer_preflight(scope, send):
                return
            await self._route(scope, receive, watch, dialect)
        except FluxserveError as error:
            await send_error(watch, error, dialect)
        except Exception as error:
            logger.exception(
                "A request met a defect of fluxserve",
                extra={"path": "/results/" if is_picture else path},
                exc_info=error,
            )
            if started:
                raise
            await send_error(watch, INTERNAL, dialect)

    async def _route(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect | None) -> None:
        path: str = scope["path"]
        if b"%2f" in scope["raw_path"].lower():
            # What a proxy in front takes for one segment must not be two here.
            raise UnknownRoute("There is nothing at this path: no path here has an escaped slash.")
        if path.startswith("/results/"):
            await self._pictures(scope, receive, send)
        elif dialect is not None and path == dialect.prefix + "/get_result":
            await self._polls(scope, receive, send, dialect)
        elif dialect is not None and path == dialect.prefix + "/estimate":
            await self._estimates(scope, receive, send, dialect)
        elif dialect is not None and (spec := self._submits.spec_at(path, dialect)) is not None:
            await self._submits(scope, receive, send, dialect, spec)
        elif dialect is not None and (target := target_at(path, dialect)) is not None:
            await self._tasks(scope, receive, send, dialect, target)
        elif dialect is not None and (listed := deliveries_at(path, dialect)) is not None:
            await self._deliveries(scope, send, dialect, listed)
        elif dialect is not None:
            await self._guarded(_as_get(scope), receive, send)
        else:
            await self._app(_as_get(scope), receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        auth.authenticate(scope, self._service)
        await self._app(scope, limited(scope, receive, self._service.settings.max_body), send)


def _as_get(scope: Scope) -> Scope:
    """A HEAD is a GET whose body the server leaves out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
