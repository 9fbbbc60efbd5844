"""OpenAI's images API: `POST /v1/images/generations` (JSON) and `/v1/images/edits` (a form), Bearer.

A request is held until its pictures are drawn: `n` of them are `n` tasks. Nothing was acknowledged before that, so who
hangs up is taken at their word: the tasks are cancelled and refunded. Only a request with an Idempotency-Key is drawn
on, for that says that its caller may come again. What fails is left out of an answer that has other pictures.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from fluxserve import catalogue
from fluxserve import errors as e
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, schemas
from fluxserve.api.dialect import Body
from fluxserve.api.events import HEARTBEAT, begin_events, end_events, send_events
from fluxserve.api.holding import CallerGone, News, give_up, numbered, until_ended
from fluxserve.api.openai_fields import (
    EDITS,
    GENERATIONS,
    LINKING,
    ImagesRequest,
    Pictures,
    as_asked,
    document,
    first_of,
    quality_of,
    read_form,
    values_of,
)
from fluxserve.api.other_apis import OtherApi, Parts
from fluxserve.api.responses import send_json
from fluxserve.api.submit import idempotency_key_of, place, rate_headers
from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.params import MASK
from fluxserve.errors import ConfigurationError, FluxserveError, HeldTooLong, InvalidRequest, JsonValue
from fluxserve.service.orders import Order
from fluxserve.service.views import View
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

_NAME, _TITLE = "openai", "OpenAI images"
#: Names of models that are OpenAI's: the setting `openai_model` draws what they would.
THEIRS = re.compile(r"(dall-e|gpt-image|chatgpt-image)-.*")
#: A token of the usage that is told: as many pixels of a picture, to either side.
_TOKEN_SIDE = 16
_encode = msgspec.json.Encoder().encode
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request that was read: which model draws, and how the answer looks. It holds no pictures."""

    asked: ImagesRequest
    spec: ModelSpec
    event: str


