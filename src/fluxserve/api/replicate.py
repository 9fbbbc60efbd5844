"""Replicate's predictions: a model, its `input`, and a prediction that is polled, held or told by webhook.

    POST  /v1/models/{owner}/{name}/predictions  begin one; `Prefer: wait` holds the answer
    POST  /v1/predictions                        the same, with the model in `version`
    GET   /v1/predictions                        the account's, newest first, in pages
    GET   /v1/predictions/{id}                   how it is
    POST  /v1/predictions/{id}/cancel            end it

A prediction of one picture is a task, and has its id. One of several is as many tasks, and its id is all of theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import msgspec
from starlette.types import Receive, Scope, Send

from fluxserve import __version__, catalogue
from fluxserve import errors as e
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import auth, query, schemas
from fluxserve.api.dialect import Body
from fluxserve.api.holding import CallerGone, numbered, until_ended
from fluxserve.api.other_apis import OtherApi, Parts, operation, parameter
from fluxserve.api.responses import send_json
from fluxserve.api.submit import idempotency_key_of, place, rate_headers
from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.params import Param
from fluxserve.catalogue.schema import EXAMPLE_PROMPT
from fluxserve.catalogue.sizes import parse_ratio
from fluxserve.errors import FluxserveError, InvalidRequest, JsonValue
from fluxserve.service.forecast import Outlook
from fluxserve.service.orders import Order
from fluxserve.service.views import View
from fluxserve.store.base import PageRequest, TaskRecord
from fluxserve.tasks.task import State

_NAME, _TITLE = "replicate", "Replicate predictions"
_PREDICTIONS, _FILES = "/v1/predictions", "/v1/files"
_CREATE = re.compile(r"/v1/models/[^/]+/(?P<name>[^/]+)/predictions")
_ONE = re.compile(_PREDICTIONS + r"/(?P<id>[0-9a-f.-]{36,147})(?P<cancel>/cancel)?")
#: What they call models that are called otherwise here.
MODELS = {
    "flux-1.1-pro": "flux-pro-1.1", "flux-1.1-pro-ultra": "flux-pro-1.1-ultra", "flux-fill-pro": "flux-pro-1.0-fill",
    "flux-fill-dev": "flux-pro-1.0-fill", "flux-canny-pro": "flux-pro-1.0-canny",
    "flux-canny-dev": "flux-pro-1.0-canny", "flux-depth-pro": "flux-pro-1.0-depth",
    "flux-depth-dev": "flux-pro-1.0-depth",
}  # fmt: skip
#: Models whose output is a list of pictures, of which there may be several.
LISTING = frozenset({"flux-dev", "flux-schnell", "flux-krea-dev"})
MAX_OUTPUTS = 4
#: What they call fields that are called otherwise here.
FIELDS = {"num_inference_steps": "steps", "guidance_scale": "guidance", "prompt_strength": "strength"}
#: Fields that change nothing here: files are of quality 95, all weights draw as fast as they can, and moderation is
#: the operator's.
UNUSED = frozenset({"output_quality", "go_fast", "disable_safety_checker"})
#: Fields that say how large the picture is, beside width and height.
SHAPES = frozenset({"aspect_ratio", "megapixels", "resolution"})
MATCH = "match_input_image"
MAX_WAIT_S = 60
#: The only event that is told.
COMPLETED = "completed"
#: Fields that stand beside the input.
OUTSIDE = frozenset({"input", "webhook", "webhook_events_filter", "version", "model"})
EVENTS = ("start", "output", "logs", COMPLETED)
PAGE = 100
_WAIT = re.compile(r"(?:^|[,;\s])wait(?:=([0-9]{1,4}))?(?:$|[,;\s])")
_MEGAPIXELS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?: ?MP)?")
_encode = msgspec.json.Encoder().encode
#: A prediction's status by its task's state.
STATUSES: dict[State, str] = {
    State.PREPARING: "starting", State.QUEUED: "starting", State.FOLLOWING: "processing", State.RUNNING: "processing",
    State.READY: "succeeded", State.REQUEST_MODERATED: "failed", State.CONTENT_MODERATED: "failed",
    State.ERROR: "failed", State.CANCELLED: "canceled",
}  # fmt: skip
#: The status of a prediction of several tasks is the first of these that one of them has.
_FIRST = ("canceled", "failed", "processing", "starting", "succeeded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A request that was read."""

    spec: ModelSpec
    checked: schemas.Checked
    count: int


