"""The client against a small server in memory, at httpx's own transport seam: calls, retries, errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from fluxserve.client import (
    ApiError,
    AuthenticationFailed,
    Client,
    ClientError,
    Entry,
    InsufficientCredits,
    RequestRejected,
    Result,
    ServerUnavailable,
    Task,
    TaskCancelled,
    TaskFailed,
    TaskModerated,
    TaskNotFound,
    TaskTimeout,
    TooManyRequests,
)
from fluxserve.client.calls import FIRST_POLL_S, LAST_POLL_S, LONGEST_PAUSE_S, RETRIES, origin_of

ORIGIN = "http://flux.test"
TASK = Task(id="t1", polling_url=f"{ORIGIN}/v1/get_result?id=t1&t=capability", cost=2.5)
PENDING = {"id": "t1", "status": "Pending", "result": None, "progress": 0.25, "details": None, "preview": None}
READY = PENDING | {
    "status": "Ready",
    "progress": 1.0,
    "cost": 2.5,
    "result": {
        "sample": f"{ORIGIN}/pictures/sample.jpeg?s=1", "prompt": "a red apple", "seed": 7,
        "start_time": 1.0, "end_time": 3.5, "duration": 2.5,
    },
    "details": {"warnings": ["raw is not drawn yet"], "drawn_by": "fluxserve-mini"},
}  # fmt: skip
Answer = httpx.Response | Exception


def answer(body: object, status: int = 200, **headers: str) -> httpx.Response:
    """A JSON answer; header names with underscores."""
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


@dataclass
class Scene:
    """A client, the answers its server will give, what it asked and how long it slept."""

    answers: list[Answer] = field(default_factory=list)
    asked: list[httpx.Request] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    seconds_to_answer: float = 0.0

    def __post_init__(self) -> None:
        self.client = Client(
            f"{ORIGIN}/", "fx_live_key", transport=httpx.MockTransport(self.give), sleep=self.slept.append
        )

    def give(self, request: httpx.Request) -> httpx.Response:
        """What the server answers next."""
        self.asked.append(request)
        began = time.monotonic()
        while time.monotonic() - began < self.seconds_to_answer:
            pass
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def will(self, *answers: Answer) -> Client:
        """The client, whose server will give these answers."""
        self.answers += answers
        return self.client


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A client whose server has no answers yet; every answer must be asked for."""
    scene = Scene()
    with scene.client:
        yield scene
    assert scene.answers == []


def created(polling_url: str = TASK.polling_url) -> httpx.Response:
    """The answer to a submit."""
    return answer({"id": "t1", "polling_url": polling_url, "cost": 2.5, "input_mp": 0.0, "output_mp": 0.79})


def test_create_submits_the_prompt_and_the_parameters_with_key_and_idempotency_key(scene: Scene) -> None:
    task = scene.will(created()).create("flux-dev", "a red apple", {"seed": 7, "width": 512})

    assert task == TASK
    (request,) = scene.asked
    assert (request.method, str(request.url)) == ("POST", f"{ORIGIN}/v1/flux-dev")
    assert json.loads(request.content) == {"prompt": "a red apple", "seed": 7, "width": 512}
    assert request.headers["x-key"] == "fx_live_key"
    assert len(request.headers["idempotency-key"]) == 36


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/flux/v1", "/flux/v1/"])
def test_an_address_with_the_path_of_a_dialect_is_the_same_server(path: str) -> None:
    assert origin_of(f"http://127.0.0.1:8808{path}") == "http://127.0.0.1:8808"


