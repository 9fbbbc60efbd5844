"""Refusals that depend on what came before: credits, limits, idempotency keys, a full disk, a stopping server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping

import httpx
import pytest
from facts import PREFIXES
from inprocess import ORIGIN, Server
from shapes import COMETAPI, is_error

BODY = b'{"prompt": "x"}'


def refused(answer: httpx.Response, status: int, prefix: str, code: str) -> Mapping[str, object]:
    """The error, with CometAPI's code where that is the dialect."""
    error = is_error(answer, status, prefix)
    if prefix == COMETAPI:
        assert answer.json()["error"]["code"] == code
    return error


@pytest.mark.parametrize("prefix", PREFIXES)
def test_without_enough_credits_a_submit_is_a_402_and_takes_nothing(server: Server, prefix: str) -> None:
    key = server.new_key(grant=4999)
    path = f"{prefix}/flux-dev"
    assert server.ask("POST", path, key=key, body=BODY).status_code == 200
    assert server.balance(key) == 2499
    for _ in range(2):
        refused(server.ask("POST", path, key=key, body=BODY), 402, prefix, "insufficient_quota")
    assert server.balance(key) == 2499
    assert len(server.service.views) == 1
    assert server.ask("POST", f"{prefix}/flux-schnell", key=key, body=BODY).status_code == 200
    assert server.balance(key) == 2199
    server.draw()
    assert server.balance(key) == 2199


@pytest.mark.parametrize("prefix", PREFIXES)
def test_too_many_unfinished_tasks_are_a_429_until_one_has_ended(server: Server, prefix: str) -> None:
    key = server.new_key(grant=100_000, max_active=2)
    path = f"{prefix}/flux-dev"
    for _ in range(2):
        assert server.ask("POST", path, key=key, body=BODY).status_code == 200
    answer = server.ask("POST", path, key=key, body=BODY)
    error = refused(answer, 429, prefix, "rate_limit_exceeded")
    assert "2 unfinished tasks" in str(error["message"])
    assert answer.headers["retry-after"] == "2"
    assert server.balance(key) == 95_000
    assert server.ask("POST", path, key=server.key, body=BODY).status_code == 200
    server.draw()
    assert server.ask("POST", path, key=key, body=BODY).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_too_many_submits_a_minute_are_a_429_that_says_how_long_to_wait(server: Server, prefix: str) -> None:
    key = server.new_key(rate_per_minute=2)
    path = f"{prefix}/flux-dev"
    for _ in range(2):
        assert server.ask("POST", path, key=key, body=BODY).status_code == 200
    answer = server.ask("POST", path, key=key, body=BODY)
    refused(answer, 429, prefix, "rate_limit_exceeded")
    wait = int(answer.headers["retry-after"])
    assert wait == 30
    server.now += wait
    assert server.ask("POST", path, key=key, body=BODY).status_code == 200
    refused(server.ask("POST", path, key=key, body=BODY), 429, prefix, "rate_limit_exceeded")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_submit_tells_how_far_its_key_is_from_its_limit(server: Server, prefix: str) -> None:
    key = server.new_key(rate_per_minute=2)
    path = f"{prefix}/flux-dev"
    told = []
    for _ in range(3):
        answer = server.ask("POST", path, key=key, body=BODY)
        assert answer.headers["ratelimit-policy"] == '"submits";q=2;w=60'
        told.append((answer.status_code, answer.headers["ratelimit"]))
    assert told == [(200, '"submits";r=1;t=30'), (200, '"submits";r=0;t=60'), (429, '"submits";r=0;t=60')]
    assert "ratelimit" not in server.ask("POST", path, key=server.key, body=BODY).headers