class Predictions:
    """Answers all calls."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._service = parts.service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call."""
        key = auth.authenticate(scope, self._service)
        path, method = scope["path"], scope["method"]
        created, one = _CREATE.fullmatch(path), _ONE.fullmatch(path)
        origin = auth.origin(scope, self._service.settings)
        if method == "POST" and (created or path == _PREDICTIONS):
            await self._create(scope, receive, send, key, None if created is None else created["name"])
        elif method in ("GET", "HEAD") and path == _PREDICTIONS:
            await send_json(send, 200, await self._list(scope, key, origin))
        elif one and method in _methods(path):
            if one["cancel"]:
                for task_id in one["id"].split("."):
                    await self._service.cancel(task_id, key.account_id)
            await send_json(send, 200, self._shown(await self._records(one["id"], key), origin))
        elif path == _FILES:  # a 501 makes the client for JavaScript send files within the request
            raise e.FilesNotTaken("Files are not kept here. Send them within the input, as data URIs.")
        elif created or one or path == _PREDICTIONS:
            raise e.MethodNotAllowed(f"That method is not allowed here. Allowed: {_methods(path)}.")
        else:
            raise e.NotFound("There is no prediction of this id.")

    async def _create(self, scope: Scope, receive: Receive, send: Send, key: ApiKey, name: str | None) -> None:
        wait = _wait(auth.header(scope, b"prefer") or "")
        records = await self._place(scope, receive, key, name)
        if wait:
            try:
                await until_ended(self._service, records, receive, within=wait)
            except CallerGone:
                return
            except e.ShuttingDown:  # the prediction is there, and can be asked for later
                pass
            records = await self._records(".".join(record.id for record in records), key)
        origin = auth.origin(scope, self._service.settings)
        await send_json(send, 201, self._shown(records, origin), rate_headers(self._service, key))

    async def _place(self, scope: Scope, receive: Receive, key: ApiKey, name: str | None) -> list[TaskRecord]:
        """The tasks of a request, all or none. What it holds in pictures is gone when this returns."""
        idempotency_key = idempotency_key_of(scope)
        origin = auth.origin(scope, self._service.settings)
        records: list[TaskRecord] = []
        try:
            with self._parts.bodies.open() as body:
                wanted = read(schemas.parse_object(await body.read(scope, receive)), name)
                order = _order(wanted, key, origin, idempotency_key)
                for number in range(wanted.count):
                    record = await place(self._service, numbered(order, number))
                    records.append(record)
        except FluxserveError as error:
            for record in records if idempotency_key is None else ():
                await self._service.cancel(record.id, record.account_id)
            raise _as_asked(error) from None
        return records

    async def _records(self, prediction_id: str, key: ApiKey) -> list[TaskRecord]:
        """Its tasks as they are written down. Raises NotFound; another account's looks like an unknown one."""
        found = [await self._service.record(task_id) for task_id in prediction_id.split(".")]
        records = [record for record in found if record is not None and record.account_id == key.account_id]
        if len(records) < len(found):
            raise e.NotFound("There is no prediction of this id.")
        return records

    async def _list(self, scope: Scope, key: ApiKey, origin: str) -> Body:
        """Each task by itself: what was asked for together is not written down."""
        cursor = query.first(query.parse(scope["query_string"]), "cursor") or None
        before = None if cursor is None else self._parts.signer.open_cursor(key.account_id, cursor)
        if cursor is not None and before is None:
            raise schemas.invalid(("query", "cursor"), "cursor", "Input should be that of an earlier answer", cursor)
        listing = await self._service.list_tasks(
            PageRequest(account_id=key.account_id, states=tuple(State), limit=PAGE, before=before)
        )
        after = None if listing.end is None else self._parts.signer.cursor(key.account_id, listing.end)
        return {
            "previous": None,
            "next": None if after is None else f"{origin}{_PREDICTIONS}?cursor={after}",
            "results": [self._shown([listed.record], origin) for listed in listing.tasks],
        }

    def _shown(self, records: Sequence[TaskRecord], origin: str) -> Body:
        expires_at = int(self._parts.now()) + self._service.settings.link_ttl
        links = [
            origin + self._parts.signer.sign_picture(record.object_name, expires_at)
            for record in records
            if record.object_name is not None
        ]
        return render(records, links, origin)


# What is asked for


