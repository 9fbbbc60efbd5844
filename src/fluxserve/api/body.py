"""Request bodies, read within a limit that counts what really arrives."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope

from fluxserve.api import auth
from fluxserve.errors import BodyCutOff, BodyTooLarge


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
    """The whole body. Raises BodyTooLarge, and BodyCutOff where the rest never came.

    RFC 9112, section 8: what is incomplete is never acted upon, even where it reads like a whole request.
    """
    counted = limited(scope, receive, limit)
    parts: list[bytes] = []
    while True:
        message = await counted()
        if message["type"] == "http.disconnect":
            raise BodyCutOff("The request ended before its body was whole.")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limit} bytes.")