class Images:
    """Answers both calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._service = parts.service
        usual = parts.service.settings.openai_model
        if usual not in catalogue.MODELS:
            raise ConfigurationError(f"openai_model names {usual}, and there is no model of that name.")
        self._usual = catalogue.find(usual)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        key = auth.authenticate(scope, self._service)
        path = scope["path"]
        if path not in (GENERATIONS, EDITS):
            raise e.UnknownRoute(f"There is nothing at this path. POST {GENERATIONS} or {EDITS}.")
        if scope["method"] != "POST":
            raise e.MethodNotAllowed("That method is not allowed here. Allowed: POST.")
        idempotency_key = idempotency_key_of(scope)
        records: list[TaskRecord] = []
        try:
            wanted = await self._place(scope, receive, key, idempotency_key, records)
            headers = [*rate_headers(self._service, key), *_headers(wanted.spec, records)]
            if wanted.asked.stream:
                await self._stream(wanted, records[0], receive, send, headers)
            else:
                await self._answer(wanted, records, receive, send, headers)
        except InvalidRequest as error:
            raise as_asked(error) from None
        except CallerGone:
            return
        finally:
            if idempotency_key is None:
                await give_up(self._service, records)

    # What is asked for

    async def _place(
        self, scope: Scope, receive: Receive, key: ApiKey, idempotency_key: str | None, records: list[TaskRecord]
    ) -> Wanted:
        """Read the request and place its orders, whose tasks go into `records` one by one.

        What it holds in pictures is gone when this returns: requests may be held for long, and many of them.
        """
        with self._parts.bodies.open() as body:
            wanted, checked = self._read(scope, await body.read(scope, receive))
            order = Order(
                key=key, spec=wanted.spec, values=checked.values, pictures=checked.pictures, urls=checked.urls,
                ignored=checked.ignored, dialect=_NAME, origin=auth.origin(scope, self._service.settings),
                idempotency_key=idempotency_key, masks_by_alpha=True,
            )  # fmt: skip
            for number in range(wanted.asked.n):
                records.append(await place(self._service, numbered(order, number)))
                if records[-1].refusal is not None:  # and so would be the others
                    break
        return wanted

    def _read(self, scope: Scope, body: bytes) -> tuple[Wanted, schemas.Checked]:
        path: str = scope["path"]
        content_type = auth.header(scope, b"content-type") or ""
        if path == EDITS:
            fields, pictures = read_form(content_type, body)
        else:
            fields, pictures = schemas.parse_object(body), Pictures()
        named = fields.get("model") or None
        fields = {name: value for name, value in fields.items() if value not in ("", None)}
        try:
            asked = ImagesRequest.model_validate(fields)
        except ValidationError as error:
            raise schemas.refused(error) from None
        if asked.stream and asked.n > 1:
            raise schemas.invalid(("body", "n"), "stream", "A stream is of one picture: leave n out", asked.n)
        spec = self._spec(None if named is None else str(named), pictures)
        checked = schemas.check_fields(spec, values_of(asked, spec, pictures))
        event = "image_edit" if path == EDITS else "image_generation"
        plain = ImagesRequest.model_validate({name: getattr(asked, name) for name in ImagesRequest.model_fields})
        return Wanted(asked=plain, spec=spec, event=event), checked

    def _spec(self, name: str | None, pictures: Pictures) -> ModelSpec:
        """The model that draws; raises UnknownModel. For OpenAI's own a mask needs one that takes masks."""
        if name is not None and not THEIRS.fullmatch(name):
            return catalogue.find(name)
        if pictures.mask is None or self._usual.param(MASK):
            return self._usual
        return next(spec for spec in catalogue.MODELS.values() if spec.param(MASK))

    # What is answered

    async def _answer(
        self, wanted: Wanted, records: Sequence[TaskRecord], receive: Receive, send: Send, headers: Headers
    ) -> None:
        views = await self._wait(records, receive)
        drawn = [view.record for view in views if view.record is not None and view.state is State.READY]
        failures = [_failure(view, wanted.asked) for view in views if view.state is not State.READY]
        if not drawn:
            status, failure = failures[0]
            await send_json(send, status, {"error": failure}, headers)
            return
        body = _told(wanted, drawn) | {"data": [await self._shown(wanted, record) for record in drawn]}
        if failures:
            body["failures"] = [failure for _, failure in failures]
        await send_json(send, 200, body, headers)

    async def _wait(self, records: Sequence[TaskRecord], receive: Receive, news: News | None = None) -> list[View]:
        """The tasks when all have ended. Raises HeldTooLong, ShuttingDown and CallerGone."""
        within = self._service.settings.hold
        views = await until_ended(self._service, records, receive, within=within, news=news)
        if any(view.state.is_active for view in views):
            raise HeldTooLong(f"Not drawn within {within:g} s.")
        return views

    async def _stream(self, wanted: Wanted, record: TaskRecord, receive: Receive, send: Send, headers: Headers) -> None:
        size = str(record.generation.size)
        partials = _Partials(wanted, size, self._service.preview if wanted.asked.partial_images else None)

        async def news(view: View, woken: bool) -> None:
            part = partials.news(view)
            if part or not woken:
                await send_events(send, part or HEARTBEAT)

        with self._parts.streams.one_more(record.account_id):
            await begin_events(send, headers)
            try:
                (view,) = await self._wait([record], receive, news)
                last = await self._last(wanted, view)
            except FluxserveError as error:
                last = _event("error", _render_error(error, {}))
            await send_events(send, last)
            await end_events(send)

    async def _last(self, wanted: Wanted, view: View) -> bytes:
        if view.record is None or view.state is not State.READY:
            return _event("error", {"error": _failure(view, wanted.asked)[1]})
        shown = await self._shown(wanted, view.record, links=False)
        return _event(f"{wanted.event}.completed", _told(wanted, [view.record], at="created_at") | shown)

    async def _shown(self, wanted: Wanted, record: TaskRecord, *, links: bool | None = None) -> Body:
        """A picture, as the answer holds it."""
        name = record.object_name or ""
        if wanted.asked.links if links is None else links:
            expires_at = int(self._parts.now()) + self._service.settings.link_ttl
            shown: Body = {"url": record.origin + self._parts.signer.sign_picture(name, expires_at)}
        else:
            shown = {"b64_json": base64.b64encode(await asyncio.to_thread(self._file, name)).decode()}
        if record.generation.prompt != wanted.asked.prompt:
            shown["revised_prompt"] = record.generation.prompt
        return shown | {"seed": record.generation.seed}

    def _file(self, name: str) -> bytes:
        with self._parts.storage.open(name) as picture:
            return picture.read(picture.size)


class _Partials:
    """The previews that a stream has still to show; `preview` None: it wants none."""

    def __init__(self, wanted: Wanted, size: str, preview: Callable[[View], bytes | None] | None) -> None:
        self._wanted = wanted
        self._size = size
        self._preview = preview
        self._count = 0
        self._shown: bytes | None = None

    def news(self, view: View) -> bytes:
        """The next one as an event, where one is due: they are spread over the steps. Else nothing."""
        most = self._wanted.asked.partial_images
        preview = self._preview(view) if self._preview else None
        due = view.progress >= (self._count + 1) / (most + 1) and self._count < most
        if preview is None or preview is self._shown or not due:
            return b""
        body: Body = {
            "b64_json": base64.b64encode(preview).decode(),
            "partial_image_index": self._count,
            "output_format": "jpeg",
            "size": self._size,
            "quality": quality_of(self._wanted.asked),
            "background": "opaque",
        }
        self._shown = preview
        self._count += 1
        return _event(f"{self._wanted.event}.partial_image", body)