def read(fields: Mapping[str, JsonValue], name: str | None) -> Wanted:
    """A request for the model of this name, else the one that it names. Raises InvalidRequest and UnknownModel."""
    asked = fields.get("input")
    if not isinstance(asked, dict):
        raise schemas.invalid(("body", "input"), "dict_type", "Input should be a JSON object", None)
    name = name or str(fields.get("version") or fields.get("model") or "").rpartition("/")[2]
    spec = catalogue.find(MODELS.get(name, name))
    count = _count(asked.get("num_outputs"), spec)
    webhook = _webhook(fields)
    if webhook and count > 1:
        raise schemas.invalid(("body", "webhook"), "several", "A webhook tells of one picture, not of several", count)
    values = {**values_of(spec, asked), **({"webhook_url": webhook} if webhook else {})}
    return Wanted(spec=spec, checked=schemas.check_fields(spec, values), count=count)


def _webhook(fields: Mapping[str, JsonValue]) -> JsonValue:
    """Where the end is to be told."""
    events = fields.get("webhook_events_filter") or [COMPLETED]
    if not isinstance(events, list) or any(event not in EVENTS for event in events):
        message = f"Input should be a list of {', '.join(EVENTS)}"
        raise schemas.invalid(("body", "webhook_events_filter"), "literal_error", message, None)
    if fields.get("webhook") and COMPLETED not in events:
        message = "Webhooks tell of the end alone here: name completed, or leave the filter out"
        raise schemas.invalid(("body", "webhook_events_filter"), "not_told", message, cast("JsonValue", events))
    return fields.get("webhook")


def _count(given: JsonValue, spec: ModelSpec) -> int:
    most = MAX_OUTPUTS if spec.name in LISTING else 1
    count = 1 if given is None else given
    if type(count) is not int or not 1 <= count <= most:
        message = f"Input should be a number from 1 to {most}" if most > 1 else "This model draws one picture"
        raise schemas.invalid(("body", "num_outputs"), "num_outputs", message, given)
    return count


