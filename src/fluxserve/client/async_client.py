"""The client for programs with an event loop: the same calls, awaited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import httpx

from fluxserve.client.answers import Entry, JsonObject, Progress, Result, Task
from fluxserve.client.calls import Calls, Flow, Sleep
from fluxserve.client.client import MODEL, named_or_set
from fluxserve.client.pictures import Picture
from fluxserve.client.progress import Report, reporting

T = TypeVar("T")


class AsyncClient:
    """As `Client`, for one event loop.

    >>> async def draw():
    ...     async with AsyncClient() as client:
    ...         return await client.generate("a red apple", width=256, height=256)
    >>> asyncio.run(draw()).prompt
    'a red apple'
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `Client`."""
        base_url, api_key = named_or_set(base_url, api_key)
        self._calls = Calls(base_url, api_key, timeout=timeout, clock=clock)
        self._http = httpx.AsyncClient(timeout=timeout, transport=transport)
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: str, model: str = MODEL, *, timeout: float | None = 300.0, **parameters: object
    ) -> Picture:
        """From a prompt to its picture: see `Client.generate`. A cancelled wait leaves the task to the server."""
        return await self._run(self._calls.generate(model, prompt, parameters, timeout))

    async def map(
        self,
        prompts: Iterable[str],
        model: str = MODEL,
        *,
        concurrency: int = 4,
        progress: bool | Report = False,
        timeout: float | None = 300.0,
        **parameters: object,
    ) -> AsyncIterator[Picture]:
        """Their pictures in their order: see `Client.map`."""
        wanted = list(prompts)
        room, asked = asyncio.Semaphore(max(1, concurrency)), deque[asyncio.Task[Picture]]()

        async def draw(prompt: str) -> Picture:
            async with room:
                return await self.generate(prompt, model, timeout=timeout, **parameters)

        with reporting(progress, len(wanted)) as report:
            try:
                for done in range(len(wanted)):
                    ahead = wanted[done + len(asked) : done + 2 * concurrency]
                    asked += [asyncio.create_task(draw(one)) for one in ahead]
                    picture = await asked[0]
                    asked.popleft()
                    report(done + 1, len(wanted))
                    yield picture
            finally:
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    async def create(
        self, model: str, prompt: str, parameters: JsonObject | None = None, *, idempotency_key: str | None = None
    ) -> Task:
        """Submit a task: see `Client.create`."""
        return await self._run(self._calls.create(model, prompt, parameters, idempotency_key))

    async def poll(self, task: Task) -> Result | float:
        """Look once: see `Client.poll`."""
        looked = await self._run(self._calls.look(task))
        return looked if isinstance(looked, Result) else looked.progress

    async def wait(self, task: Task, *, timeout: float | None = 300.0) -> Result:
        """Wait until the task has ended: see `Client.wait`."""
        return await self._run(self._calls.wait(task, timeout))

    async def events(
        self, task: Task, *, previews: bool = False, timeout: float | None = 300.0, while_moving: bool = False
    ) -> AsyncIterator[Progress | Result]:
        """The task's progress, and the result last, by polls with back-off. Raises as `Client.events` does."""
        patience = self._calls.patience(task, timeout, while_moving=while_moving)
        looks = self._calls.looks(task, patience, previews=previews)
        looked: Progress | Result | None = None
        while not isinstance(looked, Result):
            looked = await self._run(looks.next())
            yield looked

    async def cancel(self, task: Task) -> Result | None:
        """End a task: see `Client.cancel`."""
        return await self._run(self._calls.cancel(task))

    async def tasks(self, status: str | None = None) -> AsyncIterator[Entry]:
        """One's own tasks: see `Client.tasks`."""
        cursor: str | None = ""
        while cursor is not None:
            entries, cursor = await self._run(self._calls.page(status, cursor))
            for entry in entries:
                yield entry

    async def download(self, result: Result) -> Picture:
        """Fetch the picture: see `Client.download`."""
        return await self._run(self._calls.download(result))

    async def models(self) -> list[JsonObject]:
        """What the server draws, as it describes it."""
        return list(await self._run(self._calls.models()))

    async def credits(self) -> float:
        """What is left on the key's account."""
        return await self._run(self._calls.credits())

    async def _run(self, flow: Flow[T]) -> T:
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
                await self._sleep(step.seconds)
                continue
            try:
                back = await self._http.request(step.method, step.url, json=step.json, headers=step.headers)
            except httpx.TransportError as error:
                back = error
