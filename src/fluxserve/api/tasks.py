"""An account's own tasks, plain ASGI: `GET {prefix}/tasks` lists them, and any of them can be followed and cancelled.

    GET     {prefix}/tasks              newest first, in pages
    GET     {prefix}/tasks/{id}/events  its news as they come (see `events`)
    POST    {prefix}/tasks/{id}/cancel  end it, whatever it is doing
    DELETE  {prefix}/tasks/{id}         the same

Lists and cancellations need a key of the account: whoever has a polling_url may look at its task, and no more. The
published APIs have no such calls, so these look the same in every dialect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, query
from fluxserve.api.bfl import PROCESSING, STATUSES, render_tasks, states_shown_as
from fluxserve.api.dialect import Body, Dialect
from fluxserve.api.events import Events
from fluxserve.api.polls import ID_LIMIT, Polls, polling_url
from fluxserve.api.responses import send_error, send_json
from fluxserve.api.schemas import invalid
from fluxserve.delivery.links import LinkSigner
from fluxserve.errors import FluxserveError, MethodNotAllowed
from fluxserve.service.service import Service
from fluxserve.store.base import PageRequest
from fluxserve.tasks.task import State

#: Status and body.
Answer = tuple[int, bytes | Body]
#: The status words that a list can be filtered by.
WORDS = tuple(sorted({*STATUSES.values(), PROCESSING}))
_PATH = re.compile(r"/tasks(?:/(?P<id>[^/]+)(?:/(?P<verb>cancel|events))?)?")
_METHODS: dict[str | None, tuple[str, ...]] = {"cancel": ("POST",), "events": ("GET", "HEAD"), None: ("DELETE",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path leads to: the list where `task_id` is None, else one task. `methods` are those it takes."""

    task_id: str | None
    methods: tuple[str, ...]
    streams: bool = False

    @property
    def allow(self) -> str:
        """The methods as a header and a sentence name them."""
        return ", ".join(self.methods)


def target_at(path: str, dialect: Dialect) -> Target | None:
    """What a path of the dialect leads to here; None: nothing."""
    found = _PATH.fullmatch(path, len(dialect.prefix))
    if found is None:
        return None
    if found["id"] is None:
        return Target(task_id=None, methods=("GET", "HEAD"))
    return Target(task_id=found["id"][:ID_LIMIT], methods=_METHODS[found["verb"]], streams=found["verb"] == "events")


class Tasks:
    """Lists, follows and cancels in every dialect."""

    def __init__(self, service: Service, signer: LinkSigner, polls: Polls, events: Events) -> None:
        self._service = service
        self._signer = signer
        self._polls = polls
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect, target: Target) -> None:
        """One list, one stream, or one cancellation."""
        try:
            if target.task_id is not None and target.streams and scope["method"] in target.methods:
                await self._events(scope, receive, send, dialect, target.task_id)
                return
            key = auth.authenticate(scope, self._service)
            if scope["method"] not in target.methods:
                raise MethodNotAllowed(f"That method is not allowed here. Allowed: {target.allow}.")
            if target.task_id is None:
                answer: Answer = 200, await self._list(scope, key, dialect)
            else:
                answer = await self._cancel(scope, key, dialect, target.task_id)
        except FluxserveError as error:
            headers = [(b"allow", target.allow.encode())] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, dialect, headers)
            return
        await send_json(send, *answer)

    async def _cancel(self, scope: Scope, key: ApiKey, dialect: Dialect, task_id: str) -> Answer:
        """The task as a poll shows it; another account's looks like an unknown one, as it does to polls."""
        view = await self._service.cancel(task_id, key.account_id)
        if view is None:
            return dialect.unknown_task_status, dialect.render_unknown(task_id)
        return 200, self._polls.render(scope, view, dialect)

    async def _list(self, scope: Scope, key: ApiKey, dialect: Dialect) -> bytes:
        origin = auth.origin(scope, self._service.settings)
        processing_status = self._service.settings.processing_status
        listing = await self._service.list_tasks(self._request(scope["query_string"], key))
        return render_tasks(
            listing.tasks,
            lambda task_id: polling_url(self._signer, origin, dialect, task_id),
            None if listing.end is None else self._signer.cursor(key.account_id, listing.end),
            processing_status,
        )

    def _request(self, query_string: bytes, key: ApiKey) -> PageRequest:
        fields = query.parse(query_string)
        return PageRequest(
            account_id=key.account_id,
            states=self._states(query.first(fields, "status") or None),
            limit=query.limit(fields),
            before=self._before(query.first(fields, "cursor") or None, key.account_id),
        )

    def _states(self, word: str | None) -> tuple[State, ...]:
        if word is None:
            return tuple(State)
        if word not in WORDS:
            expected = " or ".join(repr(known) for known in WORDS)
            raise invalid(("query", "status"), "literal_error", f"Input should be {expected}", word)
        return states_shown_as(word, self._service.settings.processing_status)

    def _before(self, cursor: str | None, account_id: str) -> int | None:
        before = None if cursor is None else self._signer.open_cursor(account_id, cursor)
        if before is None and cursor is not None:
            message = "Input should be the next_cursor of an earlier answer to this account"
            raise invalid(("query", "cursor"), "cursor", message, cursor)
        return before
