"""The client: one connection pool, a few calls, retries where they are safe."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import httpx

from fluxserve.client import answers, events
from fluxserve.client.answers import Entry, JsonObject, Progress, Result, Task
from fluxserve.client.calls import FIRST_PAUSE_S, RETRIES, Calls, Flow, Patience, Sleep
from fluxserve.client.errors import ClientError
from fluxserve.client.pictures import Picture
from fluxserve.client.progress import Report, reporting

#: A stream that is silent for longer than this was cut off: a server says something every 15 s.
LONGEST_SILENCE_S = 45.0
#: What is drawn where nothing else is said.
MODEL = "flux-dev"
LOCAL = "http://127.0.0.1:8808"
T = TypeVar("T")


def named_or_set(base_url: str | None, api_key: str | None) -> tuple[str, str]:
    """Where to, and with which key: as given, or from FLUXSERVE_URL and FLUXSERVE_API_KEY. Raises ClientError."""
    key = api_key or os.environ.get("FLUXSERVE_API_KEY", "")
    if not key:
        raise ClientError("No API key: give api_key, or set FLUXSERVE_API_KEY.")
    return base_url or os.environ.get("FLUXSERVE_URL", LOCAL), key


class Client:
    """Speaks to one server with one key. Use it as a context manager, or close it.

    Any server of this API: fluxserve, the hosted one (`https://api.bfl.ai`) and CometAPI (`https://api.cometapi.com`).

    >>> with Client() as client:
    ...     apple = client.generate("a red apple", width=256, height=256, seed=7)
    ...     green = client.generate("a green apple", "flux-kontext-pro", input_image=apple)
    >>> green.save("green.png")
    PosixPath('green.png')
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`base_url` is the server's origin, also with a dialect's path behind it; `timeout`: seconds for a call.

        Both are taken from FLUXSERVE_URL and FLUXSERVE_API_KEY where they are not given.
        """
        base_url, api_key = named_or_set(base_url, api_key)
        self._calls = Calls(base_url, api_key, timeout=timeout, clock=clock)
        self._timeout = timeout
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

    def generate(
        self, prompt: str, model: str = MODEL, *, timeout: float | None = 300.0, **parameters: object
    ) -> Picture:
        """From a prompt to its picture. Pictures go in as paths, bytes, Pillow's images or `Picture`s.

        Raises ApiError, TaskFailed or TaskTimeout.

        >>> with Client() as client:
        ...     client.generate("a red apple", "flux-schnell", width=256, height=256).pil().size
        (256, 256)
        """
        return self._run(self._calls.generate(model, prompt, parameters, timeout))

    def map(
        self,
        prompts: Iterable[str],
        model: str = MODEL,
        *,
        concurrency: int = 4,
        progress: bool | Report = False,
        timeout: float | None = 300.0,
        **parameters: object,
    ) -> Iterator[Picture]:
        """Their pictures in their order, of which `concurrency` are asked for at a time, and as many drawn ahead.

        `progress` shows a bar, or is called with how many are done and how many there are in all. Raises what
        `generate` does for the first that fails, and asks for no more then.

        >>> with Client() as client:
        ...     [p.prompt for p in client.map(["an apple", "a pear"], width=256, height=256)]
        ['an apple', 'a pear']
        """
        wanted = list(prompts)
        asked: deque[Future[Picture]] = deque()
        with reporting(progress, len(wanted)) as report, ThreadPoolExecutor(max(1, concurrency)) as pool:
            try:
                for done in range(len(wanted)):
                    ahead = wanted[done + len(asked) : done + 2 * concurrency]
                    asked += [pool.submit(self.generate, one, model, timeout=timeout, **parameters) for one in ahead]
                    picture = asked[0].result()
                    asked.popleft()
                    report(done + 1, len(wanted))
                    yield picture
            finally:
                for one in asked:
                    one.cancel()

    def create(
        self,
        model: str,
        prompt: str,
        parameters: JsonObject | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Task:
        """Submit a task. Safe to retry: without a key of your own, each call makes one. Raises ApiError."""
        return self._run(self._calls.create(model, prompt, parameters, idempotency_key))

    def poll(self, task: Task) -> Result | float:
        """Look once: the result, or the progress from 0 to 1. Raises TaskFailed or TaskNotFound."""
        looked = self._run(self._calls.look(task))
        return looked if isinstance(looked, Result) else looked.progress

    def wait(self, task: Task, *, timeout: float | None = 300.0) -> Result:
        """Wait until the task has ended. Raises TaskFailed, TaskNotFound or TaskTimeout.

        The server is asked to answer at the task's end; one that answers at once is polled with back-off.
        """
        return self._run(self._calls.wait(task, timeout))

    def events(
        self, task: Task, *, previews: bool = False, timeout: float | None = 300.0, while_moving: bool = False
    ) -> Generator[Progress | Result, None, None]:
        """The task's progress as it comes, and the result last. Raises TaskFailed, TaskNotFound or TaskTimeout.

        `timeout`: seconds in all or, `while_moving`, since the task last came nearer to its end. A server that has no
        stream of events, or none left, is polled instead. Whoever stops early closes it.
        """
        patience, attempt = self._calls.patience(task, timeout, while_moving=while_moving), 0
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
        ask = self._calls.events_of(task, previews=previews)
        patience = httpx.Timeout(self._timeout, read=longest_silence)
        with self._http.stream(ask.method, ask.url, headers=ask.headers, timeout=patience) as response:
            if not events.is_stream(response):
                raise _NoStreamError
            yield from events.read(response.iter_lines())

    def _polls(self, task: Task, patience: Patience, *, previews: bool) -> Iterator[Progress | Result]:
        """Look until the task has ended."""
        looks = self._calls.looks(task, patience, previews=previews)
        looked: Progress | Result | None = None
        while not isinstance(looked, Result):
            looked = self._run(looks.next())
            yield looked

    def cancel(self, task: Task) -> Result | None:
        """End a task, if it has not ended: the result where it was ready before, else None. Raises TaskNotFound."""
        return self._run(self._calls.cancel(task))

    def tasks(self, status: str | None = None) -> Iterator[Entry]:
        """One's own tasks, newest first, page by page; `status`, such as "Ready", leaves only those of that word."""
        cursor: str | None = ""
        while cursor is not None:
            entries, cursor = self._run(self._calls.page(status, cursor))
            yield from entries

    def download(self, result: Result) -> Picture:
        """Fetch the picture. Raises ApiError when the link has expired. The link may lead elsewhere: it gets no key."""
        return self._run(self._calls.download(result))

    def models(self) -> list[JsonObject]:
        """What the server draws, as it describes it."""
        return list(self._run(self._calls.models()))

    def credits(self) -> float:
        """What is left on the key's account."""
        return self._run(self._calls.credits())

    def _run(self, flow: Flow[T]) -> T:
        """A call, with this client's connections and pauses."""
        back: httpx.Response | httpx.TransportError | None = None
        while True:
            try:
                step = flow.send(back)
            except StopIteration as stop:
                outcome: T = stop.value
                return outcome
            back = None
            if isinstance(step, Sleep):
                self._sleep(step.seconds)
                continue
            try:
                back = self._http.request(step.method, step.url, json=step.json, headers=step.headers)
            except httpx.TransportError as error:
                back = error


def generate(
    prompt: str, model: str = MODEL, *, base_url: str | None = None, api_key: str | None = None, **parameters: object
) -> Picture:
    """One picture, with a client of its own: see `Client.generate`.

    >>> generate("a red apple", width=256, height=256).prompt
    'a red apple'
    """
    with Client(base_url, api_key) as client:
        return client.generate(prompt, model, **parameters)  # type: ignore[arg-type]  # timeout among them


class _NoStreamError(Exception):
    """The server does not answer with events."""
