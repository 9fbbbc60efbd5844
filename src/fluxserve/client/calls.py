"""What is asked of a server and what its answers mean, without sockets, threads or an event loop.

Each call is a generator: it yields a request to be sent or seconds to be slept, is sent the response or the error of
the transport, and returns the outcome. `Client` and `AsyncClient` run the same calls.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import httpx

from fluxserve.client import answers
from fluxserve.client.answers import Entry, JsonObject, Progress, Result, Task
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
from fluxserve.client.pictures import Picture, encoded

FIRST_POLL_S = 0.05
LAST_POLL_S = 2.0
#: A server that can holds a poll so long, until the task has ended.
LONG_POLL_S = 20.0
#: Retries of a call that was not answered, or answered 429 or 503. A submit carries an idempotency key, so it is
#: never charged twice.
RETRIES = 5
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
#: Tasks asked for at a time; the most that a server answers.
PAGE = 200
#: Where the dialects of the API begin, as it is often pasted into a base address.
BFL, COMETAPI = "/v1", "/flux/v1"
_DIALECTS = (COMETAPI, BFL)
#: Servers that speak the second dialect, whatever path is written behind them.
_COMETAPI_HOST = "cometapi.com"
#: Polls of the hosted API lead to other hosts of it.
_BFL_DOMAIN = ".bfl.ai"
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
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request to be sent; the answer, or the transport's error, comes back."""

    method: str
    url: str
    json: JsonObject | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleep:
    """So many seconds; nothing comes back."""

    seconds: float


Back = httpx.Response | httpx.TransportError | None
Flow = Generator[Ask | Sleep, Back, T]


def origin_of(address: str) -> str:
    """A server's origin, whether or not a dialect's path is behind it."""
    origin = address.rstrip("/")
    for path in _DIALECTS:
        origin = origin.removesuffix(path)
    return origin


def prefix_of(address: str) -> str:
    """Where the dialect begins that a server is spoken to in: BFL's, unless the address says otherwise."""
    host = httpx.URL(address).host
    is_cometapi = host == _COMETAPI_HOST or host.endswith("." + _COMETAPI_HOST)
    return COMETAPI if is_cometapi or address.rstrip("/").endswith(COMETAPI) else BFL