@pytest.mark.parametrize("prefix", PREFIXES)
def test_of_some_models_a_limited_key_may_have_fewer_unfinished_tasks(
    serve: Callable[..., Server], prefix: str
) -> None:
    server = serve(model_limits={"flux-dev": 1})
    key = server.new_key(max_active=3)
    assert server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY).status_code == 200
    error = refused(server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY), 429, prefix, "rate_limit_exceeded")
    assert "1 unfinished tasks of flux-dev" in str(error["message"])
    assert server.ask("POST", f"{prefix}/flux-schnell", key=key, body=BODY).status_code == 200
    for _ in range(2):
        assert server.ask("POST", f"{prefix}/flux-dev", key=server.key, body=BODY).status_code == 200
    server.draw()
    assert server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_keys_unfinished_tasks_may_be_so_much_work_together(server: Server, prefix: str) -> None:
    key = server.new_key(max_work=1300.0)  # two of 512x512 in 28 steps, at 609 TFLOP each, and not three
    large, small = (b'{"prompt": "x", "width": 512, "height": 512, "steps": %d}' % steps for steps in (28, 1))
    for _ in range(2):
        assert server.ask("POST", f"{prefix}/flux-dev", key=key, body=large).status_code == 200
    error = refused(server.ask("POST", f"{prefix}/flux-dev", key=key, body=large), 429, prefix, "rate_limit_exceeded")
    assert "may be 1300 TFLOP together. They are 1217 now, and this one is 608.7" in str(error["message"])
    assert server.ask("POST", f"{prefix}/flux-dev", key=key, body=small).status_code == 200
    server.draw()
    assert server.ask("POST", f"{prefix}/flux-dev", key=key, body=large).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_key_asks_what_its_account_has_left(server: Server, prefix: str) -> None:
    key = server.new_key(grant=10_500)
    path = f"{prefix}/credits"
    assert server.ask("GET", path, key=key).json() == {"credits": 10.5}
    server.ask("POST", "/v1/flux-dev", key=key, body=BODY)
    assert server.ask("GET", path, key=key).json() == {"credits": 8.0}
    unlimited = server.ask("GET", path, key=server.key).json()
    assert unlimited["unlimited"] is True
    assert unlimited["credits"] >= 10**9
    is_error(server.ask("GET", path), 401, prefix)
    is_error(server.ask("GET", path, key="wrong"), 401, prefix)


