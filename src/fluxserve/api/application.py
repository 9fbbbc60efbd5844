"""The HTTP application of one server, put together from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fluxserve import catalogue
from fluxserve.api import DIALECTS, OTHER_APIS, about
from fluxserve.api import credits as left
from fluxserve.api.about import Readiness
from fluxserve.api.dialect import Dialect
from fluxserve.api.estimates import Estimates
from fluxserve.api.events import Events
from fluxserve.api.gate import Gate
from fluxserve.api.images import Pictures
from fluxserve.api.metrics import Exposition
from fluxserve.api.openapi import document
from fluxserve.api.other_apis import Parts
from fluxserve.api.polls import Polls
from fluxserve.api.responses import error_response
from fluxserve.api.submit import Submits
from fluxserve.api.tasks import Tasks
from fluxserve.api.webhooks import Deliveries
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.storage import Storage
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.errors import FluxserveError, MethodNotAllowed, ModelNotDrawn, UnknownModel, UnknownRoute
from fluxserve.service.service import Service


def build(
    *,
    service: Service,
    signer: LinkSigner,
    storage: Storage,
    checkpoints: Mapping[str, Checkpoint],
    missing: str,
    readiness: Callable[[], Readiness],
    now: Callable[[], float],
) -> Gate:
    """The whole ASGI application; `missing` says what to install where nothing here can draw."""
    app = _framework()
    app.include_router(
        about.router(
            checkpoints, missing, lambda: service.signing.anchors, readiness, service.forecast.is_served
        )
    )  # fmt: skip
    app.include_router(left.router(service, DIALECTS))
    schema = document(app, DIALECTS, OTHER_APIS)
    app.openapi = lambda: dict(schema)  # type: ignore[method-assign]
    polls = Polls(service, signer, now)
    submits, events = Submits(service, signer), Events(service, polls)
    parts = Parts(
        service=service, signer=signer, storage=storage, bodies=submits.bodies, streams=events.streams, now=now
    )
    return Gate(
        app,
        service=service,
        submits=submits,
        estimates=Estimates(service),
        polls=polls,
        tasks=Tasks(service, signer, polls, events),
        deliveries=Deliveries(service, signer),
        pictures=Pictures(signer, storage, now, service.settings.cors_origins),
        exposition=Exposition(service, readiness),
        dialects=DIALECTS,
        others={api.name: (api, api.open(parts)) for api in OTHER_APIS},
    )


def _framework() -> FastAPI:
    """The framework for everything that is not hot: routing, docs with their assets from the package."""
    app: FastAPI = FastAPIOffline(
        docs_url="/docs", redoc_url=None, static_url="/docs-assets", title="fluxserve", redirect_slashes=False
    )

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, FluxserveError)  # noqa: S101 - for the type checker; registered for this class
        return error_response(error, _dialect_of(request))

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - for the type checker; registered for this class
        dialect = _dialect_of(request)
        if error.status_code == 405:
            allow = _allow((error.headers or {}).get("Allow", ""))
            message = f"That method is not allowed here. Allowed: {allow}."
            return error_response(MethodNotAllowed(message), dialect, {"allow": allow})
        return error_response(_not_found(request, dialect), dialect)

    app.add_exception_handler(FluxserveError, ours)
    app.add_exception_handler(HTTPException, framework)
    return app


def _not_found(request: Request, dialect: Dialect | None) -> FluxserveError:
    """Whoever submits where no route is has misspelt a model, or asks for one that is not drawn."""
    if dialect is not None and request.method == "POST":
        try:
            catalogue.find(request.url.path.removeprefix(dialect.prefix + "/"))
        except (UnknownModel, ModelNotDrawn) as error:
            return error
    return UnknownRoute("There is nothing at this path. POST /v1/flux-dev draws; /docs lists everything.")


def _allow(methods: str) -> str:
    """The methods in order; the gate answers HEAD wherever the framework answers GET."""
    names = set(methods.split(", "))
    return ", ".join(sorted(names | {"HEAD"} if "GET" in names else names))


def _dialect_of(request: Request) -> Dialect | None:
    return next((d for d in DIALECTS if request.url.path.startswith(d.prefix + "/")), None)
