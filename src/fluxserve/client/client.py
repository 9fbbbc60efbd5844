"""The client: one connection pool, a few calls, retries where they are safe."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import httpx

from fluxserve.client.errors import (
    ApiError,
    AuthenticationFailed,
    InsufficientCredits,
    RequestRejected,
    ServerUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TaskTimeout,
    TooManyRequests,
)

JsonObject = Mapping[str, object]
FIRST_POLL_S = 0.05
LAST_POLL_S = 2.0
#: Retries of a call that was not answered, or answered 429 or 503. A submit carries an idempotency key, so it is
#: never charged twice.
RETRIES = 5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
#: Tasks asked for at a time; the most that a server answers.
PAGE = 200
_RETRYABLE = frozenset({429, 502, 503, 504})
_ERRORS: Mapping[int, type[ApiError]] = {
    400: RequestRejected,
    401: AuthenticationFailed,
    402: InsufficientCredits,
    403: AuthenticationFailed,
    413: RequestRejected,
    422: RequestRejected,
    429: TooManyRequests,
}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A downloaded picture and where it came from."""

    data: bytes
    media_type: str
    result: Result


class Client:
    """Speaks to one server with one key. Use it as a context manager, or close it."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`base_url` is the server's origin, `timeout` seconds for one HTTP call."""
        self._base = base_url.rstrip("/")
        self._key = api_key
        self._http = httpx.Client(timeout=timeout, transport=transport)
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create(
        self,
        model: str,
        prompt: str,
        parameters: JsonObject | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Task:
        """Submit a task. Safe to retry: without a key of your own, each call makes one. Raises ApiError."""
        body = {"prompt": prompt, **(parameters or {})}
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        answer = self._call("POST", f"{self._base}/v1/{model}", json=body, headers=headers)
        return Task(
            id=cast("str", _field(answer, "id")),
            polling_url=cast("str", _field(answer, "polling_url")),
            cost=cast("float | None", answer.get("cost")),
        )

    def poll(self, task: Task) -> Result | float:
        """Look once: the result, or the progress from 0 to 1. Raises TaskFailed or TaskNotFound."""
        return self._outcome(task, self._call("GET", task.polling_url))

    @staticmethod
    def _outcome(task: Task, answer: JsonObject) -> Result | float:
        status = _field(answer, "status")
        if status == "Ready":
            return _result(answer)
        details = cast("JsonObject", answer.get("details") or {})
        if status == "Error" and details.get("error") == "cancelled":
            raise TaskCancelled(f"Task {task.id} was cancelled.")
        if status == "Error":
            raise TaskFailed(str(details.get("error") or "The task failed."))
        if status in ("Request Moderated", "Content Moderated"):
            raise TaskModerated(f"{status}: {details.get('Moderation Reasons') or 'no reason given'}")
        if status == "Task not found":
            raise TaskNotFound(f"The server does not know task {task.id}.")
        return float(cast("float | None", answer.get("progress")) or 0.0)

    def wait(
        self, task: Task, *, timeout: float | None = 300.0, on_progress: Callable[[float], None] | None = None
    ) -> Result:
        """Poll with back-off until the task has ended. Raises TaskFailed, TaskNotFound or TaskTimeout."""
        began = time.monotonic()
        pause = FIRST_POLL_S
        while True:
            answer = self.poll(task)
            if isinstance(answer, Result):
                return answer
            if on_progress is not None:
                on_progress(answer)
            if timeout is not None and time.monotonic() - began + pause > timeout:
                raise TaskTimeout(f"Task {task.id} was not ready after {timeout:.0f} s; wait again to go on.")
            self._sleep(pause)
            pause = min(pause * 1.3, LAST_POLL_S)

    def cancel(self, task: Task) -> Result | None:
        """End a task, if it has not ended: the result where it was ready before, else None. Raises TaskNotFound."""
        answer = self._call("POST", f"{self._base}/v1/tasks/{task.id}/cancel")
        try:
            outcome = self._outcome(task, answer)
        except TaskFailed:  # now, or before
            return None
        return outcome if isinstance(outcome, Result) else None

    def tasks(self, status: str | None = None) -> Iterator[Entry]:
        """One's own tasks, newest first, page by page; `status`, such as "Ready", leaves only those of that word."""
        cursor: object = ""
        while cursor is not None:
            query = httpx.QueryParams({"status": status or "", "cursor": str(cursor), "limit": PAGE})
            answer = self._call("GET", f"{self._base}/v1/tasks?{query}")
            for entry in cast("list[JsonObject]", _field(answer, "tasks")):
                yield _entry(entry)
            cursor = _field(answer, "next_cursor")

    def download(self, result: Result) -> Picture:
        """Fetch the picture. Raises ApiError when the link has expired. The link may lead elsewhere: it gets no key."""
        response = self._send("GET", result.sample)
        if response.status_code != 200:
            raise _refusal(response)
        return Picture(data=response.content, media_type=response.headers.get("content-type", ""), result=result)

    def models(self) -> list[JsonObject]:
        """What the server draws, as it describes it."""
        return cast("list[JsonObject]", _field(self._call("GET", f"{self._base}/v1/models"), "data"))

    def _call(
        self, method: str, url: str, *, json: JsonObject | None = None, headers: Mapping[str, str] | None = None
    ) -> JsonObject:
        response = self._send(method, url, json=json, headers={"x-key": self._key, **(headers or {})})
        body = _json(response)
        if response.status_code == 404 and body.get("status") == "Task not found":
            return body
        if response.status_code != 200:
            raise _refusal(response)
        return body

    def _send(
        self, method: str, url: str, *, json: JsonObject | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES
            pause = FIRST_PAUSE_S * 2**attempt
            try:
                response = self._http.request(method, url, json=json, headers=headers)
            except httpx.TransportError as error:
                if last:
                    raise ServerUnavailable(f"{self._base} does not answer ({type(error).__name__}).") from error
            else:
                if response.status_code not in _RETRYABLE or last:
                    return response
                pause = max(pause, _retry_after(response))
            self._sleep(min(pause, LONGEST_PAUSE_S) * random.uniform(1.0, 1.2))  # noqa: S311 - jitter
        raise AssertionError("the last attempt returns or raises")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _field(answer: object, name: str) -> object:
    if not isinstance(answer, Mapping) or name not in answer:
        raise ApiError(f"The answer has no {name}: is this a server of the Flux API?", 200)
    return answer[name]


def _entry(answer: JsonObject) -> Entry:
    task = Task(
        id=cast("str", _field(answer, "id")),
        polling_url=cast("str", _field(answer, "polling_url")),
        cost=cast("float | None", answer.get("cost")),
    )
    return Entry(
        task=task,
        model=cast("str", _field(answer, "model")),
        status=cast("str", _field(answer, "status")),
        created_at=cast("float", _field(answer, "created_at")),
        progress=cast("float | None", answer.get("progress")),
    )


def _result(answer: JsonObject) -> Result:
    result = _field(answer, "result")
    return Result(
        id=cast("str", _field(answer, "id")),
        sample=cast("str", _field(result, "sample")),
        prompt=cast("str", _field(result, "prompt")),
        seed=cast("int", _field(result, "seed")),
        duration=cast("float | None", cast("JsonObject", result).get("duration")),
        cost=cast("float | None", answer.get("cost")),
        details=cast("JsonObject", answer.get("details") or {}),
    )


def _json(response: httpx.Response) -> dict[str, object]:
    try:
        body = response.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _refusal(response: httpx.Response) -> ApiError | ServerUnavailable:
    body = _json(response)
    message = str(body.get("message") or body.get("detail") or f"HTTP {response.status_code}")
    if response.status_code >= 500:
        return ServerUnavailable(message)
    detail = body.get("detail")
    entries = [entry for entry in detail if isinstance(entry, dict)] if isinstance(detail, list) else []
    problems = [f"{'.'.join(map(str, entry.get('loc', [])[1:]))}: {entry.get('msg')}" for entry in entries]
    return _ERRORS.get(response.status_code, ApiError)(message, response.status_code, problems)
