"""Webhooks in every dialect: how one looks on the wire, and what its account may see of it and ask for, plain ASGI.

    GET   {prefix}/webhooks/deliveries              newest first, in pages; `status=dead`: those that were given up
    POST  {prefix}/webhooks/deliveries/{id}/replay  deliver a task's webhook anew

The body is what a poll answers, with a link that was signed for this attempt, and `task_id` and `timestamp` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from starlette.types import Scope, Send

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, query
from fluxserve.api.dialect import Body, Dialect
from fluxserve.api.other_apis import OtherApi
from fluxserve.api.polls import ID_LIMIT
from fluxserve.api.responses import send_error, send_json
from fluxserve.api.schemas import invalid
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.outbound import target_of
from fluxserve.delivery.webhooks import headers, webhook_id
from fluxserve.errors import FluxserveError, MethodNotAllowed, NotFound, UrlRefused
from fluxserve.service.service import Service
from fluxserve.service.views import View
from fluxserve.store.base import TaskRecord
from fluxserve.store.deliveries import Delivery, DeliveryPageRequest, DeliveryState
from fluxserve.worker import protocol as p

#: What a receiver says is read up to here, and not kept.
ANSWER_LIMIT = 4096
ATTEMPT_S = 30.0
_PATH = re.compile(r"/webhooks/deliveries(?:/(?P<id>[^/]+)/replay)?")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Composer:
    """Makes the call that tells a task's webhook."""

    def __init__(
        self,
        service: Service,
        signer: LinkSigner,
        dialects: Sequence[Dialect | OtherApi],
        now: Callable[[], float],
    ) -> None:
        self._service = service
        self._signer = signer
        self._renders = {dialect.name: dialect.render_result for dialect in dialects if dialect.render_result}
        self._now = now

    async def compose(self, task_id: str) -> p.Errand | None:
        """The next attempt as it is to be sent now; None where the task is gone. Raises Unavailable."""
        found = await self._service.webhooks.read(task_id)
        if found is None:
            return None
        record, secret = found
        url, body, now = record.webhook_url or "", self._body(record), self._now()
        shows_secret = self._service.settings.webhook_secret_header and _is_secure(url)
        return p.Errand(
            number=0, method="POST", url=url, limit=ANSWER_LIMIT, timeout=ATTEMPT_S, body=body, secure=True,
            headers=headers(body, task_id=task_id, secret=secret, now=now, shows_secret=shows_secret),
        )  # fmt: skip

    def _body(self, record: TaskRecord) -> bytes:
        view = View(
            id=record.id,
            account_id=record.account_id,
            state=record.state,
            warnings=record.warnings,
            created_at=record.created_at,
            record=record,
        )
        sample = None
        if record.object_name is not None:
            path = self._signer.sign_picture(record.object_name, int(self._now()) + self._service.settings.link_ttl)
            sample = record.origin + path
        render = self._renders[record.dialect]
        ended_at = datetime.fromtimestamp(record.finished_at or 0.0, UTC).isoformat(timespec="milliseconds")
        told = _decode(render(view, sample, None, None, False))
        return _encode({**told, "task_id": record.id, "timestamp": ended_at.replace("+00:00", "Z")})


def _is_secure(url: str) -> bool:
    try:
        return target_of(url).scheme == "https"
    except UrlRefused:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTarget:
    """What a path leads to: the list where `task_id` is None, else a replay."""

    task_id: str | None

    @property
    def methods(self) -> tuple[str, ...]:
        """Those it takes."""
        return ("GET", "HEAD") if self.task_id is None else ("POST",)

    @property
    def allow(self) -> str:
        """The methods as a header and a sentence name them."""
        return ", ".join(self.methods)


def deliveries_at(path: str, dialect: Dialect) -> DeliveryTarget | None:
    """What a path of the dialect leads to here; None: nothing."""
    found = _PATH.fullmatch(path, len(dialect.prefix))
    return None if found is None else DeliveryTarget(task_id=found["id"] and found["id"][:ID_LIMIT])


class Deliveries:
    """Lists and replays, for keys of the account."""

    def __init__(self, service: Service, signer: LinkSigner) -> None:
        self._service = service
        self._signer = signer

    async def __call__(self, scope: Scope, send: Send, dialect: Dialect, target: DeliveryTarget) -> None:
        """One list, or one replay."""
        try:
            key = auth.authenticate(scope, self._service)
            if scope["method"] not in target.methods:
                raise MethodNotAllowed(f"That method is not allowed here. Allowed: {target.allow}.")
            if target.task_id is None:
                body = await self._list(scope["query_string"], key)
            else:
                body = await self._replay(target.task_id, key)
        except FluxserveError as error:
            added = [(b"allow", target.allow.encode())] if isinstance(error, MethodNotAllowed) else []
            await send_error(send, error, dialect, added)
            return
        await send_json(send, 200, body)

    async def _replay(self, task_id: str, key: ApiKey) -> Body:
        delivery = await self._service.webhooks.replay(task_id, key.account_id)
        if delivery is None:
            raise NotFound("No ended task of this account with this id has a webhook.")
        return _shown(delivery)

    async def _list(self, query_string: bytes, key: ApiKey) -> Body:
        fields = query.parse(query_string)
        cursor = query.first(fields, "cursor") or None
        before = None if cursor is None else self._signer.open_cursor(_owner(key), cursor)
        if before is None and cursor is not None:
            message = "Input should be the next_cursor of an earlier answer to this account"
            raise invalid(("query", "cursor"), "cursor", message, cursor)
        page = await self._service.webhooks.page(
            DeliveryPageRequest(
                account_id=key.account_id,
                states=_states(query.first(fields, "status") or None),
                limit=query.limit(fields),
                before=before,
            )
        )
        end = None if page.end is None else self._signer.cursor(_owner(key), page.end)
        return {"deliveries": [_shown(delivery) for delivery in page.deliveries], "next_cursor": end}


def _owner(key: ApiKey) -> str:
    """A cursor of this list is none of the list of tasks."""
    return f"{key.account_id} deliveries"


def _states(word: str | None) -> tuple[DeliveryState, ...]:
    if word is None:
        return tuple(DeliveryState)
    try:
        return (DeliveryState(word),)
    except ValueError:
        expected = " or ".join(repr(str(state)) for state in DeliveryState)
        raise invalid(("query", "status"), "literal_error", f"Input should be {expected}", word) from None


def _shown(delivery: Delivery) -> Body:
    return {
        "task_id": delivery.task_id,
        "webhook_id": webhook_id(delivery.task_id),
        "webhook_url": delivery.url,
        "status": delivery.state,
        "attempts": delivery.attempts,
        "created_at": round(delivery.created_at, 3),
        "next_attempt_at": _rounded(delivery.due_at),
        "last_attempt_at": _rounded(delivery.tried_at),
        "last_status": delivery.status,
        "last_problem": delivery.problem,
        "ended_at": _rounded(delivery.ended_at),
    }


def _rounded(at: float | None) -> float | None:
    return None if at is None else round(at, 3)
