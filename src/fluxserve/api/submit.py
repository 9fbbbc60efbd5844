"""`POST {prefix}/{model}`: a checked body becomes an order, the order a task."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, schemas
from fluxserve.api.bfl import render_submitted
from fluxserve.api.dialect import Dialect
from fluxserve.api.schemas import Checked
from fluxserve.catalogue import ModelSpec
from fluxserve.delivery.links import LinkSigner
from fluxserve.errors import IdempotencyConflict, InvalidRequest
from fluxserve.service.service import Order, Service

IDEMPOTENCY_HEADER = "idempotency-key"
MAX_IDEMPOTENCY_KEY = 255
_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="sorted").encode
Endpoint = Callable[[Request], Awaitable[Response]]


def submit_endpoint(dialect: Dialect, spec: ModelSpec, service: Service, signer: LinkSigner) -> Endpoint:
    """The route of one model in one dialect."""

    async def submit(request: Request) -> Response:
        idempotency_key = _idempotency_key(request)
        origin = auth.origin(request.scope, service.settings)
        checked = schemas.check(spec, await request.body())
        key: ApiKey = request.scope["fluxserve.key"]
        order = Order(
            key=key,
            spec=spec,
            values=checked.values,
            ignored=checked.ignored,
            dialect=dialect.name,
            origin=origin,
            idempotency_key=idempotency_key,
            request_hash=_hash(spec.name, checked) if idempotency_key else b"",
        )
        try:
            record = await service.submit(order)
        except IdempotencyConflict as error:
            # Told like every other 422: callers read its `detail` as a list.
            raise _invalid_header("idempotency_conflict", error.message, idempotency_key) from None
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
        raise _invalid_header("string_length", message, text)
    return text


def _invalid_header(kind: str, message: str, text: str | None) -> InvalidRequest:
    return schemas.invalid(("header", IDEMPOTENCY_HEADER), kind, message, text)


def _hash(model: str, checked: Checked) -> bytes:
    """Equal for requests that mean the same, however their JSON is spaced or ordered."""
    return hashlib.sha256(_canonical([model, checked.values])).digest()
