"""The served OpenAPI document: the framework's routes, and the raw ones made from the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fluxserve import __version__, catalogue
from fluxserve.api.answer_schemas import (
    ADDED,
    DELIVERIES,
    DELIVERY,
    ERROR,
    ESTIMATE,
    RESULT,
    SUBMITTED,
    TASK_EVENT,
    TASKS,
    VALIDATION_ERROR,
    ref,
)
from fluxserve.api.dialect import Dialect
from fluxserve.api.other_apis import OtherApi
from fluxserve.api.query import DEFAULT_LIMIT, MAX_LIMIT, MAX_WAIT
from fluxserve.api.tasks import WORDS
from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.schema import Schema, request_schema
from fluxserve.errors import JsonValue
from fluxserve.store.deliveries import DeliveryState

DESCRIPTION = """The Flux image generation API on your own machine, in two dialects: the one Black Forest Labs
publishes (`/v1`, `X-Key`) and the one CometAPI serves (`/flux/v1`, Bearer). Submit a prompt, poll until `Ready`,
download `result.sample`."""


_CAPABILITY: Schema = {
    "name": "t",
    "in": "query",
    "description": "The task's capability, from its polling_url; replaces the key.",
    "schema": {"type": "string"},
}
_PREVIEW: Schema = {
    "name": "preview",
    "in": "query",
    "description": "Show what the task is heading for, from now on until its end.",
    "schema": {"type": "boolean", "default": False},
}


def document(app: FastAPI, dialects: Sequence[Dialect], others: Sequence[OtherApi] = ()) -> dict[str, JsonValue]:
    """The whole document, OpenAPI 3.1."""
    base = get_openapi(title="fluxserve", version=__version__, description=DESCRIPTION, routes=app.routes)
    paths = cast("dict[str, JsonValue]", base.get("paths", {}))
    for path in ("/v1/models", *(f"{dialect.prefix}/credits" for dialect in dialects)):
        paths[path]["get"] |= {"security": _security(), "responses": _with_401(paths, path)}  # type: ignore[index, call-overload, operator]
    for dialect in reversed(dialects):
        for spec in catalogue.MODELS.values():
            paths[f"{dialect.prefix}/{spec.name}"] = {"post": _submit(dialect, spec)}
        paths[f"{dialect.prefix}/estimate"] = {"post": _estimate(dialect)}
        paths[f"{dialect.prefix}/get_result"] = {"get": _poll(dialect)}
        paths |= _tasks_paths(dialect)
        paths |= _deliveries_paths(dialect)
    for other in others:
        paths |= other.document()
    paths["/results/{token}/{name}"] = {"get": _picture()}
    components = cast("dict[str, JsonValue]", base.setdefault("components", {}))
    schemas = cast("dict[str, JsonValue]", components.setdefault("schemas", {}))
    schemas |= {
        "Error": ERROR, "Submitted": SUBMITTED, "Estimate": ESTIMATE, "Result": RESULT, "TaskEvent": TASK_EVENT,
        "Tasks": TASKS, "Delivery": DELIVERY, "Deliveries": DELIVERIES,
    }  # fmt: skip
    for dialect in dialects:
        schemas[f"Error_{dialect.name}"] = _with(ERROR, ADDED[dialect.name])
        schemas[f"ValidationError_{dialect.name}"] = _with(VALIDATION_ERROR, ADDED[dialect.name])
    schemas |= {_schema_name(spec): request_schema(spec) for spec in catalogue.MODELS.values()}
    components["securitySchemes"] = {
        "XKey": {"type": "apiKey", "in": "header", "name": "X-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    return cast("dict[str, JsonValue]", base)


def _with(schema: Schema, added: Schema) -> Schema:
    """The schema with more properties, all of them required."""
    required, properties = cast("list[str]", schema["required"]), cast("Schema", schema["properties"])
    return {**schema, "required": [*required, *added], "properties": {**properties, **added}}


def _with_401(paths: dict[str, JsonValue], path: str) -> JsonValue:
    listed = paths[path]["get"]["responses"]  # type: ignore[index, call-overload]
    return {**cast("Schema", listed), "401": _answer("No key, or a wrong one.", "Error")}


def _submit(dialect: Dialect, spec: ModelSpec) -> Schema:
    return {
        "operationId": f"{dialect.name}_{spec.name}".replace("-", "_").replace(".", "_"),
        "summary": f"Draw with {spec.title}",
        "description": spec.help,
        "tags": [dialect.title],
        "security": _security(),
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "A retry with the same key and body answers the same task and is not charged again.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(_schema_name(spec))}}},
        "responses": {
            "200": _answer("Accepted: the task is durable.", "Submitted"),
            "400": _answer("The body is not JSON.", f"Error_{dialect.name}"),
            "401": _answer("No key, or a wrong one.", f"Error_{dialect.name}"),
            "402": _answer("Not enough credits.", f"Error_{dialect.name}"),
            "413": _answer("The body is too large.", f"Error_{dialect.name}"),
            "422": _answer("JSON that breaks the schema.", f"ValidationError_{dialect.name}"),
            "429": _answer("Too many unfinished tasks, or too fast.", f"Error_{dialect.name}"),
            "503": _answer("Not now; see Retry-After.", f"Error_{dialect.name}"),
        },
    }


def _estimate(dialect: Dialect) -> Schema:
    bodies: list[JsonValue] = [
        {
            "allOf": [
                {"type": "object", "required": ["model"], "properties": {"model": {"const": spec.name}}},
                ref(_schema_name(spec)),
            ]
        }
        for spec in catalogue.MODELS.values()
    ]
    return {
        "operationId": f"{dialect.name}_estimate",
        "summary": "What a request would cost, without drawing it",
        "description": "The body of a submit, with the model's name in `model`. Nothing is reserved or kept.",
        "tags": [dialect.title],
        "security": _security(),
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": bodies}}}},
        "responses": {
            "200": _answer("What it would cost.", "Estimate"),
            "400": _answer("The body is not JSON, or what it names is not here.", f"Error_{dialect.name}"),
            "401": _answer("No key, or a wrong one.", f"Error_{dialect.name}"),
            "404": _answer("There is no model of this name.", f"Error_{dialect.name}"),
            "413": _answer("The body is too large.", f"Error_{dialect.name}"),
            "422": _answer("A field that the submit would refuse too.", f"ValidationError_{dialect.name}"),
            "503": _answer("Not now; see Retry-After.", f"Error_{dialect.name}"),
        },
    }


def _tasks_paths(dialect: Dialect) -> dict[str, JsonValue]:
    """Listing, following and cancelling, which the published APIs do not have."""
    one = f"{dialect.prefix}/tasks/{{id}}"
    return {
        f"{dialect.prefix}/tasks": {"get": _list_tasks(dialect)},
        f"{one}/events": {"get": _events(dialect)},
        f"{one}/cancel": {"post": _cancel(dialect, "cancel_task")},
        one: {"delete": _cancel(dialect, "delete_task")},
    }


def _list_tasks(dialect: Dialect) -> Schema:
    return {
        "operationId": f"{dialect.name}_list_tasks",
        "summary": "List the account's tasks, newest first",
        **_list(dialect, "Tasks", "Only tasks that polls show with this word.", WORDS),
    }


def _deliveries_paths(dialect: Dialect) -> dict[str, JsonValue]:
    """Webhooks as their account sees them, which the published APIs do not show."""
    listing: Schema = {
        "operationId": f"{dialect.name}_list_deliveries",
        "summary": "List the account's webhooks, newest first",
        **_list(dialect, "Deliveries", "Only webhooks of this status.", list(DeliveryState)),
    }
    replay: Schema = {
        "operationId": f"{dialect.name}_replay_delivery",
        "summary": "Deliver a task's webhook anew",
        "tags": [dialect.title],
        "security": _security(),
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "responses": {
            "200": _answer("It is due now.", "Delivery"),
            "401": _answer("No key, or a wrong one.", f"Error_{dialect.name}"),
            "404": _answer("No such task of this account has a webhook.", f"Error_{dialect.name}"),
            "503": _answer("Not now; see Retry-After.", f"Error_{dialect.name}"),
        },
    }
    path = f"{dialect.prefix}/webhooks/deliveries"
    return {path: {"get": listing}, f"{path}/{{id}}/replay": {"post": replay}}


def _list(dialect: Dialect, schema: str, status: str, words: Sequence[str]) -> Schema:
    """What both lists have in common."""
    parameters: dict[str, tuple[str, Schema]] = {
        "limit": (
            "Most entries to answer.",
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        ),
        "cursor": ("`next_cursor` of the page before.", {"type": "string", "pattern": "^([A-Za-z0-9_-]{32})?$"}),
        "status": (status, {"type": "string", "enum": ["", *words]}),
    }
    return {
        "tags": [dialect.title],
        "security": _security(),
        "parameters": [
            {"name": name, "in": "query", "description": description, "schema": kind}
            for name, (description, kind) in parameters.items()
        ],
        "responses": {
            "200": _answer("A page of them.", schema),
            "401": _answer("No key, or a wrong one.", f"Error_{dialect.name}"),
            "422": _answer("A parameter that cannot be.", f"ValidationError_{dialect.name}"),
            "503": _answer("Not now; see Retry-After.", f"Error_{dialect.name}"),
        },
    }


def _events(dialect: Dialect) -> Schema:
    responses: Schema = {
        "200": {
            "description": "Events until the task's end: `status`, `progress`, `preview`, `result`. The data of "
            "each is a Result; the id of the last one is `end`.",
            "content": {"text/event-stream": {"schema": ref("TaskEvent")}},
        },
        "204": {"description": "The task has ended, and Last-Event-ID says that the caller has seen that."},
        "401": _answer("Neither a key nor the task's capability.", f"Error_{dialect.name}"),
        "422": _answer("A parameter that cannot be.", f"ValidationError_{dialect.name}"),
        "429": _answer("Too many streams of this account.", f"Error_{dialect.name}"),
        "503": _answer("Too many streams; see Retry-After.", f"Error_{dialect.name}"),
    }
    if dialect.unknown_task_status == 404:
        responses["404"] = _answer("No such task.", "Result")
    else:
        responses["200"]["content"] |= _answer("", "Result")["content"]  # type: ignore[index, operator, call-overload]
    return {
        "operationId": f"{dialect.name}_task_events",
        "summary": "Follow a task by server-sent events",
        "tags": [dialect.title],
        "security": [*_security(), {}],
        "parameters": [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
            _CAPABILITY,
            _PREVIEW,
            {
                "name": "Last-Event-ID",
                "in": "header",
                "description": "Sent by browsers that come back; they are told how the task is now.",
                "schema": {"type": "string"},
            },
        ],
        "responses": responses,
    }


def _cancel(dialect: Dialect, operation: str) -> Schema:
    responses: Schema = {
        "200": _answer("The task as a poll shows it; one that had ended stays as it was.", "Result"),
        "401": _answer("No key, or a wrong one.", f"Error_{dialect.name}"),
        "503": _answer("Not now; see Retry-After.", f"Error_{dialect.name}"),
    }
    if dialect.unknown_task_status == 404:
        responses["404"] = _answer("The account has no such task.", "Result")
    return {
        "operationId": f"{dialect.name}_{operation}",
        "summary": "Cancel a task and give its credits back",
        "tags": [dialect.title],
        "security": _security(),
        "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "responses": responses,
    }


def _poll(dialect: Dialect) -> Schema:
    responses: Schema = {
        "200": _answer("The task, whatever became of it.", "Result"),
        "401": _answer("A bare id without a key.", f"Error_{dialect.name}"),
        "422": _answer("No id, or a parameter that cannot be.", f"ValidationError_{dialect.name}"),
    }
    if dialect.unknown_task_status == 404:
        responses["404"] = _answer("No such task.", "Result")
    return {
        "operationId": f"{dialect.name}_get_result",
        "summary": "Poll a task",
        "tags": [dialect.title],
        "security": [*_security(), {}],
        "parameters": [
            {"name": "id", "in": "query", "required": True, "schema": {"type": "string"}},
            _CAPABILITY,
            {
                "name": "wait",
                "in": "query",
                "description": "Answer when the task has ended, or after so many seconds.",
                "schema": {"type": "number", "minimum": 0, "maximum": MAX_WAIT, "default": 0},
            },
            _PREVIEW,
        ],
        "responses": responses,
    }


def _picture() -> Schema:
    return {
        "operationId": "download_picture",
        "summary": "Download a picture by the link in result.sample",
        "tags": ["Pictures"],
        "security": [],
        "parameters": [
            {"name": "token", "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
        ],
        "responses": {
            "200": {
                "description": "The picture.",
                "content": {
                    f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
                    for kind in ("jpeg", "png", "webp")
                },
            },
            "403": _answer("The link is forged or has expired: poll again for a fresh one.", "Error"),
            "404": _answer("The picture was deleted.", "Error"),
        },
    }


def _security() -> list[JsonValue]:
    return [{"XKey": []}, {"Bearer": []}]


def _schema_name(spec: ModelSpec) -> str:
    return "".join(part.capitalize() for part in spec.name.replace(".", "").split("-")) + "Inputs"


def _answer(description: str, schema: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": ref(schema)}}}
