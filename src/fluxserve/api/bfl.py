"""The dialect Black Forest Labs publishes: `POST /v1/{model}`, `GET /v1/get_result`, `X-Key`.

The words of the wire (`sample`, `Pending`, `polling_url`) live here; CometAPI's dialect shares the result object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fluxserve.accounts.credits import to_credits
from fluxserve.api.dialect import Body, Dialect
from fluxserve.errors import FluxserveError, JsonValue
from fluxserve.service.forecast import Outlook
from fluxserve.service.views import Listed, View
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

TASK_NOT_FOUND = "Task not found"
#: The status words of the wire. A running task is Pending: strict clients reject any other word.
STATUSES: dict[State, str] = {
    State.PREPARING: "Pending",
    State.QUEUED: "Pending",
    State.FOLLOWING: "Pending",
    State.RUNNING: "Pending",
    State.READY: "Ready",
    State.REQUEST_MODERATED: "Request Moderated",
    State.CONTENT_MODERATED: "Content Moderated",
    State.ERROR: "Error",
    State.CANCELLED: "Error",
}
PROCESSING = "Processing"
#: The categories for which moderation ended a task, as the published API names them.
REASONS = "Moderation Reasons"
#: `details.error` of a task that its caller ended.
CANCELLED = "cancelled"
#: Where all workers that are connected draw other models.
NOT_SERVED = "No worker here draws this model now: the task waits for one. /readyz says what could not be loaded."
_encode = msgspec.json.Encoder().encode


def states_shown_as(word: str, processing_status: bool) -> tuple[State, ...]:
    """The states that a status word stands for."""
    return tuple(state for state in State if _word(state, processing_status) == word)


def _word(state: State, processing_status: bool) -> str:
    return PROCESSING if state is State.RUNNING and processing_status else STATUSES[state]


def render_submitted(record: TaskRecord, polling_url: str) -> Body:
    """The answer to a submit: a superset of both published shapes.

    Where pictures are still to be fetched, the cost is the most it can be, and sizes are not known.
    """
    is_known = record.state is not State.PREPARING
    inputs = round(sum(picture.size.area for picture in record.generation.pictures) / 1e6, 2)
    body: Body = {
        "id": record.id,
        "polling_url": polling_url,
        "cost": to_credits(record.cost),
        "input_mp": inputs if is_known else None,
        "output_mp": record.generation.size.megapixels if is_known else None,
    }
    if record.webhook_url is not None:
        body |= {"status": "Pending", "webhook_url": record.webhook_url}
    return body


def render_result(
    view: View, sample: str | None, preview: bytes | None, outlook: Outlook | None, processing_status: bool
) -> bytes:
    """The answer to a poll of a known task, as JSON."""
    record = view.record
    if record is None:
        return _render_unfinished(view, preview, outlook, processing_status)
    body: Body = {
        "id": view.id,
        "status": STATUSES[view.state],
        "result": _result(record, sample) if view.state is State.READY else None,
        "progress": None,
        "details": _details(record),
        "preview": None,
        "cost": _charged(record),
    }
    return _encode(body)


def _render_unfinished(view: View, preview: bytes | None, outlook: Outlook | None, processing_status: bool) -> bytes:
    return _encode(
        {
            "id": view.id,
            "status": _word(view.state, processing_status),
            "result": None,
            "progress": round(view.progress, 4),
            "details": _details_meanwhile(view, outlook),
            # Bytes become base64.
            "preview": None if preview is None else {"media_type": "image/jpeg", "data": preview},
        }
    )


def _details_meanwhile(view: View, outlook: Outlook | None) -> Body | None:
    if outlook is not None and not outlook.is_served:
        return {"warnings": (*view.warnings, NOT_SERVED)}
    details: Body = {"warnings": view.warnings} if view.warnings else {}
    if outlook is not None and outlook.position is not None:
        details["queue_position"] = outlook.position
    if outlook is not None and outlook.seconds is not None:
        details["eta_seconds"] = round(outlook.seconds, 1)
    return details or None


def render_tasks(
    tasks: Sequence[Listed], url_of: Callable[[str], str], next_cursor: str | None, processing_status: bool
) -> bytes:
    """A part of an account's list of tasks, as JSON; `url_of` makes a task's polling_url."""
    entries = [
        {
            "id": listed.record.id,
            "model": listed.record.generation.model,
            "status": _word(listed.record.state, processing_status),
            "created_at": round(listed.record.created_at, 3),
            "cost": _charged(listed.record) if listed.record.state.is_final else to_credits(listed.record.cost),
            "progress": None if listed.record.state.is_final else round(listed.progress, 4),
            "polling_url": url_of(listed.record.id),
        }
        for listed in tasks
    ]
    return _encode({"tasks": entries, "next_cursor": next_cursor})


def _charged(record: TaskRecord) -> float:
    """What a task has cost that has ended, in credits."""
    is_charged = record.state is State.READY or (record.refusal is not None and record.refusal.charged)
    return to_credits(record.cost) if is_charged else 0.0


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
    if record.generation.pictures:
        details["input_pictures"] = {picture.name: str(picture.size) for picture in record.generation.pictures}
    if record.drawn is not None:
        details |= {"drawn_by": record.drawn.drawn_by, **record.drawn.facts}
    if record.state is State.CANCELLED:
        details |= {"error": CANCELLED}
    if record.refusal is not None:
        details |= {REASONS: record.refusal.categories, "moderated": record.refusal.about}
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
