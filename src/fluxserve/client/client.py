"""The client: one connection pool, a few calls, retries where they are safe."""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Self, cast

import httpx

from fluxserve.client import answers, events
from fluxserve.client.answers import Entry, JsonObject, Picture, Progress, Result, Task
from fluxserve.client.errors import (
    ApiError,
    AuthenticationFailed,
    InsufficientCredits,
    RequestRejected,
    ServerUnavailable,
    TaskFailed,
    TaskTimeout,
    TooManyRequests,
)

FIRST_POLL_S = 0.05
LAST_POLL_S = 2.0
#: A server that can holds a poll so long, until the task has ended.
LONG_POLL_S = 20.0
#: A stream that is silent for longer than this was cut off: a server says something every 15 s.
LONGEST_SILENCE_S = 45.0
#: Retries of a call that was not answered, or answered 429 or 503. A submit carries an idempotency key, so it is
#: never charged twice.
RETRIES = 5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
#: Tasks asked for at a time; the most that a server answers.
PAGE = 200
#: Where the dialects of the API begin, as it is often pasted into a base address.
_DIALECTS = ("/flux/v1", "/v1")
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


def origin_of(address: str) -> str:
    """A server's origin, whether or not a dialect's path is behind it."""
    origin = address.rstrip("/")
    for path in _DIALECTS:
        origin = origin.removesuffix(path)
    return origin


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`base_url` is the server's origin, also with a dialect's path behind it; `timeout`: seconds for a call."""
        self._base = origin_of(base_url)
        self._key = api_key
        self._timeout = timeout
        self._http = httpx.Client(timeout=timeout, transport=transport)
        self._sleep = sleep
        self._clock = clock

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
        return answers.task(self._call("POST", f"{self._base}/v1/{model}", json=body, headers=headers))

    def poll(self, task: Task) -> Result | float:
        """Look once: the result, or the progress from 0 to 1. Raises TaskFailed or TaskNotFound."""
        looked = self._look(task)
        return looked if isinstance(looked, Result) else looked.progress

    def wait(self, task: Task, *, timeout: float | None = 300.0) -> Result:
        """Wait until the task has ended. Raises TaskFailed, TaskNotFound or TaskTimeout.

        The server is asked to answer at the task's end; one that answers at once is polled with back-off.
        """
        polls = self._polls(task, _Patience(task, timeout, self._clock), hold=min(LONG_POLL_S, self._timeout / 2))
        return next(looked for looked in polls if isinstance(looked, Result))

    def events(
        self, task: Task, *, previews: bool = False, timeout: float | None = 300.0, while_moving: bool = False
    ) -> Generator[Progress | Result, None, None]:
        """The task's progress as it comes, and the result last. Raises TaskFailed, TaskNotFound or TaskTimeout.

        `timeout`: seconds in all or, `while_moving`, since the task last came nearer to its end. A server that has no
        stream of events, or none left, is polled instead. Whoever stops early closes it.
        """
        patience, attempt = _Patience(task, timeout, self._clock, while_moving=while_moving), 0
        while attempt <= RETRIES:
            try:
                for answer in self._stream(task, previews, min(LONGEST_SILENCE_S, max(patience.left, 0.1))):
                    if answer is not None:
                        looked, attempt = answers.outcome(task.id, answer), 0
                        patience.saw(looked)
                        yield looked
                        if isinstance(looked, Result):
                            return
                    patience.check()
            except httpx.TransportError:
                patience.check()
            except _NoStreamError:
                break
            self._sleep(FIRST_PAUSE_S * 2**attempt)
            attempt += 1
        yield from self._polls(task, patience, previews=previews)

    def _stream(self, task: Task, previews: bool, longest_silence: float) -> Iterator[JsonObject | None]:
        """The data of each event, None beside them; ends where the stream is cut off. Raises _NoStreamError."""
        url = f"{self._base}/v1/tasks/{task.id}/events{'?preview=true' if previews else ''}"
        patience = httpx.Timeout(self._timeout, read=longest_silence)
        with self._http.stream("GET", url, headers={"x-key": self._key}, timeout=patience) as response:
            if not events.is_stream(response):
                raise _NoStreamError
            yield from events.read(response.iter_lines())

    def _polls(
        self, task: Task, patience: _Patience, *, hold: float = 0.0, previews: bool = False
    ) -> Iterator[Progress | Result]:
        """Look until the task has ended, held by the server for `hold` seconds, or with back-off."""
        pause = FIRST_POLL_S
        while True:
            began = time.monotonic()
            try:
                looked = self._look(task, wait=min(hold, patience.left), previews=previews)
            except ServerUnavailable:
                if not hold:
                    raise
                hold = 0.0  # something on the way may cut off what is held
                continue
            patience.saw(looked)
            yield looked
            if isinstance(looked, Result):
                return
            patience.check(pause)
            if time.monotonic() - began < pause:
                self._sleep(pause)
            pause = min(pause * 1.3, LAST_POLL_S)

    def _look(self, task: Task, *, wait: float = 0.0, previews: bool = False) -> Result | Progress:
        asked = {**({"wait": f"{wait:.1f}"} if wait > 0 else {}), **({"preview": "true"} if previews else {})}
        url = str(httpx.URL(task.polling_url).copy_merge_params(asked)) if asked else task.polling_url
        return answers.outcome(task.id, self._call("GET", url))

    def cancel(self, task: Task) -> Result | None:
        """End a task, if it has not ended: the result where it was ready before, else None. Raises TaskNotFound."""
        answer = self._call("POST", f"{self._base}/v1/tasks/{task.id}/cancel")
        try:
            outcome = answers.outcome(task.id, answer)
        except TaskFailed:  # now, or before
            return None
        return outcome if isinstance(outcome, Result) else None

    def tasks(self, status: str | None = None) -> Iterator[Entry]:
        """One's own tasks, newest first, page by page; `status`, such as "Ready", leaves only those of that word."""
        cursor: object = ""
        while cursor is not None:
            query = httpx.QueryParams({"status": status or "", "cursor": str(cursor), "limit": PAGE})
            answer = self._call("GET", f"{self._base}/v1/tasks?{query}")
            for entry in cast("list[JsonObject]", answers.field(answer, "tasks")):
                yield answers.entry(entry)
            cursor = answers.field(answer, "next_cursor")

    def download(self, result: Result) -> Picture:
        """Fetch the picture. Raises ApiError when the link has expired. The link may lead elsewhere: it gets no key."""
        response = self._send("GET", result.sample)
        if response.status_code != 200:
            raise _refusal(response)
        return Picture(data=response.content, media_type=response.headers.get("content-type", ""), result=result)

    def models(self) -> list[JsonObject]:
        """What the server draws, as it describes it."""
        return cast("list[JsonObject]", answers.field(self._call("GET", f"{self._base}/v1/models"), "data"))

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


