"""From our errors to HTTP: one row per class, one body for every dialect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
from starlette.responses import Response
from starlette.types import Send

from fluxserve import errors as e
from fluxserve.api.dialect import Body, Manners
from fluxserve.errors import FluxserveError, JsonValue

#: HTTP status by class; the nearest base class counts.
STATUSES: dict[type[FluxserveError], int] = {
    e.MalformedJson: 400,
    e.MalformedForm: 400,
    e.BodyCutOff: 400,
    e.ModelNotDrawn: 400,
    e.UnknownFinetune: 400,
    e.NotAuthenticated: 401,
    e.InsufficientCredits: 402,
    e.LinkRefused: 403,
    e.NotFound: 404,
    e.MethodNotAllowed: 405,
    e.FilesNotTaken: 501,
    e.BodyTooLarge: 413,
    e.MisdirectedHost: 421,
    e.InvalidRequest: 422,
    e.FieldRefused: 422,
    e.IdempotencyConflict: 422,
    e.TooManyActiveTasks: 429,
    e.TooManyRequests: 429,
    e.TooManyStreams: 429,
    e.RequestError: 400,
    e.HeldTooLong: 504,
    e.Unavailable: 503,
    e.FluxserveError: 500,
}
#: Seconds a caller should wait before the same call may succeed.
RETRY_AFTER: dict[type[FluxserveError], int] = {
    e.TooManyActiveTasks: 2,
    e.TooManyStreams: 2,
    e.DiskFull: 30,
    e.QueueFull: 30,
    e.BodiesFull: 2,
    e.DecodersBusy: 2,
    e.InputsFull: 30,
    e.StreamsFull: 2,
    e.ShuttingDown: 5,
    e.Unavailable: 1,
}
INTERNAL = FluxserveError("The server made a mistake. It was logged; try again, and report it if it stays.")
_encode = msgspec.json.Encoder().encode
Headers = Sequence[tuple[bytes, bytes]]


def status_of(error: FluxserveError, dialect: Manners | None) -> int:
    """The HTTP status of an error; a dialect's own row goes first."""
    own = {} if dialect is None else dialect.statuses
    return next((own.get(cls) or STATUSES[cls]) for cls in type(error).__mro__ if cls in own or cls in STATUSES)


def error_body(error: FluxserveError, dialect: Manners | None) -> Body:
    """`detail`, `message` and `status_code`, and what the dialect adds. `detail` of a 422 is pydantic's list."""
    status = status_of(error, dialect)
    detail: JsonValue = error.message
    if isinstance(error, e.InvalidRequest):
        detail = error.items
    elif status == 500:
        error = INTERNAL
        detail = error.message
    body: Body = {"detail": detail, "message": error.message, "status_code": status}
    return dialect.render_error(error, body) if dialect is not None else body


def error_headers(error: FluxserveError) -> list[tuple[bytes, bytes]]:
    """Retry-After where waiting helps, and how to authenticate."""
    if isinstance(error, e.NotAuthenticated):
        return [(b"www-authenticate", b"Bearer")]
    if isinstance(error, e.TooManyRequests):
        return [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s)))]
    seconds = next((RETRY_AFTER[cls] for cls in type(error).__mro__ if cls in RETRY_AFTER), None)
    return [] if seconds is None else [(b"retry-after", b"%d" % seconds)]


def error_response(
    error: FluxserveError, dialect: Manners | None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a request that failed inside the framework."""
    ours = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(
        _encode(error_body(error, dialect)),
        status_of(error, dialect),
        {"cache-control": "no-store", "x-content-type-options": "nosniff", **ours, **(headers or {})},
        "application/json",
    )


async def send_json(send: Send, status: int, body: Mapping[str, JsonValue] | bytes, headers: Headers = ()) -> None:
    """One JSON answer that no cache keeps."""
    data = body if isinstance(body, bytes) else _encode(body)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(data)),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": data})


async def send_bytes(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """One answer that is no JSON; `headers` name its type."""
    length = (b"content-length", b"%d" % len(body))
    nosniff = (b"x-content-type-options", b"nosniff")
    await send({"type": "http.response.start", "status": status, "headers": [length, nosniff, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: FluxserveError, dialect: Manners | None, headers: Headers = ()) -> None:
    """The answer to a request that failed."""
    await send_json(send, status_of(error, dialect), error_body(error, dialect), (*error_headers(error), *headers))
