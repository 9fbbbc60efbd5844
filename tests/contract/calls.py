"""A request that is answered bit by bit, or late, or whose caller hangs up: below httpx, which waits for the whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from inprocess import Json, Server

#: Whatever is waited for comes within this time, or not at all.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event; `data` is read as JSON."""

    name: str
    id: str
    data: Json


class Call:
    """One request, a GET unless it is said otherwise; `body` is sent at once."""

    def __init__(
        self,
        server: Server,
        url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes | None = None,
        app: Callable[..., Any] | None = None,
    ) -> None:
        self._server = server
        self._body = body
        self._parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._hung_up, self._line_is_free = asyncio.Event(), asyncio.Event()
        self._line_is_free.set()
        self._text = ""
        self.is_complete = False
        given = {"host": "flux.test", **({} if key is None else {"x-key": key}), **(headers or {})}
        path = urlsplit(url)
        scope = {
            "type": "http", "method": method, "scheme": "http", "path": path.path, "raw_path": path.path.encode(),
            "query_string": path.query.encode(), "client": ("127.0.0.1", 1234),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        self._task = server.run(self._begin(app or server.app, scope))

    async def _begin(self, app: Callable[..., Any], scope: Mapping[str, object]) -> asyncio.Task[None]:
        return asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, object]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self._parts.put_nowait(message)
        await self._line_is_free.wait()

    # What the caller does

    def hang_up(self) -> None:
        """Go away; the server has let go of everything when this returns."""
        self._hung_up.set()
        self._server.run(asyncio.wait_for(self._task, PATIENCE_S))

    def stop_reading(self) -> None:
        """Take nothing more from the line."""
        self._line_is_free.clear()

    def read_on(self) -> None:
        """Take what comes again."""
        self._line_is_free.set()

    # What the caller sees

    def begin(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        message = self._next_part()
        assert message["type"] == "http.response.start"
        return message["status"], {name.decode(): value.decode() for name, value in message["headers"]}

    def whole(self) -> str:
        """Everything that is still to come, to the end."""
        while not self.is_complete:
            self._read()
        text, self._text = self._text, ""
        return text

    def block(self) -> str:
        """The next event, comment or instruction as it stands."""
        while "\n\n" not in self._text:
            assert not self.is_complete, "the stream has ended"
            self._read()
        block, _, self._text = self._text.partition("\n\n")
        return block

    def event(self) -> Event:
        """The next event, past comments and instructions."""
        while not (block := self.block()).startswith("event:"):
            pass
        name, event_id, data = (line.partition(": ")[2] for line in block.split("\n"))
        return Event(name, event_id, json.loads(data))

    def has_more(self) -> bool:
        """Whether anything came that was not read yet."""
        return bool(self._text) or not self._parts.empty()

    def is_over(self) -> bool:
        """The server has ended the answer, and nothing is left to read."""
        return not self.whole() and self.is_complete

    def _read(self) -> None:
        message = self._next_part()
        self._text += message.get("body", b"").decode()
        self.is_complete = not message.get("more_body", False)

    def _next_part(self) -> dict[str, Any]:
        return self._server.run(asyncio.wait_for(self._parts.get(), PATIENCE_S))


def waits(server: Server, tasks: int = 1) -> None:
    """Let the server go on until so many tasks are watched."""
    deadline = time.monotonic() + PATIENCE_S
    while len(server.service.watches) != tasks:
        assert time.monotonic() < deadline
        server.run(asyncio.sleep(0))