def _headers(spec: ModelSpec, records: Sequence[TaskRecord]) -> Headers:
    """What draws, and which tasks: the answers have no place for either."""
    ids = ",".join(record.id for record in records)
    return [(b"x-fluxserve-model", spec.name.encode()), (b"x-fluxserve-tasks", ids.encode())]


def _told(wanted: Wanted, records: Sequence[TaskRecord], at: str = "created") -> Body:
    """What an answer says of all its pictures."""
    generations = [record.generation for record in records]
    text = wanted.spec.network.text_tokens * len(records)
    inputs = sum(_tokens(picture.size.area) for one in generations for picture in one.pictures)
    output = sum(_tokens(one.size.area) for one in generations)
    return {
        at: int(max(record.finished_at or record.created_at for record in records)),
        "size": str(generations[0].size),
        "quality": quality_of(wanted.asked),
        "output_format": wanted.asked.output_format,
        "background": "opaque",
        "usage": {
            "total_tokens": text + inputs + output,
            "input_tokens": text + inputs,
            "input_tokens_details": {"text_tokens": text, "image_tokens": inputs},
            "output_tokens": output,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": output},
        },
    }


def _tokens(area: int) -> int:
    return -(-area // _TOKEN_SIDE**2)


def _event(name: str, body: Body) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **body}))


# What goes wrong

#: `type` and `code` by class; the nearest base class counts.
CODES: dict[type[FluxserveError], tuple[str, str | None]] = {
    e.NotAuthenticated: ("invalid_request_error", "invalid_api_key"),
    e.InsufficientCredits: ("insufficient_quota", "insufficient_quota"),
    e.UnknownModel: ("invalid_request_error", "model_not_found"),
    e.ModelNotDrawn: ("invalid_request_error", "model_not_found"),
    e.InvalidRequest: ("invalid_request_error", "invalid_value"),
    e.TooManyActiveTasks: ("rate_limit_error", "rate_limit_exceeded"),
    e.TooManyRequests: ("rate_limit_error", "rate_limit_exceeded"),
    e.TooManyStreams: ("rate_limit_error", "rate_limit_exceeded"),
    e.RequestError: ("invalid_request_error", None),
    e.FluxserveError: ("server_error", None),
}


def _render_error(error: FluxserveError, body: Mapping[str, JsonValue]) -> Body:
    del body
    kind, code = next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
    param = "model" if code == "model_not_found" else None
    if isinstance(error, InvalidRequest):
        where, what = first_of(error)
        param = where if isinstance(where, str) else None
        code = "missing_required_parameter" if what == "missing" else code
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


def _failure(view: View, asked: ImagesRequest) -> tuple[int, Body]:
    """The HTTP status and the error of a task that ended without a picture."""
    record = view.record
    if record is not None and record.refusal is not None:
        what = "prompt" if record.state is State.REQUEST_MODERATED else "picture"
        message = f"The {what} was refused by moderation: {', '.join(record.refusal.categories)}."
        is_dalle = asked.model is not None and LINKING.fullmatch(asked.model)
        code = "content_policy_violation" if is_dalle else "moderation_blocked"
        return 400, {"message": message, "type": "image_generation_user_error", "param": None, "code": code}
    if view.state is State.CANCELLED:
        message = "The task was cancelled by another call."
        return 400, {"message": message, "type": "invalid_request_error", "param": None, "code": "cancelled"}
    message = record.reason.message if record is not None and record.reason is not None else "It could not be drawn."
    return 500, {"message": message, "type": "server_error", "param": None, "code": "drawing_failed"}


OPENAI = OtherApi(
    name=_NAME,
    title=_TITLE,
    paths=re.compile(r"/v1/images(/.*)?"),
    methods=lambda _path: "POST",
    open=Images,
    document=lambda: document(_TITLE),
    render_error=_render_error,
    statuses={
        e.InvalidRequest: 400, e.FieldRefused: 400, e.IdempotencyConflict: 400, e.InsufficientCredits: 429,
        e.ModelNotDrawn: 404,
    },
)  # fmt: skip
