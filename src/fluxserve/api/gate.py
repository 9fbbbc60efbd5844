"""The front door, plain ASGI: host, key and size are checked before anything is parsed.

A wrong key with 40 MB of broken JSON is a 401 at once. What callers ask for all day, from submits to pictures, never
reaches the framework behind it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.api import auth
from fluxserve.api.body import limited
from fluxserve.api.cors import Cors
from fluxserve.api.dialect import Dialect, Manners
from fluxserve.api.estimates import Estimates
from fluxserve.api.images import Pictures
from fluxserve.api.metrics import PATH, Exposition
from fluxserve.api.other_apis import Calls, OtherApi
from fluxserve.api.polls import Polls
from fluxserve.api.responses import INTERNAL, send_error
from fluxserve.api.submit import Submits
from fluxserve.api.tasks import Tasks, target_at
from fluxserve.api.webhooks import Deliveries, deliveries_at
from fluxserve.errors import FluxserveError, MethodNotAllowed, UnknownRoute
from fluxserve.service.service import Service

logger = logging.getLogger(__name__)
#: What answers a path, and what metrics call such requests.
Destination = tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]


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
        exposition: Exposition,
        dialects: Sequence[Dialect],
        others: Mapping[str, tuple[OtherApi, Calls]] | None = None,
    ) -> None:
        """`others`: by name, each with what answers its calls."""
        self._app = app
        self._service = service
        self._submits = submits
        self._estimates = estimates
        self._polls = polls
        self._tasks = tasks
        self._deliveries = deliveries
        self._pictures = pictures
        self._exposition = exposition
        self._dialects = dialects
        self._others = [*(others or {}).values()]
        self._cors = Cors(service.settings.cors_origins, b"GET, HEAD, POST, DELETE")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        dialect = next((d for d in self._dialects if path.startswith(d.prefix + "/")), None)
        other = next((found for found in self._others if found[0].paths.fullmatch(path)), None)
        manners: Manners | None = dialect if other is None else other[0]
        is_picture = path.startswith("/results/")
        # Pictures tell browsers for themselves.
        cors = [] if is_picture else self._cors.headers(scope)
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if cors:
                    message["headers"] = [*message["headers"], *cors]
            await send(message)

        route, began = "other", time.perf_counter()
        try:
            auth.check_host(scope, self._service.settings)
            if not is_picture and await self._cors.answer_preflight(scope, send):
                return
            route, answer = self._destination(scope, dialect) if other is None else (other[0].name, other[1])
            await answer(scope, receive, watch)
        except FluxserveError as error:
            allow = (
                [(b"allow", other[0].methods(path).encode())] if other and isinstance(error, MethodNotAllowed) else []
            )
            await send_error(watch, error, manners, allow)
        except Exception as error:
            logger.exception(
                "A request met a defect of fluxserve",
                extra={"path": "/results/" if is_picture else path},
                exc_info=error,
            )
            if status:
                raise
            await send_error(watch, INTERNAL, manners)
        finally:
            self._service.metrics.asked(route, status, time.perf_counter() - began)

    def _destination(self, scope: Scope, dialect: Dialect | None) -> Destination:
        """Raises UnknownRoute."""
        path: str = scope["path"]
        if b"%2f" in scope["raw_path"].lower():
            # What a proxy in front takes for one segment must not be two here.
            raise UnknownRoute("There is nothing at this path: no path here has an escaped slash.")
        if path.startswith("/results/"):
            return "picture", self._pictures
        if path == PATH:
            return "metrics", lambda scope, _receive, send: self._exposition(scope, send)
        if dialect is None:
            return "about", self._open
        if path == dialect.prefix + "/get_result":
            # How long an answer waits is up to who asks for that.
            return "poll" if b"wait" not in scope["query_string"] else "wait", partial(self._polls, dialect=dialect)
        if path == dialect.prefix + "/estimate":
            return "estimate", partial(self._estimates, dialect=dialect)
        if (spec := self._submits.spec_at(path, dialect)) is not None:
            return "submit", partial(self._submits, dialect=dialect, spec=spec)
        if (target := target_at(path, dialect)) is not None:
            kind = "stream" if path.endswith("/events") else "tasks"
            return kind, partial(self._tasks, dialect=dialect, target=target)
        if (listed := deliveries_at(path, dialect)) is not None:
            tell = partial(self._deliveries, dialect=dialect, target=listed)
            return "webhooks", lambda scope, _receive, send: tell(scope, send)
        return "about", self._guarded

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(_as_get(scope), receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        auth.authenticate(scope, self._service)
        await self._app(_as_get(scope), limited(scope, receive, self._service.settings.max_body), send)


def _as_get(scope: Scope) -> Scope:
    """A HEAD is a GET whose body the server leaves out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
