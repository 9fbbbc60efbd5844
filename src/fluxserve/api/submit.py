"""`POST {prefix}/{model}`, plain ASGI: a checked body becomes an order, the order a task.

The key and the announced size are judged before the body is read, the body's real size while it is.
"""

from __future__ import annotations

import math

from starlette.types import Receive, Scope, Send

from fluxserve import catalogue
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, schemas
from fluxserve.api.bfl import render_submitted
from fluxserve.api.body import Bodies
from fluxserve.api.dialect import Dialect
from fluxserve.api.polls import polling_url
from fluxserve.api.responses import send_error, send_json
from fluxserve.catalogue import ModelSpec
from fluxserve.delivery.links import LinkSigner
from fluxserve.errors import FieldRefused, FluxserveError, IdempotencyConflict, InvalidRequest, MethodNotAllowed
from fluxserve.service.orders import Order
from fluxserve.service.service import Service
from fluxserve.store.base import TaskRecord

IDEMPOTENCY_HEADER = b"idempotency-key"
MAX_IDEMPOTENCY_KEY = 255


class Submits:
    """Answers submits in every dialect."""

    def __init__(self, service: Service, signer: LinkSigner) -> None:
        self._service = service
        self._signer = signer
        #: All that are being read, those of other APIs too.
        self.bodies = Bodies(service.settings.max_body, service.settings.max_bodies)

    def spec_at(self, path: str, dialect: Dialect) -> ModelSpec | None:
        """The model that a path of the dialect names."""
        return catalogue.MODELS.get(path[len(dialect.prefix) + 1 :])

    async def __call__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect, spec: ModelSpec) -> None:
        """One submit."""
        key: ApiKey | None = None
        try:
            key = auth.authenticate(scope, self._service)
            if scope["method"] != "POST":
                raise MethodNotAllowed("That method is not allowed here. Allowed: POST.")
            idempotency_key = idempotency_key_of(scope)
            origin = auth.origin(scope, self._service.settings)
            with self.bodies.open() as body:
                checked = schemas.check(spec, await body.read(scope, receive))
                record = await place(
                    self._service,
                    Order(
                        key=key,
                        spec=spec,
                        values=checked.values,
                        pictures=checked.pictures,
                        urls=checked.urls,
                        ignored=checked.ignored,
                        dialect=dialect.name,
                        origin=origin,
                        idempotency_key=idempotency_key,
                    ),
                )
        except FluxserveError as error:
            headers = [(b"allow", b"POST")] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, dialect, [*headers, *rate_headers(self._service, key)])
            return
        answer = render_submitted(record, polling_url(self._signer, origin, dialect, record.id))
        await send_json(send, 200, answer, rate_headers(self._service, key))


def rate_headers(service: Service, key: ApiKey | None) -> list[tuple[bytes, bytes]]:
    """How far the key is from its limit by the minute, as draft-ietf-httpapi-ratelimit-headers-10 writes it."""
    rate = None if key is None else service.keyring.rate(key)
    if rate is None:
        return []
    return [
        (b"ratelimit-policy", b'"submits";q=%d;w=60' % rate.limit),
        (b"ratelimit", b'"submits";r=%d;t=%d' % (rate.left, math.ceil(rate.full_in))),
    ]


async def place(service: Service, order: Order) -> TaskRecord:
    """The order's task. What is wrong with a field or a header is told as InvalidRequest."""
    try:
        return await service.submit(order)
    except IdempotencyConflict as error:
        # Told like every other 422: callers read its `detail` as a list.
        raise _invalid_header("idempotency_conflict", error.message, order.idempotency_key) from None
    except FieldRefused as error:
        raise schemas.invalid(("body", error.field), error.kind, error.message, error.value) from None


def idempotency_key_of(scope: Scope) -> str | None:
    """The request's Idempotency-Key, if it has one; raises InvalidRequest."""
    text = auth.header(scope, IDEMPOTENCY_HEADER)
    if text is not None and not 1 <= len(text) <= MAX_IDEMPOTENCY_KEY:
        message = f"Idempotency-Key should have 1 to {MAX_IDEMPOTENCY_KEY} characters"
        raise _invalid_header("string_length", message, text)
    return text


def _invalid_header(kind: str, message: str, text: str | None) -> InvalidRequest:
    return schemas.invalid(("header", IDEMPOTENCY_HEADER.decode()), kind, message, text)
