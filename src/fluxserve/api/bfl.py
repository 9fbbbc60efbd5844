"""The dialect Black Forest Labs publishes: `POST /v1/{model}`, `GET /v1/get_result`, `X-Key`.

The words of the wire (`sample`, `Pending`, `polling_url`) live here; CometAPI's dialect shares the result object.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fluxserve.accounts.credits import to_credits
from fluxserve.api.dialect import Body, Dialect
from fluxserve.errors import FluxserveError, JsonValue
from fluxserve.service.views import View
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

TASK_NOT_FOUND = "Task not found"
#: The status words of the wire. A running task is Pending: strict clients reject any other word.
STATUSES: dict[State, str] = {
    State.PREPARING: "Pending",
    State.QUEUED: "Pending",
    State.RUNNING: "Pending",
    State.READY: "Ready",
    State.REQUEST_MODERATED: "Request Moderated",
    State.CONTENT_MODERATED: "Content Moderated",
    State.ERROR: "Error",
    State.CANCELLED: "Error",
}
PROCESSING = "Processing"
_encode = msgspec.json.Encoder().encode


def render_submitted(record: TaskRecord, polling_url: str) -> Body:
    """The answer to a submit: a superset of both published shapes."""
    body: Body = {
        "id": record.id,
        "polling_url": polling_url,
        "cost": to_credits(record.cost),
        "input_mp": 0.0,
        "output_mp": record.generation.size.megapixels,
    }
    if record.webhook_url is not None:
        body |= {"status": "Pending", "webhook_url": record.webhook_url}
    return body


def render_result(view: View, sample: str | None, processing_status: bool) -> bytes:
    """The answer to a poll of a known task, as JSON."""
    record = view.record
    if record is None:
        return _render_unfinished(view, processing_status)
    body: Body = {
        "id": view.id,
        "status": STATUSES[view.state],
        "result": _result(record, sample) if view.state is State.READY else None,
        "progress": None,
        "details": _details(record),
        "preview": None,
        "cost": to_credits(record.cost) if view.state in (State.READY, State.CONTENT_MODERATED) else 0.0,
    }
    return _encode(body)


def _render_unfinished(view: View, processing_status: bool) -> bytes:
    running = view.state is State.RUNNING
    return _encode(
        {
            "id": view.id,
            "status": PROCESSING if running and processing_status else STATUSES[view.state],
            "result": None,
            "progress": round(view.progress, 4),
            "details": {"warnings": view.warnings} if view.warnings else None,
            "preview": None,
        }
    )


def _result(record: TaskRecord, sample: str | None) -> Body:
    started = record.started_at or record.created_at
    finished = record.finished_at or started
    return {
        "sample": sample,
        "prompt": record.generation.prompt,
        "seed": record.generation.seed,
        "start_time": round(started, 3),
        "end_time": round(finished, 3),
        "duration": round(finished - started, 3),
    }


def _details(record: TaskRecord) -> Body | None:
    warnings = (*record.warnings, *(record.drawn.warnings if record.drawn else ()))
    details: Body = {"warnings": warnings} if warnings else {}
    if record.drawn is not None:
        details |= {"drawn_by": record.drawn.drawn_by, **record.drawn.facts}
    if record.reason is not None:
        details |= {"error": record.reason.message}
    return details or None


def render_unknown(task_id: str) -> Body:
    """The answer to a poll of an unknown task."""
    return {
        "id": task_id,
        "status": TASK_NOT_FOUND,
        "result": None,
        "progress": None,
        "details": None,
        "preview": None,
    }


def _render_unknown_with_error(task_id: str) -> Body:
    return render_unknown(task_id) | {"detail": TASK_NOT_FOUND, "message": TASK_NOT_FOUND, "status_code": 404}


def _render_error(error: FluxserveError, body: Mapping[str, JsonValue]) -> Body:
    del error
    return dict(body)


BFL = Dialect(
    name="bfl",
    title="Black Forest Labs",
    prefix="/v1",
    unknown_task_status=404,
    render_error=_render_error,
    render_result=render_result,
    render_unknown=_render_unknown_with_error,
)