def test_money_for_fifty_buys_exactly_fifty_however_many_ask_at_once(server: Server) -> None:
    key = server.new_key(grant=50 * 2500)

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url=ORIGIN) as client:
            asked = [client.post("/v1/flux-dev", content=BODY, headers={"x-key": key}) for _ in range(200)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert Counter(server.run(all_at_once())) == {200: 50, 402: 150}
    assert server.balance(key) == 0
    server.draw()
    assert server.balance(key) == 0


def test_polls_are_never_limited(server: Server) -> None:
    key = server.new_key(rate_per_minute=1, max_active=1)
    task = server.ask("POST", "/v1/flux-dev", key=key, body=BODY).json()
    for _ in range(50):
        assert server.ask("GET", f"/v1/get_result?id={task['id']}", key=key).status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_stopping_server_takes_nothing_more_and_still_answers_polls(server: Server, prefix: str) -> None:
    task = server.submit()
    server.service.stop_accepting()
    answer = server.ask("POST", f"{prefix}/flux-dev", key=server.key, body=BODY)
    refused(answer, 503, prefix, "server_error")
    assert answer.headers["retry-after"] == "5"
    assert server.poll(task)["status"] == "Pending"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_full_disk_is_a_503_and_takes_nothing(serve: Callable[..., Server], prefix: str) -> None:
    server = serve(min_free_disk=2**62)
    key = server.new_key(grant=10_000)
    answer = server.ask("POST", f"{prefix}/flux-dev", key=key, body=BODY)
    error = refused(answer, 503, prefix, "server_error")
    assert "disk" in str(error["message"])
    assert answer.headers["retry-after"] == "30"
    assert (server.balance(key), len(server.service.views)) == (10_000, 0)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_full_queue_is_a_503(serve: Callable[..., Server], prefix: str) -> None:
    server = serve(max_queue=1)
    server.submit()
    answer = server.ask("POST", f"{prefix}/flux-dev", key=server.key, body=BODY)
    refused(answer, 503, prefix, "server_error")
    assert answer.headers["retry-after"] == "30"
    server.draw()
    server.submit()


def submit_once(
    server: Server, prefix: str, key: str, fields: object, name: str, model: str = "flux-dev"
) -> httpx.Response:
    body = json.dumps(fields).encode()
    return server.ask("POST", f"{prefix}/{model}", key=key, headers={"Idempotency-Key": name}, body=body)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_retry_with_the_same_idempotency_key_answers_the_same_task_and_costs_nothing(
    server: Server, prefix: str
) -> None:
    key = server.new_key(grant=10_000, max_active=1)
    first = submit_once(server, prefix, key, {"prompt": "x", "seed": None, "width": 512}, "order 1")
    for fields in ({"width": 512, "prompt": "x"}, {"prompt": "x", "width": 512, "user": ""}):
        again = submit_once(server, prefix, key, fields, "order 1")
        assert again.json() == first.json()
    assert server.balance(key) == 7500
    server.draw()
    assert submit_once(server, prefix, key, {"prompt": "x", "width": 512}, "order 1").json() == first.json()
    assert server.balance(key) == 7500


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_same_idempotency_key_for_another_request_is_a_422(server: Server, prefix: str) -> None:
    submit_once(server, prefix, server.key, {"prompt": "x"}, "order 1")
    for fields, model in (
        ({"prompt": "y"}, "flux-dev"),
        ({"prompt": "x", "seed": 1}, "flux-dev"),
        ({"prompt": "x"}, "flux-pro"),
    ):
        answer = submit_once(server, prefix, server.key, fields, "order 1", model)
        refused(answer, 422, prefix, "invalid_request")
        (item,) = answer.json()["detail"]
        assert (item["type"], item["loc"]) == ("idempotency_conflict", ["header", "idempotency-key"])
        assert item["input"] == "order 1"
    assert len(server.service.views) == 1


def test_idempotency_keys_of_different_accounts_do_not_meet(server: Server) -> None:
    ids = {
        submit_once(server, "/v1", key, {"prompt": "x"}, "order 1").json()["id"]
        for key in (server.key, server.new_key())
    }
    assert len(ids) == 2


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("length", [0, 1, 255, 256, 20_000])
def test_an_idempotency_key_has_1_to_255_characters(server: Server, prefix: str, length: int) -> None:
    answer = submit_once(server, prefix, server.key, {"prompt": "x"}, "k" * length)
    if 1 <= length <= 255:
        assert answer.status_code == 200
    else:
        refused(answer, 422, prefix, "invalid_request")
        assert answer.json()["detail"][0]["type"] == "string_length"
        assert len(answer.content) < 2000


def test_a_refused_request_does_not_use_its_idempotency_key_up(server: Server) -> None:
    key = server.new_key(grant=1)
    is_error(submit_once(server, "/v1", key, {"prompt": "x", "width": 1}, "order 1"), 422)
    is_error(submit_once(server, "/v1", key, {"prompt": "x"}, "order 1"), 402)
    other = server.new_key(grant=10_000)
    is_error(submit_once(server, "/v1", other, {"prompt": "x", "width": 1}, "order 1"), 422)
    assert submit_once(server, "/v1", other, {"prompt": "x"}, "order 1").status_code == 200


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_422_names_its_field_for_cometapi_too(server: Server, prefix: str) -> None:
    answer = server.post(f"{prefix}/flux-dev", {"prompt": "x", "width": 100})
    refused(answer, 422, prefix, "invalid_request")
    if prefix == COMETAPI:
        assert answer.json()["error"]["param"] == "width"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_unknown_model_is_a_404_that_lists_the_known_ones(server: Server, prefix: str) -> None:
    for name in ("flux-9-pro", "Flux-Dev", "flux-dev ", "é", "get_results", "flux-dev/x"):
        answer = server.ask("POST", f"{prefix}/{name}", key=server.key, body=BODY)
        error = refused(answer, 404, prefix, "model_not_found")
        assert "flux-pro-1.1-ultra" in str(error["message"])
