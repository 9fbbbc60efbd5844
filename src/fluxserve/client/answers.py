"""What a server answers, as values. An answer that is none of the Flux API's raises ApiError."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fluxserve.client.errors import ApiError, TaskCancelled, TaskFailed, TaskModerated, TaskNotFound

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An accepted task; `polling_url` needs no key. `cost` in credits."""

    id: str
    polling_url: str
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A task in the list of one's own; `status` is the server's word, `progress` is None once it has ended."""

    task: Task
    model: str
    status: str
    created_at: float
    progress: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a task is, from 0 to 1; `preview` is a small JPEG of what it is heading for, where there is one.

    `queue_position`: so many come before it that have made no step yet, None once it has made one; `eta_seconds`: until
    it is ready. None too where the server does not say.
    """

    progress: float
    preview: bytes | None = None
    queue_position: int | None = None
    eta_seconds: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished task. `sample` is a link that expires: download it soon, or `result` again for a new one."""

    id: str
    sample: str
    prompt: str
    seed: int
    duration: float | None
    cost: float | None
    details: JsonObject

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server did not do as asked."""
        return tuple(cast("list[str]", self.details.get("warnings") or ()))


def field(answer: object, name: str) -> object:
    """What the answer holds under that name."""
    if not isinstance(answer, Mapping) or name not in answer:
        raise ApiError(f"The answer has no {name}: is this a server of the Flux API?", 200)
    return answer[name]


def task(answer: JsonObject) -> Task:
    """The answer to a submit, or a task in a list."""
    return Task(
        id=cast("str", field(answer, "id")),
        polling_url=cast("str", field(answer, "polling_url")),
        cost=cast("float | None", answer.get("cost")),
    )


def entry(answer: JsonObject) -> Entry:
    """A task in a list."""
    return Entry(
        task=task(answer),
        model=cast("str", field(answer, "model")),
        status=cast("str", field(answer, "status")),
        created_at=cast("float", field(answer, "created_at")),
        progress=cast("float | None", answer.get("progress")),
    )


def outcome(task_id: str, answer: JsonObject) -> Result | Progress:
    """What a poll says of a task. Raises TaskFailed or TaskNotFound."""
    status = field(answer, "status")
    if status == "Ready":
        return _result(answer)
    details = cast("JsonObject", answer.get("details") or {})
    if status == "Error" and details.get("error") == "cancelled":
        raise TaskCancelled(f"Task {task_id} was cancelled.")
    if status == "Error":
        raise TaskFailed(str(details.get("error") or "The task failed."))
    if status in ("Request Moderated", "Content Moderated"):
        raise TaskModerated(f"{status}: {details.get('Moderation Reasons') or 'no reason given'}")
    if status == "Task not found":
        raise TaskNotFound(f"The server does not know task {task_id}.")
    progress = float(cast("float | None", answer.get("progress")) or 0.0)
    return Progress(
        progress=progress,
        preview=_preview(answer.get("preview")),
        queue_position=cast("int | None", details.get("queue_position")),
        eta_seconds=cast("float | None", details.get("eta_seconds")),
        warnings=tuple(cast("list[str]", details.get("warnings") or ())),
    )


def _preview(value: object) -> bytes | None:
    """The picture, where it is there in the form that we know."""
    data = value.get("data") if isinstance(value, Mapping) else None
    try:
        return base64.b64decode(data, validate=True) if isinstance(data, str) else None
    except binascii.Error:
        return None


def _result(answer: JsonObject) -> Result:
    result = field(answer, "result")
    return Result(
        id=cast("str", field(answer, "id")),
        sample=cast("str", field(result, "sample")),
        prompt=cast("str", field(result, "prompt")),
        seed=cast("int", field(result, "seed")),
        duration=cast("float | None", cast("JsonObject", result).get("duration")),
        cost=cast("float | None", answer.get("cost")),
        details=cast("JsonObject", answer.get("details") or {}),
    )
