"""get_result: its keys and words in every state, who may see a task, and what an unknown one answers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from facts import FIRST, MAX_SEED, OUR_PRICES, PREFIXES, PRICES
from inprocess import Json, Server
from shapes import COMETAPI, ERROR, RESULT, is_error

from fluxserve.service.upsampling import UNAVAILABLE

STRANGER = str(uuid.UUID(int=7, version=4))


def number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_unfinished_task_has_exactly_six_keys_and_is_pending(server: Server, prefix: str) -> None:
    task = server.submit(path=f"{prefix}/flux-dev")
    waiting = server.poll(task)
    assert list(waiting) == RESULT
    assert waiting == {
        "id": task["id"], "status": "Pending", "result": None, "progress": 0, "details": {"queue_position": 0},
        "preview": None,
    }  # fmt: skip
    (record,) = server.claim()
    server.service.advance(record.id, 7, 28)
    assert server.poll(task) == waiting | {"progress": 0.25, "details": None}


def test_a_running_task_is_processing_only_where_the_setting_says_so(serve: Callable[..., Server]) -> None:
    server = serve(processing_status=True)
    task = server.submit()
    assert server.poll(task)["status"] == "Pending"
    server.claim()
    assert server.poll(task)["status"] == "Processing"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("model", FIRST)
def test_a_ready_task_answers_picture_prompt_seed_times_and_cost(server: Server, prefix: str, model: str) -> None:
    size = {"aspect_ratio": "9:21"} if model.endswith("ultra") else {"width": 256, "height": 256}
    posted = server.post(
        f"{prefix}/{model}", {"prompt": "an öwl \U0001f989", "seed": 7, "output_format": "png", **size}
    )
    task = posted.json()
    server.now += 3.25
    server.draw(seconds=1.5)
    body = server.poll(task)
    assert list(body) == [*RESULT, "cost"]
    assert (body["id"], body["status"], body["progress"], body["preview"]) == (task["id"], "Ready", None, None)
    assert body["cost"] == task["cost"] == (PRICES | OUR_PRICES)[model][0]
    result = body["result"]
    assert list(result) == ["sample", "prompt", "seed", "start_time", "end_time", "duration"]
    assert (result["prompt"], result["seed"]) == ("an öwl \U0001f989", 7)
    assert all(number(result[name]) for name in ("seed", "start_time", "end_time", "duration"))
    assert result["end_time"] - result["start_time"] == result["duration"] == 1.5
    assert body["details"]["drawn_by"] == "fluxserve-fake"


def test_the_largest_seed_comes_back_as_the_same_number(server: Server) -> None:
    task = server.submit({"seed": MAX_SEED})
    server.draw()
    answer = server.ask("GET", str(task["polling_url"]))
    assert f'"seed":{MAX_SEED}' in answer.text


def test_warnings_are_told_before_and_after_the_end(server: Server) -> None:
    task = server.submit({"prompt_upsampling": True, "hobby": 1})
    told = ["hobby is not a parameter of flux-dev and was ignored", UNAVAILABLE]
    assert server.poll(task)["details"] == {"warnings": told, "queue_position": 0}
    server.draw()
    assert server.poll(task)["details"]["warnings"] == told


@pytest.mark.parametrize("fields", [{}, {"hobby": 1}])
def test_what_the_weights_warn_of_is_told_after_what_the_request_was_warned_of(
    server: Server, fields: dict[str, object]
) -> None:
    task = server.submit(fields)
    (record,) = server.claim()
    server.draw_claimed(record, warnings=("no photographs",))
    ignored = ["hobby is not a parameter of flux-dev and was ignored"] if fields else []
    assert server.poll(task)["details"]["warnings"] == [*ignored, "no photographs"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_failed_task_is_an_error_inside_a_200_and_costs_nothing(server: Server, prefix: str) -> None:
    key = server.new_key(grant=10_000)
    posted = server.ask("POST", f"{prefix}/flux-dev", key=key, body=b'{"prompt": "x"}')
    assert server.balance(key) == 7500
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    assert server.poll(posted.json()) == {
        "id": record.id, "status": "Error", "result": None, "progress": None,
        "details": {"error": "The device ran out of memory."}, "preview": None, "cost": 0.0,
    }  # fmt: skip
    assert server.balance(key) == 10_000


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_unknown_task_answers_the_result_object_and_the_dialects_status(shared: Server, prefix: str) -> None:
    for task_id in (STRANGER, "x", "", "é", "'; DROP TABLE tasks; --", "a/b", "\0", "\U0001f34e" * 10):
        answer = shared.ask("GET", f"{prefix}/get_result", key=shared.key, query={"id": task_id})
        body = answer.json()
        assert [body[name] for name in RESULT] == [task_id, "Task not found", None, None, None, None]
        if prefix == COMETAPI:
            assert answer.status_code == 200
            assert list(body) == RESULT
        else:
            assert answer.status_code == 404
            assert body.keys() == {*RESULT, *ERROR}
            assert (body["detail"], body["message"], body["status_code"]) == ("Task not found", "Task not found", 404)


def test_a_very_long_id_is_unknown_and_not_sent_back_whole(shared: Server) -> None:
    answer = shared.ask("GET", "/v1/get_result", key=shared.key, query={"id": "x" * 20_000})
    assert (answer.status_code, answer.json()["id"]) == (404, "x" * 128)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_another_accounts_task_looks_exactly_like_an_unknown_one(server: Server, prefix: str) -> None:
    task = server.submit()
    other = server.new_key()
    for _ in range(2):
        theirs = server.ask("GET", f"{prefix}/get_result?id={task['id']}", key=other)
        unknown = server.ask("GET", f"{prefix}/get_result?id={STRANGER}", key=other)
        assert theirs.status_code == unknown.status_code
        assert theirs.headers == unknown.headers
        assert theirs.content.replace(str(task["id"]).encode(), STRANGER.encode()) == unknown.content
        server.draw()


def test_two_keys_of_one_account_see_its_tasks(server: Server) -> None:
    first, second = server.new_key(account="both"), server.new_key(account="both")
    task = server.ask("POST", "/v1/flux-dev", key=first, body=b'{"prompt": "x"}').json()
    assert server.ask("GET", f"/v1/get_result?id={task['id']}", key=second).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_path_knows_every_task(server: Server, prefix: str) -> None:
    for submitted_at in PREFIXES:
        task = server.submit(path=f"{submitted_at}/flux-dev")
        assert urlsplit(str(task["polling_url"])).path == f"{submitted_at}/get_result"
        bare = server.ask("GET", f"{prefix}/get_result?id={task['id']}", key=server.key)
        assert bare.json() == server.poll(task)


def with_query(task: Json, more: str, before: str = "") -> str:
    url = urlsplit(str(task["polling_url"]))
    return f"{url.path}?{before}{url.query}{more}"


@pytest.mark.parametrize(
    ("before", "more"),
    [("", ""), ("", "&attempt=3"), ("", "&x"), ("", "&=&&"), ("", "&t=wrong"), ("t=wrong&", ""), ("t=&", ""),
     ("", "&id=other"), ("_=1700000000&", "&utm_source=a%20b&x[]=1"), ("", "&%ff=%fe"), ("", "#fragment")],
)  # fmt: skip
def test_the_capability_survives_other_and_repeated_parameters(shared: Server, before: str, more: str) -> None:
    task = shared.submit()
    for key in (None, "wrong", shared.key, shared.new_key()):
        assert shared.ask("GET", with_query(task, more, before), key=key).status_code == 200


def test_the_id_may_stand_twice(shared: Server) -> None:
    task = shared.submit()
    assert shared.ask("GET", with_query(task, f"&id={task['id']}")).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrong_capability_opens_nothing(shared: Server, prefix: str) -> None:
    task, other = shared.submit(), shared.submit()
    (right,) = parse_qs(urlsplit(str(task["polling_url"])).query)["t"]
    (others,) = parse_qs(urlsplit(str(other["polling_url"])).query)["t"]
    flipped = ("A" if right[0] != "A" else "B") + right[1:]
    for wrong in ("", "x", right[:-1], right + "A", right.swapcase(), flipped, others, "é", "%ff", "t" * 5000):
        for key in (None, "wrong"):
            answer = shared.ask("GET", f"{prefix}/get_result?id={task['id']}&t={wrong}", key=key)
            error = is_error(answer, 401, prefix)
            assert "polling_url" in str(error["message"])
        assert shared.ask("GET", f"{prefix}/get_result?id={task['id']}&t={wrong}", key=shared.key).status_code == 200
    is_error(shared.ask("GET", f"{prefix}/get_result?id={task['id']}"), 401, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_poll_without_an_id_is_a_422(shared: Server, prefix: str) -> None:
    for query in ("", "?", "?ID=x", "?t=x", "?=x"):
        answer = shared.ask("GET", f"{prefix}/get_result{query}", key=shared.key)
        is_error(answer, 422, prefix)
        assert answer.json()["detail"] == [
            {"type": "missing", "loc": ["query", "id"], "msg": "Field required", "input": None}
        ]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_query_of_too_many_fields_is_a_422(shared: Server, prefix: str) -> None:
    task = shared.submit()
    assert shared.ask("GET", with_query(task, "&a=1" * 98)).status_code == 200
    answer = shared.ask("GET", f"{prefix}/get_result?id={task['id']}" + "&t=x" * 100)
    is_error(answer, 422, prefix)
    assert answer.json()["detail"][0]["loc"] == ["query"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_polls_are_gets_and_heads(shared: Server, prefix: str) -> None:
    task = shared.submit(path=f"{prefix}/flux-dev")
    assert shared.ask("HEAD", str(task["polling_url"])).status_code == 200
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        answer = shared.ask(method, str(task["polling_url"]))
        is_error(answer, 405, prefix)
        assert answer.headers["allow"] == "GET, HEAD"


def test_a_poll_is_kept_by_no_cache(shared: Server) -> None:
    answer = shared.ask("GET", str(shared.submit()["polling_url"]))
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


def test_the_capability_lives_as_long_as_the_task(server: Server) -> None:
    task = server.submit()
    server.draw()
    server.now += 86_000
    assert server.poll(task)["status"] == "Ready"
    server.now += 1000
    server.sweep()
    gone = server.ask("GET", str(task["polling_url"]))
    assert (gone.status_code, gone.json()["status"]) == (404, "Task not found")
    assert server.ask("GET", str(task["polling_url"]).replace("/v1", "/flux/v1")).status_code == 200
