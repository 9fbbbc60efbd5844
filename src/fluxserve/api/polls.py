"""The hot path: `GET {prefix}/get_result`, plain ASGI.

An unfinished or freshly finished task is answered from memory; with `wait` only at its end, or after so many seconds,
and with `preview` beside its newest preview. Whoever holds the task's capability (`t` in the polling_url) or its
account's key may look; a bare id opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from fluxserve.api import auth, query
from fluxserve.api.dialect import Dialect
from fluxserve.api.presence import listening
from fluxserve.api.responses import send_error, send_json
from fluxserve.api.schemas import invalid
from fluxserve.delivery.links import LinkSigner
from fluxserve.errors import FluxserveError, MethodNotAllowed, NotAuthenticated
from fluxserve.service.service import Service
from fluxserve.service.views import View
from fluxserve.tasks.task import State

#: Longest id that is echoed and looked up.
ID_LIMIT = 128


class Polls:
    """Answers polls in every dialect."""

    def __init__(self, service: Service, signer: LinkSigner, now: Callable[[], float]) -> None:
        self._service = service
        self._signer = signer
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        """One poll."""
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodNotAllowed("Poll with GET.")
            fields = query.parse(scope["query_string"])
            task_id = _task_id(fields)
            wait = query.wait(fields) if "wait" in fields else 0.0
            with_preview = "preview" in fields and query.preview(fields)
            view = await self.visible(scope, task_id, fields.get("t", ()))
            if view is None:
                await send_json(send, dialect.unknown_task_status, dialect.render_unknown(task_id))
                return
            if with_preview:
                self._service.want_previews(view)
            if wait and view.state.is_active:
                view = await self._until_its_end(view, wait, receive)
            body = self.render(scope, view, dialect, with_preview=with_preview)
        except FluxserveError as error:
            headers = [(b"allow", b"GET, HEAD")] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, dialect, headers)
            return
        await send_json(send, 200, body)

    def render(self, scope: Scope, view: View, dialect: Dialect, *, with_preview: bool = False) -> bytes:
        """The task as a poll shows it, with a fresh link to its picture."""
        sample = self._sample(scope, view) if view.state is State.READY else None
        preview = self._service.preview(view) if with_preview else None
        outlook = self._service.outlook(view) if view.state.is_active else None
        return dialect.render_result(view, sample, preview, outlook, self._service.settings.processing_status)

    async def _until_its_end(self, view: View, seconds: float, receive: Receive) -> View:
        """The task when it has ended, or after so many seconds, or when nobody waits for it any more."""
        with self._service.watches.watching(view.id, end_only=True) as watch, listening(receive, watch.wake):
            await watch.news(seconds)
        return await self._service.look(view.id) or view

    async def visible(self, scope: Scope, task_id: str, capabilities: Sequence[str]) -> View | None:
        """The task, if the caller may see it; raises NotAuthenticated."""
        if any(self._signer.is_capability(task_id, capability) for capability in capabilities):
            return await self._service.look(task_id)
        try:
            key = auth.authenticate(scope, self._service)
        except NotAuthenticated:
            if capabilities:
                raise NotAuthenticated("Not authenticated - the polling_url is not complete or not ours") from None
            raise
        return await self._service.look_own(task_id, key.account_id)

    def _sample(self, scope: Scope, view: View) -> str | None:
        record = view.record
        if record is None or record.object_name is None:
            return None
        path = self._signer.sign_picture(record.object_name, int(self._now()) + self._service.settings.link_ttl)
        return auth.origin(scope, self._service.settings) + path


def polling_url(signer: LinkSigner, origin: str, dialect: Dialect, task_id: str) -> str:
    """Where the task can be polled without a key."""
    return f"{origin}{dialect.prefix}/get_result?id={task_id}&t={signer.capability(task_id)}"


def _task_id(fields: query.Fields) -> str:
    ids = fields.get("id")
    if not ids:
        raise invalid(("query", "id"), "missing", "Field required", None)
    return ids[0][:ID_LIMIT]
