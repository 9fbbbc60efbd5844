"""Request bodies, read within two limits that count what really arrives: of each body, and of all of them together."""

from __future__ import annotations

from types import TracebackType

from starlette.types import Message, Receive, Scope

from fluxserve.api import auth
from fluxserve.errors import BodiesFull, BodyCutOff, BodyTooLarge

#: Bodies up to this size are never counted together, so that large ones cannot keep ordinary requests out.
FREE = 64 * 1024


class Bodies:
    """The bodies of one server: each within `limit` bytes, those over FREE within `budget` together.

    A body counts by what has arrived of it and until its request is answered; an announced length takes no room.
    """

    def __init__(self, limit: int, budget: int) -> None:
        self.limit = limit
        #: A body within its own limit always fits where there is no other.
        self.budget = max(limit, budget)
        self.used = 0

    def open(self) -> Body:
        """A place for one body."""
        return Body(self)


class Body:
    """One body, and what it takes of the budget until the `with` block ends."""

    __slots__ = ("_bodies", "_counted")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._counted = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bodies.used -= self._counted

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises BodyTooLarge, BodiesFull, and BodyCutOff where the rest never came.

        RFC 9112, section 8: what is incomplete is never acted upon, even where it reads like a whole request.
        """
        receive = limited(scope, receive, self._bodies.limit)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BodyCutOff("The request ended before its body was whole.")
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > FREE:
                self._count(size)
            if not message.get("more_body"):
                return b"".join(parts)

    def _count(self, size: int) -> None:
        used = self._bodies.used + size - self._counted
        if used > self._bodies.budget:
            raise BodiesFull("Too many large request bodies are being read at once. Try again in a moment.")
        self._bodies.used = used
        self._counted = size


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


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limit} bytes.")