def test_each_create_has_an_idempotency_key_of_its_own_or_the_callers(scene: Scene) -> None:
    client = scene.will(created(), created(), created())
    client.create("flux-dev", "a")
    client.create("flux-dev", "a")
    client.create("flux-dev", "a", idempotency_key="mine")
    first, second, third = [request.headers["idempotency-key"] for request in scene.asked]
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("too slow"),
        httpx.RemoteProtocolError("cut off"),
        answer({"detail": "later"}, 503),
        answer({"detail": "later"}, 429),
        answer({}, 502),
        answer({}, 504),
    ],
    ids=repr,
)
def test_a_create_in_trouble_is_sent_again_with_the_same_idempotency_key(scene: Scene, trouble: Answer) -> None:
    assert scene.will(trouble, trouble, created()).create("flux-dev", "a") == TASK
    assert len({request.headers["idempotency-key"] for request in scene.asked}) == 1
    assert len({request.content for request in scene.asked}) == 1
    assert len(scene.slept) == 2


def test_pauses_between_tries_grow(scene: Scene) -> None:
    scene.will(*[httpx.ConnectError("refused")] * RETRIES, created()).create("flux-dev", "a")
    assert scene.slept == sorted(scene.slept)
    assert 0.2 <= scene.slept[0] <= 0.24
    assert scene.slept[-1] >= 3


def test_retry_after_is_waited_for_and_only_once(scene: Scene) -> None:
    busy, soon = answer({}, 429, retry_after="17"), answer({}, 503, retry_after="1")
    scene.will(busy, soon, created()).create("flux-dev", "a")
    assert 17 <= scene.slept[0] <= 17 * 1.2
    assert 1 <= scene.slept[1] <= 1.2


@pytest.mark.parametrize("text", ["", "soon", "-5", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "nan", "0"])
def test_a_retry_after_that_is_no_number_of_seconds_changes_nothing(scene: Scene, text: str) -> None:
    scene.will(answer({}, 503, retry_after=text), created()).create("flux-dev", "a")
    assert scene.slept[0] <= 0.24


def test_no_pause_is_endless(scene: Scene) -> None:
    scene.will(answer({}, 503, retry_after="86400"), created()).create("flux-dev", "a")
    assert scene.slept[0] <= LONGEST_PAUSE_S * 1.2


def test_a_server_that_never_answers_is_unavailable_in_the_end(scene: Scene) -> None:
    with pytest.raises(ServerUnavailable, match=f"{ORIGIN} does not answer"):
        scene.will(*[httpx.ConnectError("refused")] * (RETRIES + 1)).create("flux-dev", "a")
    assert len(scene.slept) == RETRIES


@pytest.mark.parametrize(
    ("status", "error"), [(429, TooManyRequests), (502, ServerUnavailable), (503, ServerUnavailable)]
)
def test_a_server_that_stays_in_trouble_is_told_by_its_last_answer(
    scene: Scene, status: int, error: type[ClientError]
) -> None:
    trouble = answer({"detail": "d", "message": "Too much to do.", "status_code": status}, status)
    with pytest.raises(error, match=r"Too much to do\."):
        scene.will(*[trouble] * (RETRIES + 1)).create("flux-dev", "a")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestRejected),
        (401, AuthenticationFailed),
        (402, InsufficientCredits),
        (403, AuthenticationFailed),
        (404, ApiError),
        (405, ApiError),
        (409, ApiError),
        (413, RequestRejected),
        (422, RequestRejected),
    ],
)
def test_a_refusal_is_an_exception_of_its_own_and_is_not_tried_again(
    scene: Scene, status: int, error: type[ApiError]
) -> None:
    refusal = answer({"detail": "No.", "message": "No, because.", "status_code": status}, status)
    with pytest.raises(ApiError) as caught:
        scene.will(refusal).create("flux-dev", "a")
    assert type(caught.value) is error
    assert (str(caught.value), caught.value.status, caught.value.problems) == ("No, because.", status, ())
    assert scene.slept == []


def test_a_500_is_the_servers_fault_and_is_not_tried_again(scene: Scene) -> None:
    with pytest.raises(ServerUnavailable, match="Internal error"):
        scene.will(answer({"detail": "Internal error"}, 500)).create("flux-dev", "a")
    assert scene.slept == []


