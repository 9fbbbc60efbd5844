"""The client's events: from a stream, after one that was cut off, and from polls where there is none."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from fluxserve.client import (
    Client,
    Progress,
    Result,
    ServerUnavailable,
    Task,
    TaskCancelled,
    TaskNotFound,
    TaskTimeout,
)
from fluxserve.client.calls import LAST_POLL_S, RETRIES
from fluxserve.client.client import LONGEST_SILENCE_S

ORIGIN = "http://flux.test"
TASK = Task(id="t1", polling_url=f"{ORIGIN}/v1/get_result?id=t1&t=capability", cost=2.5)
PENDING = {"id": "t1", "status": "Pending", "result": None, "progress": 0.25, "details": None, "preview": None}
READY = PENDING | {"status": "Ready", "progress": None, "result": {"sample": "s", "prompt": "p", "seed": 7}}
Answer = httpx.Response | Exception


class Scene:
    """A client and the answers that its server will give."""

    def __init__(self, *answers: Answer, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []
        self.slept: list[float] = []
        self.client = Client(
            ORIGIN, "fx_key", transport=httpx.MockTransport(self._give), sleep=self.slept.append, clock=clock
        )

    def _give(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        given = self._answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def events(self, **settings: object) -> list[Progress | Result]:
        """Everything that the client tells; every answer was asked for."""
        with self.client as client:
            told = list(client.events(TASK, **settings))  # type: ignore[arg-type]
        assert self._answers == []
        return told


def event(data: object, name: str = "progress") -> str:
    return f"event: {name}\nid: 1\ndata: {json.dumps(data)}\n\n"


def stream(*parts: str, error: Exception | None = None) -> httpx.Response:
    """A stream of these parts, which then ends or breaks."""

    def pieces() -> Iterator[bytes]:
        for part in parts:
            yield part.encode()
        if error is not None:
            raise error

    return httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream; charset=utf-8"})


def poll(body: object, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def test_events_are_told_as_they_come_with_the_result_last() -> None:
    preview = PENDING | {"preview": {"media_type": "image/jpeg", "data": base64.b64encode(b"\xff\xd8jpeg").decode()}}
    scene = Scene(
        stream(
            "retry: 1000\n\n", event(PENDING | {"progress": 0}, "status"), ": nothing new\n\n", event(PENDING),
            event(preview, "preview"), event(READY, "result"),
        )
    )  # fmt: skip
    *progress, result = scene.events(previews=True)
    assert progress == [
        Progress(progress=0), Progress(progress=0.25), Progress(progress=0.25, preview=b"\xff\xd8jpeg"),
    ]  # fmt: skip
    assert isinstance(result, Result)
    assert result.seed == 7
    (request,) = scene.asked
    assert str(request.url) == f"{ORIGIN}/v1/tasks/t1/events?preview=true"
    assert request.headers["x-key"] == "fx_key"


def test_a_waiting_task_tells_its_place_and_its_time() -> None:
    waiting = PENDING | {"details": {"queue_position": 3, "eta_seconds": 12.5}}
    drawn = PENDING | {"details": {"eta_seconds": 2.0}}
    told = Scene(stream(event(waiting), event(drawn), event(READY))).events()
    assert told[:2] == [
        Progress(progress=0.25, queue_position=3, eta_seconds=12.5), Progress(progress=0.25, eta_seconds=2.0),
    ]  # fmt: skip


def test_an_event_may_come_in_any_pieces_and_with_lines_that_are_not_known() -> None:
    text = (
        'retry: 1\r\n\r\nsomething: else\r\n:comment\r\ndata: {"status":\r\ndata: "Pending", "progress": 0.5}\r\n\r\n'
    )
    told = Scene(stream(*text, event("no object"), "data: no JSON\n\n", event(READY))).events()
    assert told[0] == Progress(progress=0.5)
    assert len(told) == 2


@pytest.mark.parametrize("error", [None, httpx.ReadTimeout("silent"), httpx.RemoteProtocolError("cut off")], ids=repr)
def test_a_stream_that_is_cut_off_is_taken_up_again(error: Exception | None) -> None:
    cut_off = [stream(event(PENDING), error=error) for _ in range(2 * RETRIES)]
    scene = Scene(*cut_off, stream(event(READY)))
    told = scene.events()
    assert len(told) == 2 * RETRIES + 1
    assert max(scene.slept) < 1


@pytest.mark.parametrize("parts", [None, [], [": nothing new\n\n"]], ids=["refused", "empty", "silent"])
def test_a_stream_that_never_comes_is_polled_for_in_the_end(parts: list[str] | None) -> None:
    refused = httpx.ConnectError("refused")
    answers: list[Answer] = [refused if parts is None else stream(*parts) for _ in range(RETRIES + 1)]
    told = Scene(*answers, poll(PENDING), poll(READY)).events()
    assert told[0] == Progress(progress=0.25)
    assert isinstance(told[1], Result)


@pytest.mark.parametrize(
    "refusal",
    [
        httpx.Response(404, json={"detail": "Not Found"}), httpx.Response(405), httpx.Response(503), poll(PENDING),
        httpx.Response(429, json={"detail": "d"}), httpx.Response(401), httpx.Response(200, text="<html>"),
    ],
    ids=lambda answer: f"{answer.status_code} {answer.headers.get('content-type')}",
)  # fmt: skip
def test_a_server_without_streams_is_polled(refusal: httpx.Response) -> None:
    preview = PENDING | {"preview": {"data": "aGk="}}
    scene = Scene(refusal, poll(PENDING), poll(preview), poll(PENDING | {"preview": {"data": "?"}}), poll(READY))
    told = scene.events(previews=True)
    assert [event.preview for event in told if isinstance(event, Progress)] == [None, b"hi", None]
    assert isinstance(told[-1], Result)
    assert scene.slept[0] <= 0.1 <= LAST_POLL_S
    for request in scene.asked[1:]:
        assert dict(request.url.params) == {"id": "t1", "t": "capability", "preview": "true"}


def cancelled() -> dict[str, object]:
    return PENDING | {"status": "Error", "details": {"error": "cancelled"}}


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        (lambda: [stream(event(cancelled(), "result"))], TaskCancelled),
        (lambda: [poll({}, 404), poll(cancelled())], TaskCancelled),
        (lambda: [poll(PENDING | {"status": "Task not found"}, 404)] * 2, TaskNotFound),
        (lambda: [httpx.ConnectError("refused")] * (2 * RETRIES + 2), ServerUnavailable),
    ],
)
def test_a_task_that_ends_badly_is_an_exception(answers: Callable[[], list[Answer]], error: type[Exception]) -> None:
    with pytest.raises(error):
        Scene(*answers()).events()


def test_events_give_up_at_their_timeout() -> None:
    for answers in ([stream(event(PENDING), ": nothing new\n\n")], [poll({}, 404), poll(PENDING)]):
        scene = Scene(*answers)
        with pytest.raises(TaskTimeout, match="Task t1 was not ready after 0 s"):
            scene.events(timeout=0)
        assert scene.slept == []


def slowly(*news: object) -> Scene:
    """A server with such news every ten seconds, and the clock of whoever waits for them."""
    passed = 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal passed
        for one in news:
            passed += 10.0
            yield event(one).encode()

    response = httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})
    return Scene(response, clock=lambda: passed)


def waiting(**details: float) -> dict[str, object]:
    return PENDING | {"progress": 0.0, "details": details}


def test_a_task_that_comes_nearer_is_waited_for_however_long_it_takes() -> None:
    news = (
        waiting(queue_position=2),
        waiting(queue_position=1),
        waiting(queue_position=1, eta_seconds=30),
        waiting(queue_position=1, eta_seconds=20),
        PENDING,
        PENDING | {"progress": 0.5},
        READY,
    )
    assert len(slowly(*news).events(timeout=15, while_moving=True)) == len(news)
    with pytest.raises(TaskTimeout, match="Task t1 was not ready after 15 s"):
        slowly(*news).events(timeout=15)


def test_a_task_that_comes_no_nearer_is_given_up() -> None:
    begun = PENDING | {"details": {"queue_position": 1, "eta_seconds": 20}}
    later = PENDING | {"details": {"queue_position": 3, "eta_seconds": 50}}
    with pytest.raises(TaskTimeout, match="Task t1 came no nearer for 25 s"):
        slowly(begun, begun, later, later, READY).events(timeout=25, while_moving=True)


class Endless(httpx.SyncByteStream):
    """A stream that never ends by itself."""

    is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield event(PENDING).encode()

    def close(self) -> None:
        """The client has let go."""
        self.is_closed = True


def test_a_stream_is_waited_for_no_longer_than_its_caller_waits() -> None:
    scene = Scene(stream(event(READY)), stream(event(READY)))
    for timeout in (3.0, None):
        list(scene.client.events(TASK, timeout=timeout))
    patient, endless = (request.extensions["timeout"]["read"] for request in scene.asked)
    assert 2.5 <= patient <= 3
    assert endless == LONGEST_SILENCE_S


def test_whoever_stops_listening_closes_the_stream() -> None:
    line = Endless()
    scene = Scene(httpx.Response(200, stream=line, headers={"content-type": "text/event-stream"}))
    with closing(scene.client.events(TASK)) as events:
        assert next(events) == Progress(progress=0.25)
        assert not line.is_closed
    assert line.is_closed
