"""`POST {prefix}/{model}`: a checked body becomes an order, the order a task."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fluxserve import catalogue
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, schemas
from fluxserve.api.bfl import render_submitted
from fluxserve.api.dialect import Dialect
from fluxserve.api.schemas import Checked
from fluxserve.delivery.links import LinkSigner
from fluxserve.errors import MethodNotAllowed
from fluxserve.service.service import Order, Service

IDEMPOTENCY_HEADER = "idempotency-key"
MAX_IDEMPOTENCY_KEY = 255
_encode = msgspec.json.Encoder(order="sorted").encode
Endpoint = Callable[[Request], Awaitable[Response]]


def submit_endpoint(dialect: Dialect, service: Service, signer: LinkSigner) -> Endpoint:
    """The route of every model of one dialect."""

    async def submit(request: Request) -> Response:
        spec = catalogue.find(request.path_params["model"])
        if request.method != "POST":
            raise MethodNotAllowed(f"Submit with POST to {dialect.prefix}/{spec.name}.")
        idempotency_key = _idempotency_key(request)
        origin = auth.origin(request.scope, service.settings)
        checked = schemas.check(spec, await request.body())
        key: ApiKey = request.scope["fluxserve.key"]
        record = await service.submit(
            Order(
                key=key,
                spec=spec,
                values=checked.values,
                ignored=checked.ignored,
                dialect=dialect.name,
                origin=origin,
                idempotency_key=idempotency_key,
                request_hash=_hash(spec.name, checked) if idempotency_key else b"",
            )
        )
        polling_url = f"{origin}{dialect.prefix}/get_result?id={record.id}&t={signer.capability(record.id)}"
        return Response(
            _encode(render_submitted(record, polling_url)),
            media_type="application/json",
            headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
        )

    return submit


def _idempotency_key(request: Request) -> str | None:
    text = request.headers.get(IDEMPOTENCY_HEADER)
    if text is not None and not 1 <= len(text) <= MAX_IDEMPOTENCY_KEY:
        message = f"Idempotency-Key should have 1 to {MAX_IDEMPOTENCY_KEY} characters"
        raise schemas.invalid(("header", IDEMPOTENCY_HEADER), "string_length", message, text)
    return text


def _hash(model: str, checked: Checked) -> bytes:
    """Equal for requests that mean the same, however their JSON is spaced or ordered."""
    return hashlib.sha256(_encode([model, checked.values])).digest()
