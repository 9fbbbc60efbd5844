"""`GET /results/{token}/sample.{suffix}`: a picture for whoever holds its link, plain ASGI.

No key is needed and none is looked at. A browser may show a picture and nothing more: it is never sniffed, runs
nothing, and other origins read it only when the settings list them.
What it does not know: tasks and accounts; the link says all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from fluxserve.api.cors import Cors
from fluxserve.api.responses import send_error
from fluxserve.delivery.links import LinkSigner, PictureLink
from fluxserve.delivery.storage import Picture, Storage
from fluxserve.errors import FluxserveError, MethodNotAllowed, PictureOutOfReach, UnknownRoute

logger = logging.getLogger(__name__)
#: Most bytes of a picture that one caller makes the server hold; smaller pictures are sent at once.
PART = 256 * 1024
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
        if await self._cors.answer_preflight(scope, send):
            return
        cors = self._cors.headers(scope)
        now = self._now()
        try:
            name, link = self._link(scope, now)
            picture, part = await asyncio.to_thread(self._open, link.object_name, scope["method"] == "GET")
        except FluxserveError as error:
            allow = [(b"allow", _ALLOW)] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, None, [*cors, *allow])
            return
        with picture:
            headers = [
                (b"content-type", b"image/" + link.object_name.rpartition(".")[2].encode()),
                (b"content-length", b"%d" % picture.size),
                (b"content-disposition", b'inline; filename="%b"' % name.encode()),
                (b"cache-control", b"private, max-age=%d" % (link.expires_at - now)),
                *_SAFE,
                *cors,
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            left = picture.size - len(part) if scope["method"] == "GET" else 0
            await send({"type": "http.response.body", "body": part, "more_body": left > 0})
            if left > 0:
                await _send_rest(receive, send, picture, left)

    def _link(self, scope: Scope, now: float) -> tuple[str, PictureLink]:
        """The name a picture is saved under, and the link; raises MethodNotAllowed, UnknownRoute, LinkRefused."""
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Pictures are fetched with GET.")
        parts = scope["path"].split("/")
        if len(parts) != 4:
            raise UnknownRoute("There is nothing at this path. Use a picture's link exactly as the task gave it.")
        _, _, token, name = parts
        return name, self._signer.open_picture(token, name, now)

    def _open(self, object_name: str, is_wanted: bool) -> tuple[Picture, bytes]:
        """The picture and its first part, in one visit to a thread; raises PictureGone and PictureOutOfReach."""
        try:
            picture = self._storage.open(object_name)
            with contextlib.ExitStack() as stack:
                stack.enter_context(picture)
                part = picture.read(PART) if is_wanted else b""
                stack.pop_all()  # whoever sends the rest closes it
        except OSError as error:
            logger.warning("A picture cannot be read", extra={"action": "out_of_reach", "error": error.strerror})
            raise PictureOutOfReach("The picture cannot be read for now. Try again in a moment.") from None
        return picture, part


async def _send_rest(receive: Receive, send: Send, picture: Picture, left: int) -> None:
    """The last `left` bytes, part by part as the caller takes them, for as long as there is a caller."""
    hung_up = asyncio.ensure_future(_hung_up(receive))
    try:
        while left > 0:
            # Waits until the last part has left: of a caller who does not read, one part is held and not two.
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            if hung_up.done():
                return
            part = await asyncio.to_thread(picture.read, PART)
            if not part:
                raise OSError("A picture became shorter while it was sent.")
            left -= len(part)
            await send({"type": "http.response.body", "body": part, "more_body": left > 0})
    finally:
        hung_up.cancel()


async def _hung_up(receive: Receive) -> None:
    """Returns when the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