class _NoStreamError(Exception):
    """The server does not answer with events."""


class _Patience:
    """How long a caller waits for a task; `timeout` None: for ever. `while_moving`: since it last came nearer."""

    def __init__(
        self, task: Task, timeout: float | None, clock: Callable[[], float], *, while_moving: bool = False
    ) -> None:
        self._task = task
        self._timeout = math.inf if timeout is None else timeout
        self._clock = clock
        self._while_moving = while_moving
        self._ends = clock() + self._timeout
        self._nearest: tuple[float, ...] = (-math.inf,) * 3

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - self._clock()

    def saw(self, looked: Progress | Result) -> None:
        """More progress, fewer before it, or fewer seconds left than ever before: it moves."""
        if not self._while_moving or isinstance(looked, Result):
            return
        position, eta = looked.queue_position, looked.eta_seconds
        now = (looked.progress, -math.inf if position is None else -position, -math.inf if eta is None else -eta)
        if any(one > best for one, best in zip(now, self._nearest, strict=True)):
            self._ends = self._clock() + self._timeout
        self._nearest = tuple(map(max, now, self._nearest))

    def check(self, pause: float = 0.0) -> None:
        """Raise TaskTimeout when the time has come, or would during `pause`."""
        if self.left >= pause:
            return
        what = "came no nearer for" if self._while_moving else "was not ready after"
        raise TaskTimeout(f"Task {self._task.id} {what} {self._timeout:.0f} s; wait again to go on.")


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