def values_of(spec: ModelSpec, asked: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The input in the model's own fields. Raises InvalidRequest."""
    values: dict[str, JsonValue] = {"output_format": "webp"}
    for name, value in asked.items():
        if name == "input_images" and isinstance(value, list):
            values |= {
                f"input_image_{number}" if number > 1 else "input_image": one for number, one in enumerate(value, 1)
            }
        elif name == "output_format" and value is not None:
            values[name] = "jpeg" if value == "jpg" else value
        elif name not in UNUSED and name not in SHAPES and name not in ("num_outputs", "webhook_url", "webhook_secret"):
            values[FIELDS.get(name, name)] = value
    return values | _shape(spec, asked)


def _shape(spec: ModelSpec, asked: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """How large the picture is, where the input says it by a shape; nothing where the model's own is meant."""
    ratio = asked.get("aspect_ratio")
    if ratio is None and (asked.get("megapixels") or asked.get("resolution")) is None:
        return {}
    if ratio in (MATCH, "custom") or asked.get("resolution") == MATCH:
        return {}
    if spec.param("aspect_ratio"):
        return {} if ratio is None else {"aspect_ratio": ratio}
    width, height = spec.param("width"), spec.param("height")
    if width is None or height is None:
        return {}
    if not isinstance(ratio, str | None) or not re.fullmatch(r"[1-9][0-9]{0,2}:[1-9][0-9]{0,2}", ratio or "1:1"):
        raise schemas.invalid(("body", "aspect_ratio"), "aspect_ratio", "Input should be a ratio such as 16:9", ratio)
    across, down = parse_ratio(ratio or "1:1")
    area = _megapixels(asked) * 1024 * 1024
    return {
        "width": _side(width, math.sqrt(area * across / down)),
        "height": _side(height, math.sqrt(area * down / across)),
    }


def _megapixels(asked: Mapping[str, JsonValue]) -> float:
    for name in ("megapixels", "resolution"):
        if (given := asked.get(name)) is None:
            continue
        found = _MEGAPIXELS.fullmatch(str(given))
        if found is None or not 0.05 <= float(found[1]) <= 4:
            raise schemas.invalid(("body", name), "megapixels", "Input should be megapixels from 0.05 to 4", given)
        return float(found[1])
    return 1.0


def _side(param: Param, length: float) -> int:
    step = param.multiple_of or 1
    nearest = round(length / step) * step
    return int(min(max(nearest, param.minimum or step), param.maximum or nearest))


def _order(wanted: Wanted, key: ApiKey, origin: str, idempotency_key: str | None) -> Order:
    return Order(
        key=key, spec=wanted.spec, values=wanted.checked.values, pictures=wanted.checked.pictures,
        urls=wanted.checked.urls, ignored=wanted.checked.ignored, dialect=_NAME, origin=origin,
        idempotency_key=idempotency_key,
    )  # fmt: skip


def _wait(prefer: str) -> float:
    """How long the answer is held, in seconds."""
    found = _WAIT.search(prefer.lower())
    return 0.0 if found is None else float(min(int(found[1] or MAX_WAIT_S), MAX_WAIT_S))


# What is answered


def render(records: Sequence[TaskRecord], links: Sequence[str], origin: str) -> Body:
    """A prediction of these tasks; `links` are those of the pictures that are there."""
    first = records[0]
    found = {STATUSES[record.state] for record in records}
    status = next(word for word in _FIRST if word in found)
    is_final = all(record.state.is_final for record in records)
    has_output = status == "succeeded" and len(links) == len(records)
    output: JsonValue = list(links) if first.generation.model in LISTING else links[0] if links else None
    prediction_id = ".".join(record.id for record in records)
    started = [record.started_at for record in records if record.started_at is not None]
    finished = [record.finished_at for record in records if record.finished_at is not None]
    body: Body = {
        "id": prediction_id,
        "model": f"black-forest-labs/{first.generation.model}",
        "version": f"fluxserve-{__version__}",
        "input": _input(first),
        "logs": _logs(records),
        "output": output if has_output else None,
        "data_removed": status == "succeeded" and not has_output,
        "error": _error(records) if status == "failed" else None,
        "status": status,
        "source": "api",
        "created_at": _at(first.created_at),
        "started_at": _at(min(started)) if started else None,
        "completed_at": _at(max(finished)) if is_final and finished else None,
        "urls": {
            "get": f"{origin}{_PREDICTIONS}/{prediction_id}",
            "cancel": f"{origin}{_PREDICTIONS}/{prediction_id}/cancel",
        },
        "metrics": {},
    }
    if status == "succeeded" and started and finished:
        body["metrics"] = {"predict_time": round(max(finished) - min(started), 3), "image_count": len(records)}
    return body


def render_result(
    view: View, sample: str | None, preview: bytes | None, outlook: Outlook | None, processing_status: bool
) -> bytes:
    """What a webhook tells of a task that has ended."""
    del preview, outlook, processing_status
    record = view.record
    if record is None:
        raise ValueError("Only the end of a task is told.")
    return _encode(render([record], [] if sample is None else [sample], record.origin))


def _input(record: TaskRecord) -> Body:
    """What is drawn; what the request said beside it is not kept."""
    drawn = record.generation
    return {
        "prompt": drawn.prompt,
        "seed": drawn.seed,
        "width": drawn.size.width,
        "height": drawn.size.height,
        "num_inference_steps": drawn.steps,
        "guidance": drawn.guidance,
        "output_format": "jpg" if drawn.output_format == "jpeg" else drawn.output_format,
    }


def _logs(records: Sequence[TaskRecord]) -> str:
    told = [f"Using seed: {record.generation.seed}" for record in records]
    told += [line for record in records[:1] for line in record.warnings]
    told += [line for record in records if record.drawn for line in record.drawn.warnings]
    return "\n".join(told)


def _error(records: Sequence[TaskRecord]) -> str:
    for record in records:
        if record.refusal is not None:
            what = "prompt" if record.state is State.REQUEST_MODERATED else "picture"
            return f"The {what} was refused by moderation: {', '.join(record.refusal.categories)}."
        if record.reason is not None:
            return record.reason.message
    return "It could not be drawn."


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What goes wrong

TITLES: dict[type[FluxserveError], str] = {
    e.NotAuthenticated: "Unauthenticated", e.InsufficientCredits: "Insufficient credit",
    e.UnknownModel: "Model not found", e.ModelNotDrawn: "Model not found", e.NotFound: "Not found",
    e.MethodNotAllowed: "Method not allowed", e.InvalidRequest: "Input validation failed",
    e.TooManyActiveTasks: "Too many requests", e.TooManyRequests: "Too many requests",
    e.RequestError: "Bad request", e.Unavailable: "Unavailable", e.FluxserveError: "Internal error",
}  # fmt: skip


def _render_error(error: FluxserveError, body: Mapping[str, JsonValue]) -> Body:
    title = next(TITLES[cls] for cls in type(error).__mro__ if cls in TITLES)
    told: Body = {"title": title, "detail": error.message, "status": body["status_code"]}
    if isinstance(error, InvalidRequest):
        told["invalid_fields"] = [
            {"type": item.get("type"), "field": _field(item), "description": item.get("msg")} for item in error.items
        ]
    return told


def _field(item: Mapping[str, JsonValue]) -> str:
    where, *inner = map(str, cast("Sequence[str]", item.get("loc") or ("body",)))
    if where != "body" or not inner or inner[0] in OUTSIDE:
        return ".".join(inner) or where
    return ".".join(("input", *inner))


def _as_asked(error: FluxserveError) -> FluxserveError:
    """The same, by the names of the fields that the caller knows."""
    if not isinstance(error, InvalidRequest):
        return error
    named = {"webhook_url": "webhook", "steps": "num_inference_steps", "strength": "prompt_strength"}
    items = []
    for item in error.items:
        where, *inner = cast("Sequence[str]", item.get("loc") or ("body",))
        items.append({**item, "loc": [where, *(named.get(name, name) for name in inner)]})
    return InvalidRequest(f"{_field(items[0])}: {items[0]['msg']}", items)


# What the served document says

_PREDICTION: Body = {
    "type": "object",
    "required": ["id", "model", "input", "output", "error", "status", "created_at", "urls", "metrics"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "input": {"type": "object"},
        "output": {"type": ["string", "array", "null"]},
        "error": {"type": ["string", "null"]},
        "status": {"type": "string", "enum": list(_FIRST)},
        "created_at": {"type": "string", "format": "date-time"},
        "urls": {"type": "object"},
        "metrics": {"type": "object"},
    },
}
_ERROR: Body = {
    "type": "object",
    "required": ["title", "detail", "status"],
    "properties": {"title": {"type": "string"}, "detail": {"type": "string"}, "status": {"type": "integer"}},
}
_REQUEST: Body = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"type": "object", "description": "The model's fields, by the names that Replicate or that we use."},
        "webhook": {"type": "string", "format": "uri", "description": "Where to POST the prediction at its end."},
        "webhook_events_filter": {"type": "array", "items": {"type": "string", "enum": list(EVENTS)}},
    },
    "examples": [{"input": {"prompt": EXAMPLE_PROMPT, "aspect_ratio": "1:1"}}],
}


