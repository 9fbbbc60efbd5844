"""Request bodies, read within a limit that counts what really arrives."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

from fluxserve.api import auth
from fluxserve.errors import BodyTooLarge


def limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """`receive`, raising BodyTooLarge as soon as the body is over `limit` bytes; at once where it says so itself."""
    announced = auth.header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return counted


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body; what arrived of it where the caller has gone. Raises BodyTooLarge."""
    counted = limited(scope, receive, limit)
    message = await counted()
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        return body
    parts = [body]
    while message.get("more_body"):
        message = await counted()
        parts.append(message.get("body", b""))
    return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limit} bytes.")
