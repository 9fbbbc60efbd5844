"""Which web pages may read answers in a browser: those of the listed origins, and no others.

What it does not know: what is being answered; keys, because a page that has none is refused like anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope, Send

from fluxserve.api.responses import Headers


class Cors:
    """The permissions of listed origins; `methods` is what a preflight is told."""

    def __init__(self, origins: Sequence[str], methods: bytes) -> None:
        self._origins = frozenset(origin.rstrip("/").encode() for origin in origins)
        self._methods = methods

    def headers(self, scope: Scope) -> Headers:
        """`Vary` where answers differ by origin; then, for a listed origin, its permission."""
        if not self._origins:
            return []
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
        permission = [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"Retry-After, RateLimit, RateLimit-Policy"),
        ]
        return [(b"vary", b"Origin"), *(permission if origin in self._origins else [])]

    async def answer_preflight(self, scope: Scope, send: Send) -> bool:
        """Answer a listed origin's question whether it may ask; False when this is no such question."""
        permission = self.headers(scope)
        if scope["method"] != "OPTIONS" or not permission[1:]:
            return False
        # Clients send their key along; "*" alone does not cover Authorization.
        headers = [
            *permission,
            (b"access-control-allow-methods", self._methods),
            (b"access-control-allow-headers", b"*, Authorization"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return True
