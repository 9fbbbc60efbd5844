"""`GET /results/{token}/sample.{suffix}`: a picture for whoever holds its link, plain ASGI.

No key is needed and none is looked at. A browser may show a picture and nothing more: it is never sniffed, runs
nothing, and other origins read it only when the settings list them.
What it does not know: tasks and accounts; the link says all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from fluxserve.api.cors import Cors
from fluxserve.api.responses import Headers, send_error
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.storage import Storage
from fluxserve.errors import FluxserveError, MethodNotAllowed, UnknownRoute

_ALLOW = b"GET, HEAD"
_SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'"),
    (b"cross-origin-resource-policy", b"same-site"),
]


class Pictures:
    """Serves pictures by their links."""

    def __init__(
        self, signer: LinkSigner, storage: Storage, now: Callable[[], float], cors_origins: Sequence[str]
    ) -> None:
        self._signer = signer
        self._storage = storage
        self._now = now
        self._cors = Cors(cors_origins, _ALLOW)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One download, or a browser's question whether it may."""
        del receive
        if await self._cors.answer_preflight(scope, send):
            return
        cors = self._cors.headers(scope)
        try:
            headers, picture = await self._picture(scope)
        except FluxserveError as error:
            allow = [(b"allow", _ALLOW)] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, None, [*cors, *allow])
            return
        await _send(send, 200, [*headers, *cors], picture if scope["method"] == "GET" else b"")

    async def _picture(self, scope: Scope) -> tuple[Headers, bytes]:
        """Headers and bytes; raises MethodNotAllowed, UnknownRoute, LinkRefused, PictureGone."""
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Pictures are fetched with GET.")
        parts = scope["path"].split("/")
        if len(parts) != 4:
            raise UnknownRoute("There is nothing at this path. Use a picture's link exactly as the task gave it.")
        _, _, token, name = parts
        now = self._now()
        link = self._signer.open_picture(token, name, now)
        picture = await asyncio.to_thread(self._storage.get, link.object_name)
        headers = [
            (b"content-type", b"image/" + link.object_name.rpartition(".")[2].encode()),
            (b"content-length", b"%d" % len(picture)),
            (b"content-disposition", b'inline; filename="%b"' % name.encode()),
            (b"cache-control", b"private, max-age=%d" % (link.expires_at - now)),
            *_SAFE,
        ]
        return headers, picture


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