_REFUSED = {"401": "No key, or a wrong one.", "404": "No such model or prediction.", "422": "What cannot be."}


def _document() -> Body:
    def told(name: str, summary: str, answer: Body, status: str = "200", **more: JsonValue) -> Body:
        answers = {status: ("The answer.", answer), **{code: (about, _ERROR) for code, about in _REFUSED.items()}}
        return operation(f"{_NAME}_{name}_prediction", _TITLE, summary, answers) | more

    named, one = [parameter("owner", "path"), parameter("name", "path")], [parameter("id", "path")]
    page: Body = {"type": "object", "properties": {"results": {"type": "array", "items": _PREDICTION}}}
    body: Body = {"required": True, "content": {"application/json": {"schema": _REQUEST}}}
    wait = parameter("Prefer", "header", f"`wait` or `wait=SECONDS`, up to {MAX_WAIT_S}: answer at its end, or then.")
    create = told("create", "Begin a prediction", _PREDICTION, "201", parameters=[*named, wait], requestBody=body)
    named_in_body = told("begin", "Begin one of the model in `version`", _PREDICTION, "201", requestBody=body)
    listed = told("list", "List the account's predictions", page, parameters=[parameter("cursor", "query")])
    return {
        "/v1/models/{owner}/{name}/predictions": {"post": create},
        _PREDICTIONS: {"get": listed, "post": named_in_body},
        _PREDICTIONS + "/{id}": {"get": told("get", "How a prediction is", _PREDICTION, parameters=one)},
        _PREDICTIONS + "/{id}/cancel": {"post": told("cancel", "End a prediction", _PREDICTION, parameters=one)},
    }


def _methods(path: str) -> str:
    one = _ONE.fullmatch(path)
    if one is not None:
        return "POST" if one["cancel"] else "GET, HEAD"
    return "GET, HEAD, POST" if path == _PREDICTIONS else "POST"


REPLICATE = OtherApi(
    name=_NAME,
    title=_TITLE,
    paths=re.compile(rf"{_CREATE.pattern.replace('?P<name>', '')}|{_PREDICTIONS}(/.*)?|{_FILES}"),
    methods=_methods,
    open=Predictions,
    document=_document,
    render_error=_render_error,
    render_result=render_result,
    statuses={e.ModelNotDrawn: 404},
)
