"""`GET {prefix}/tasks/{id}/events`, plain ASGI: a task's news as server-sent events, until its end.

    status    the task waits, or is drawn; always the first event of a task that has not ended
    progress  a step was made
    preview   a new preview, where `preview=true` asked for them
    result    the task has ended: the last event

The data of each is the object that a poll would answer then. A stream keeps no list of what it has to say: it sends
what is true when its caller has taken the event before, so a slow one misses steps, and one that comes back sees the
task as it is now.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from starlette.types import Receive, Scope, Send

from fluxserve.api import auth, query
from fluxserve.api.dialect import Dialect
from fluxserve.api.polls import Polls
from fluxserve.api.presence import listening
from fluxserve.api.responses import Headers, send_json
from fluxserve.errors import StreamsFull, TooManyStreams
from fluxserve.service.service import Service
from fluxserve.service.views import View
from fluxserve.settings import Settings
from fluxserve.tasks.task import State

#: A stream that has nothing to say says so this often, in seconds, so that nobody on the way takes it for dead.
HEARTBEAT_S = 15.0
#: The id of a task's last event: whoever comes back with it has seen everything.
LAST_ID = b"end"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-accel-buffering", b"no"),  # proxies like nginx would hold events back
]
#: Browsers come back this long after a stream was cut off, in milliseconds.
_BEGINNING = b"retry: 1000\n\n"
HEARTBEAT = b": nothing new\n\n"
#: A task's view, with its newest preview or without, as a poll shows it.
Render = Callable[[View, bool], bytes]


class Events:
    """Answers streams in every dialect."""

    def __init__(self, service: Service, polls: Polls, heartbeat: float = HEARTBEAT_S) -> None:
        self._service = service
        self._polls = polls
        self._heartbeat = heartbeat
        #: All that are open, those of other APIs too.
        self.streams = Streams(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect, task_id: str) -> None:
        """One stream; raises FluxserveError before it begins."""
        fields = query.parse(scope["query_string"])
        wants_previews = query.preview(fields)
        view = await self._polls.visible(scope, task_id, fields.get("t", ()))
        if view is None:
            await send_json(send, dialect.unknown_task_status, dialect.render_unknown(task_id))
        elif view.state.is_final and auth.header(scope, b"last-event-id") == LAST_ID.decode():
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await end_events(send)
        elif scope["method"] == "HEAD":
            await begin_events(send)
            await end_events(send)
        else:
            teller = Teller(
                lambda view, with_preview: self._polls.render(scope, view, dialect, with_preview=with_preview),
                self._service.preview if wants_previews else None,
            )
            with self.streams.one_more(view.account_id):
                await self._stream(view.id, receive, send, teller)

    async def _stream(self, task_id: str, receive: Receive, send: Send, teller: Teller) -> None:
        watching = self._service.watches.watching(task_id, end_only=False)
        with watching as watch, listening(receive, watch.wake) as is_gone:
            await begin_events(send)
            await send_events(send, _BEGINNING)
            woken = True
            while not is_gone() and (view := await self._service.look(task_id)) is not None:
                if (part := teller.news(view)) or not woken:
                    await send_events(send, part or HEARTBEAT)
                if view.state.is_final or watch.is_over:
                    break
                woken = await watch.news(self._heartbeat)
            await end_events(send)


class Teller:
    """What one stream has to say, after what it has said; `preview` tells a task's newest, None: nobody asked."""

    def __init__(self, render: Render, preview: Callable[[View], bytes | None] | None) -> None:
        self._render = render
        self._preview = preview
        self._count = 0
        self._told: tuple[State, float] | None = None
        self._shown: bytes | None = None

    def news(self, view: View) -> bytes:
        """The events that are due, in their format; empty: nothing has changed."""
        if view.state.is_final:
            return self._event(b"result", view, LAST_ID)
        events = b""
        now = (view.state, view.progress)
        if now != self._told:
            is_step = self._told is not None and self._told[0] is view.state
            events = self._event(b"progress" if is_step else b"status", view)
            self._told = now
        preview = self._preview(view) if self._preview else None
        if preview is not None and preview is not self._shown:
            events += self._event(b"preview", view, with_preview=True)
            self._shown = preview
        return events

    def _event(self, name: bytes, view: View, event_id: bytes = b"", *, with_preview: bool = False) -> bytes:
        self._count += 1
        data = self._render(view, with_preview)
        return b"event: %b\nid: %b\ndata: %b\n\n" % (name, event_id or b"%d" % self._count, data)


class Streams:
    """How many streams are open, in all and of each account's tasks."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_streams
        self._most_of_account = settings.max_account_streams
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_more(self, account_id: str) -> Iterator[None]:
        """Count a stream as long as the block runs; raises StreamsFull or TooManyStreams."""
        if self._open[account_id] >= self._most_of_account:
            raise TooManyStreams(
                f"{self._most_of_account} event streams of this account are open already. Close one, or poll."
            )
        if self._open.total() >= self._most:
            raise StreamsFull(f"{self._most} event streams are open already, and no more are served. Poll meanwhile.")
        self._open[account_id] += 1
        try:
            yield
        finally:
            self._open[account_id] -= 1
            if not self._open[account_id]:
                del self._open[account_id]


async def begin_events(send: Send, headers: Headers = ()) -> None:
    """A stream begins, with these headers beside its own."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *headers]})


async def send_events(send: Send, part: bytes) -> None:
    """Events or comments in their format."""
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def end_events(send: Send) -> None:
    """The stream is over."""
    await send({"type": "http.response.body", "body": b""})