def test_a_rejected_request_names_its_fields(scene: Scene) -> None:
    detail = [
        {"type": "less_than_equal", "loc": ["body", "width"], "msg": "Input should be less than or equal to 1440"},
        {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"},
    ]
    with pytest.raises(RequestRejected) as caught:
        scene.will(answer({"detail": detail, "message": "width: too large (and 1 more)"}, 422)).create("flux-dev", "a")
    assert caught.value.problems == (
        "width: Input should be less than or equal to 1440",
        "prompt: Field required",
    )


@pytest.mark.parametrize("body", ["<html>oops</html>", "", "[1]", "null", "{}", '{"id": "t1"}'])
def test_something_that_is_no_flux_server_is_an_error_of_ours(scene: Scene, body: str) -> None:
    with pytest.raises(ApiError, match="is this a server of the Flux API"):
        scene.will(httpx.Response(200, text=body)).create("flux-dev", "a")
    with pytest.raises(ApiError, match="is this a server of the Flux API"):
        scene.will(httpx.Response(200, text=body)).wait(TASK)


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", "[]", '{"detail": null}'])
def test_a_refusal_without_a_message_is_told_by_its_number(scene: Scene, body: str) -> None:
    with pytest.raises(ApiError, match="HTTP 404"):
        scene.will(httpx.Response(404, text=body)).create("flux-dev", "a")


def test_a_poll_uses_the_polling_url_as_it_was_given_and_tells_the_progress(scene: Scene) -> None:
    assert scene.will(answer(PENDING)).poll(TASK) == 0.25
    (request,) = scene.asked
    assert (request.method, str(request.url)) == ("GET", TASK.polling_url)


@pytest.mark.parametrize("change", [{"status": "Processing"}, {"progress": None}, {"status": "Something new"}])
def test_any_other_status_means_wait(scene: Scene, change: dict[str, object]) -> None:
    assert isinstance(scene.will(answer(PENDING | change)).poll(TASK), float)


def test_a_ready_task_is_its_result(scene: Scene) -> None:
    result = scene.will(answer(READY)).poll(TASK)
    assert result == Result(
        id="t1", sample=f"{ORIGIN}/pictures/sample.jpeg?s=1", prompt="a red apple", seed=7, duration=2.5, cost=2.5,
        details={"warnings": ["raw is not drawn yet"], "drawn_by": "fluxserve-mini"},
    )  # fmt: skip
    assert isinstance(result, Result)
    assert result.warnings == ("raw is not drawn yet",)


def test_a_result_without_what_is_optional_is_a_result(scene: Scene) -> None:
    bare = {"id": "t1", "status": "Ready", "result": {"sample": "s", "prompt": "p", "seed": 2**64 - 1}}
    result = scene.will(answer(bare)).poll(TASK)
    assert isinstance(result, Result)
    assert (result.duration, result.cost, result.warnings, result.seed) == (None, None, (), 2**64 - 1)


@pytest.mark.parametrize("result", [None, {}, "sample"])
def test_a_ready_task_without_a_picture_is_an_error_of_ours(scene: Scene, result: object) -> None:
    with pytest.raises(ApiError):
        scene.will(answer(READY | {"result": result})).poll(TASK)


@pytest.mark.parametrize(
    ("status", "details", "error", "words"),
    [
        ("Error", {"error": "The worker was lost."}, TaskFailed, "The worker was lost."),
        ("Error", None, TaskFailed, "The task failed."),
        ("Error", {"error": "cancelled"}, TaskCancelled, "Task t1 was cancelled."),
        ("Request Moderated", {"Moderation Reasons": ["violence"]}, TaskModerated, "violence"),
        ("Content Moderated", None, TaskModerated, "Content Moderated: no reason given"),
        ("Task not found", None, TaskNotFound, "does not know task t1"),
    ],
)
def test_a_task_that_ended_badly_is_an_exception(
    scene: Scene, status: str, details: object, error: type[ClientError], words: str
) -> None:
    with pytest.raises(error, match=words):
        scene.will(answer(PENDING | {"status": status, "details": details})).poll(TASK)


def test_an_unknown_task_is_not_found_whether_it_is_told_by_404_or_200(scene: Scene) -> None:
    gone = PENDING | {"status": "Task not found"}
    for status in (404, 200):
        with pytest.raises(TaskNotFound):
            scene.will(answer(gone | {"detail": "Task not found", "status_code": status}, status)).poll(TASK)


def test_wait_asks_the_server_to_answer_at_the_end(scene: Scene) -> None:
    assert scene.will(answer(PENDING), answer(READY)).wait(TASK).seed == 7
    for request in scene.asked:
        assert dict(request.url.params) == {"id": "t1", "t": "capability", "wait": "15.0"}
    assert request.headers["x-key"] == "fx_live_key"


def test_a_wait_is_shorter_than_the_patience_of_the_caller_and_of_its_connection(scene: Scene) -> None:
    scene.will(answer(READY)).wait(TASK, timeout=3)
    assert 2.5 <= float(scene.asked[0].url.params["wait"]) <= 3
    impatient = Client(ORIGIN, "k", timeout=4, transport=httpx.MockTransport(scene.give))
    scene.will(answer(READY))
    with impatient:
        impatient.wait(TASK)
    assert scene.asked[1].url.params["wait"] == "2.0"


def test_a_server_that_held_the_poll_is_asked_again_at_once(scene: Scene) -> None:
    scene.answers = [answer(PENDING), answer(READY)]
    scene.seconds_to_answer = FIRST_POLL_S
    scene.client.wait(TASK)
    assert scene.slept == []


def test_where_held_polls_are_cut_off_the_task_is_polled(scene: Scene) -> None:
    cut_off = [answer({}, 504)] * (RETRIES + 1)
    assert scene.will(*cut_off, answer(PENDING), answer(READY)).wait(TASK).seed == 7
    assert ["wait" in request.url.params for request in scene.asked] == [True] * (RETRIES + 1) + [False] * 2


def test_wait_polls_a_server_that_answers_at_once_quickly_at_first_and_slower_later(scene: Scene) -> None:
    scene.will(*[answer(PENDING)] * 30, answer(READY)).wait(TASK)
    assert scene.slept[0] <= 0.1
    assert scene.slept == sorted(scene.slept)
    assert scene.slept[-1] == LAST_POLL_S


def test_wait_goes_on_after_trouble(scene: Scene) -> None:
    trouble = [httpx.ReadTimeout("slow"), answer({}, 503, retry_after="3"), httpx.ConnectError("restarting")]
    assert scene.will(answer(PENDING), *trouble, answer(READY)).wait(TASK).id == "t1"


def test_wait_gives_up_at_its_timeout_and_can_go_on_later(scene: Scene) -> None:
    with pytest.raises(TaskTimeout, match="Task t1 was not ready after 0 s"):
        scene.will(answer(PENDING)).wait(TASK, timeout=0)
    assert scene.slept == []
    assert scene.will(answer(READY)).wait(TASK, timeout=0).id == "t1"


def test_wait_ends_with_the_tasks_failure(scene: Scene) -> None:
    with pytest.raises(TaskFailed):
        scene.will(answer(PENDING), answer(PENDING | {"status": "Error"})).wait(TASK)


@pytest.mark.parametrize("error", ["cancelled", "The device ran out of memory."])
def test_a_cancelled_task_has_no_result_and_neither_has_one_that_had_failed(scene: Scene, error: str) -> None:
    ended = PENDING | {"status": "Error", "progress": None, "details": {"error": error}, "cost": 0.0}
    assert scene.will(answer(ended)).cancel(TASK) is None
    (request,) = scene.asked
    assert (request.method, str(request.url)) == ("POST", f"{ORIGIN}/v1/tasks/t1/cancel")
    assert request.headers["x-key"] == "fx_live_key"


def test_a_task_that_was_ready_before_it_was_cancelled_keeps_its_result(scene: Scene) -> None:
    result = scene.will(answer(READY)).cancel(TASK)
    assert result is not None
    assert result.seed == 7


def test_an_unknown_task_cannot_be_cancelled(scene: Scene) -> None:
    with pytest.raises(TaskNotFound):
        scene.will(answer(PENDING | {"status": "Task not found"}, 404)).cancel(TASK)


def test_cancelling_is_tried_again_after_trouble(scene: Scene) -> None:
    ended = PENDING | {"status": "Error", "details": {"error": "cancelled"}}
    assert scene.will(httpx.ReadTimeout("slow"), answer({}, 503), answer(ended)).cancel(TASK) is None


def listed(number: int) -> dict[str, object]:
    """A task as a list shows it."""
    return {
        "id": f"t{number}", "model": "flux-dev", "status": "Pending", "created_at": 100.0 + number, "cost": 2.5,
        "progress": 0.25, "polling_url": f"{ORIGIN}/v1/get_result?id=t{number}&t=x",
    }  # fmt: skip


def test_ones_own_tasks_come_page_by_page_as_they_are_asked_for(scene: Scene) -> None:
    first = answer({"tasks": [listed(3), listed(2)], "next_cursor": "a+b"})
    second = answer({"tasks": [listed(1)], "next_cursor": None})
    entries = scene.will(first, second).tasks("Pending")
    assert next(entries) == Entry(
        task=Task(id="t3", polling_url=f"{ORIGIN}/v1/get_result?id=t3&t=x", cost=2.5), model="flux-dev",
        status="Pending", created_at=103.0, progress=0.25,
    )  # fmt: skip
    assert len(scene.asked) == 1
    assert [entry.task.id for entry in entries] == ["t2", "t1"]
    assert [dict(request.url.params) for request in scene.asked] == [
        {"status": "Pending", "cursor": cursor, "limit": "200"} for cursor in ("", "a+b")
    ]


def ready(scene: Scene) -> Result:
    """A result to download."""
    result = scene.will(answer(READY)).poll(TASK)
    assert isinstance(result, Result)
    scene.asked.clear()
    return result


def test_download_answers_the_bytes_with_their_type(scene: Scene) -> None:
    result = ready(scene)
    picture = scene.will(
        httpx.Response(200, content=b"\xff\xd8picture", headers={"content-type": "image/jpeg"})
    ).download(result)
    assert (picture.data, picture.media_type, picture.result) == (b"\xff\xd8picture", "image/jpeg", result)
    assert str(scene.asked[0].url) == result.sample


def test_the_key_is_never_sent_to_where_a_picture_lies(scene: Scene) -> None:
    result = ready(scene)
    scene.will(httpx.Response(200, content=b"")).download(result)
    assert "fx_live_key" not in str(scene.asked[0].headers.raw)


@pytest.mark.parametrize(("status", "error"), [(403, AuthenticationFailed), (404, ApiError), (410, ApiError)])
def test_a_link_that_expired_is_an_api_error(scene: Scene, status: int, error: type[ApiError]) -> None:
    result = ready(scene)
    with pytest.raises(error, match="The link has expired"):
        scene.will(answer({"message": "The link has expired."}, status)).download(result)


def test_models_are_listed_as_the_server_describes_them(scene: Scene) -> None:
    models = [{"id": "flux-dev", "object": "model"}]
    assert scene.will(answer({"object": "list", "data": models})).models() == models
    assert str(scene.asked[0].url) == f"{ORIGIN}/v1/models"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create("flux-dev", "a"),
        lambda client: client.poll(TASK),
        lambda client: client.wait(TASK, timeout=0),
        lambda client: list(client.events(TASK)),
        lambda client: client.models(),
        lambda client: client.cancel(TASK),
        lambda client: next(client.tasks()),
    ],
    ids=["create", "poll", "wait", "events", "models", "cancel", "tasks"],
)
def test_every_call_fails_with_an_error_of_the_clients_own_tree(scene: Scene, call: Callable[[Client], object]) -> None:
    for status in (400, 401, 402, 403, 404, 418, 422, 500):
        scene.answers = [httpx.Response(status, text="<html>")] * 2  # events are polled for, too
        with pytest.raises(ClientError):
            call(scene.client)
    scene.answers.clear()