class Calls:
    """The calls of one key to one server."""

    def __init__(self, base_url: str, api_key: str, *, timeout: float, clock: Callable[[], float]) -> None:
        """See `Client`."""
        self.base = origin_of(base_url)
        self._prefix = prefix_of(base_url)
        self._key = api_key
        self._timeout = timeout
        self._clock = clock

    def create(self, model: str, prompt: str, parameters: JsonObject | None, idempotency_key: str | None) -> Flow[Task]:
        """Submit a task. Raises ApiError."""
        given = {name: encoded(value) for name, value in (parameters or {}).items()}
        headers = {"idempotency-key": idempotency_key or str(uuid.uuid4())}
        body = {"prompt": prompt, **given}
        return answers.task((yield from self._call("POST", f"/{model}", json=body, headers=headers)))

    def look(self, task: Task, *, wait: float = 0.0, previews: bool = False) -> Flow[Result | Progress]:
        """Look once, held by the server for `wait` seconds at most. Raises TaskFailed or TaskNotFound."""
        asked = {**({"wait": f"{wait:.1f}"} if wait > 0 else {}), **({"preview": "true"} if previews else {})}
        url = self._polling_url(task)
        answer = yield from self._call("GET", str(httpx.URL(url).copy_merge_params(asked)) if asked else url)
        return answers.outcome(task.id, answer)

    def wait(self, task: Task, timeout: float | None) -> Flow[Result]:
        """Look until the task has ended."""
        looks = self.looks(task, Patience(task, timeout, self._clock), hold=min(LONG_POLL_S, self._timeout / 2))
        while True:
            looked = yield from looks.next()
            if isinstance(looked, Result):
                return looked

    def looks(self, task: Task, patience: Patience, *, hold: float = 0.0, previews: bool = False) -> Looks:
        """One after the other, held by the server for `hold` seconds, or with back-off."""
        return Looks(self, task, patience, hold, previews)

    def cancel(self, task: Task) -> Flow[Result | None]:
        """The result where it was ready before, else None. Raises TaskNotFound."""
        answer = yield from self._call("POST", f"/tasks/{task.id}/cancel")
        try:
            outcome = answers.outcome(task.id, answer)
        except TaskFailed:  # now, or before
            return None
        return outcome if isinstance(outcome, Result) else None

    def page(self, status: str | None, cursor: str) -> Flow[tuple[Sequence[Entry], str | None]]:
        """Some of one's own tasks, and where the next ones begin."""
        query = httpx.QueryParams({"status": status or "", "cursor": cursor, "limit": PAGE})
        answer = yield from self._call("GET", f"/tasks?{query}")
        entries = [answers.entry(entry) for entry in cast("list[JsonObject]", answers.field(answer, "tasks"))]
        following = answers.field(answer, "next_cursor")
        return entries, None if following is None else str(following)

    def download(self, result: Result) -> Flow[Picture]:
        """The link may lead elsewhere: it gets no key."""
        response = yield from self._send(Ask(method="GET", url=result.sample))
        if response.status_code != 200:
            raise _refusal(response)
        return Picture(data=response.content, media_type=response.headers.get("content-type", ""), result=result)

    def generate(self, model: str, prompt: str, parameters: JsonObject, timeout: float | None) -> Flow[Picture]:
        """From the prompt to the picture."""
        task = yield from self.create(model, prompt, parameters, None)
        return (yield from self.download((yield from self.wait(task, timeout))))

    def models(self) -> Flow[Sequence[JsonObject]]:
        """What the server draws."""
        answer = yield from self._call("GET", f"{self.base}{BFL}/models")
        return cast("list[JsonObject]", answers.field(answer, "data"))

    def credits(self) -> Flow[float]:
        """What is left."""
        answer = yield from self._call("GET", "/credits")
        return float(cast("float", answers.field(answer, "credits")))

    def events_of(self, task: Task, *, previews: bool) -> Ask:
        """The task's stream of events."""
        url = f"{self.base}{self._prefix}/tasks/{task.id}/events{'?preview=true' if previews else ''}"
        return Ask(method="GET", url=url, headers=self._credentials(url))

    def patience(self, task: Task, timeout: float | None, *, while_moving: bool = False) -> Patience:
        """How long its caller waits."""
        return Patience(task, timeout, self._clock, while_moving=while_moving)

    def _polling_url(self, task: Task) -> str:
        """Its own; a gateway that only passes on the one of the server behind it is asked itself."""
        is_own = self._is_trusted(task.polling_url)
        return task.polling_url if is_own or self._prefix == BFL else f"{self.base}{COMETAPI}/get_result?id={task.id}"

    def _credentials(self, url: str) -> Mapping[str, str]:
        """The key is for the server that it was given for."""
        if not self._is_trusted(url):
            return {}
        return {"authorization": f"Bearer {self._key}"} if self._prefix == COMETAPI else {"x-key": self._key}

    def _is_trusted(self, url: str) -> bool:
        there, here = httpx.URL(url), httpx.URL(self.base)
        if (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port):
            return True
        both = (there.host, here.host)
        return there.scheme == "https" and all(host.endswith(_BFL_DOMAIN) for host in both)

    def _call(
        self, method: str, path: str, *, json: JsonObject | None = None, headers: Mapping[str, str] | None = None
    ) -> Flow[JsonObject]:
        url = path if "://" in path else f"{self.base}{self._prefix}{path}"
        asked = Ask(method=method, url=url, json=json, headers={**self._credentials(url), **(headers or {})})
        response = yield from self._send(asked)
        body = _json(response)
        if response.status_code == 404 and body.get("status") == "Task not found":
            return body
        if response.status_code != 200:
            raise _refusal(response)
        return body

    def _send(self, ask: Ask) -> Flow[httpx.Response]:
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES
            pause = FIRST_PAUSE_S * 2**attempt
            back = yield ask
            if isinstance(back, httpx.Response):
                if back.status_code not in _RETRYABLE or last:
                    return back
                pause = max(pause, _retry_after(back))
            elif last:
                raise ServerUnavailable(f"{self.base} does not answer ({type(back).__name__}).") from back
            yield Sleep(min(pause, LONGEST_PAUSE_S) * random.uniform(1.0, 1.2))  # noqa: S311 - jitter
        raise AssertionError("the last attempt returns or raises")


class Looks:
    """Looks at one task until it has ended. Raises TaskFailed, TaskNotFound or TaskTimeout."""

    def __init__(self, calls: Calls, task: Task, patience: Patience, hold: float, previews: bool) -> None:
        self._calls = calls
        self._task = task
        self._patience = patience
        self._hold = hold
        self._previews = previews
        self._pause = FIRST_POLL_S
        self._began: float | None = None

    def next(self) -> Flow[Progress | Result]:
        """After a pause, but for the first one."""
        if self._began is not None:
            self._patience.check(self._pause)
            if time.monotonic() - self._began < self._pause:
                yield Sleep(self._pause)
            self._pause = min(self._pause * 1.3, LAST_POLL_S)
        self._began = time.monotonic()
        try:
            looked = yield from self._look()
        except ServerUnavailable:
            if not self._hold:
                raise
            self._hold = 0.0  # something on the way may cut off what is held
            looked = yield from self._look()
        self._patience.saw(looked)
        return looked

    def _look(self) -> Flow[Progress | Result]:
        wait = min(self._hold, self._patience.left)
        return (yield from self._calls.look(self._task, wait=wait, previews=self._previews))


class Patience:
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


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


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
