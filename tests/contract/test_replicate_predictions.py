"""Replicate's predictions as its clients know them: names, inputs, statuses, waiting, cancelling, webhooks, errors."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from calls import Call, waits
from images_calls import answered
from inprocess import ORIGIN, Json, Server
from posting import URL, Posting

from fluxserve.store.base import TaskRecord
from sample_pictures import PNG

DEV = "/v1/models/black-forest-labs/flux-dev/predictions"
LIST = "/v1/predictions"


def model(name: str) -> str:
    return f"/v1/models/black-forest-labs/{name}/predictions"


def begin(server: Server, path: str = DEV, **asked: object) -> Json:
    """A prediction that was begun."""
    answer = server.post(path, {"input": {"prompt": "a red apple", "aspect_ratio": "1:1", **asked}})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def get(server: Server, prediction: Json, key: str | None = None) -> Json:
    answer = server.ask("GET", prediction["urls"]["get"], key=key or server.key)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def waiting(server: Server, prefer: str) -> Call:
    """A prediction whose answer is held."""
    body = b'{"input": {"prompt": "x"}}'
    return Call(server, DEV, key=server.key, method="POST", body=body, headers={"prefer": prefer})


def records(server: Server, prediction: Json) -> list[TaskRecord]:
    return [server.record({"id": task_id}) for task_id in prediction["id"].split(".")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """An input of a model, and what is drawn for it."""

    name: str
    asked: dict[str, object] = field(default_factory=dict)
    model: str = ""
    size: str = "1024x1024"
    output_format: str = "webp"
    others: dict[str, object] = field(default_factory=dict)


FACTS = [
    Fact(name="flux-dev"), Fact(name="flux-schnell"), Fact(name="flux-pro"), Fact(name="flux-krea-dev"),
    Fact(name="flux-1.1-pro", model="flux-pro-1.1"),
    Fact(name="flux-1.1-pro-ultra", model="flux-pro-1.1-ultra", size="2048x2048"),
    Fact(name="flux-kontext-pro"), Fact(name="flux-kontext-max"), Fact(name="flux-kontext-dev"),
    Fact(name="flux-2-pro"), Fact(name="flux-2-klein-4b"),
    Fact(name="flux-dev", asked={"aspect_ratio": "16:9"}, size="1376x768"),
    Fact(name="flux-dev", asked={"aspect_ratio": "21:9"}, size="1440x672"),
    Fact(name="flux-dev", asked={"aspect_ratio": "4:5", "megapixels": "0.25"}, size="448x576"),
    Fact(name="flux-2-pro", asked={"aspect_ratio": "3:2", "resolution": "2 MP"}, size="1776x1184"),
    Fact(name="flux-2-pro", asked={"aspect_ratio": None, "width": 512, "height": 768}, size="512x768"),
    Fact(name="flux-2-pro", asked={"aspect_ratio": "custom", "width": 512, "height": 768}, size="512x768"),
    Fact(name="flux-2-pro", asked={"aspect_ratio": "match_input_image", "input_images": [PNG]}, size="256x256"),
    Fact(name="flux-kontext-pro", asked={"aspect_ratio": "match_input_image", "input_image": PNG}),
    Fact(name="flux-kontext-pro", asked={"aspect_ratio": "3:2"}, size="1248x832"),
    Fact(name="flux-dev", asked={"output_format": "jpg"}, output_format="jpeg"),
    Fact(name="flux-dev", asked={"output_format": "png"}, output_format="png"),
    Fact(name="flux-dev", asked={"output_quality": 80, "go_fast": True, "disable_safety_checker": True}),
    Fact(
        name="flux-dev", asked={"num_inference_steps": 9, "guidance": 3, "seed": 7, "safety_tolerance": 5},
        others={"steps": 9, "guidance": 3.0, "seed": 7, "safety_tolerance": 5},
    ),
    Fact(name="flux-fill-pro", model="flux-pro-1.0-fill", asked={"image": PNG, "mask": PNG}, size="256x256"),
    Fact(name="flux-fill-dev", model="flux-pro-1.0-fill", asked={"image": PNG, "mask": PNG}, size="256x256"),
    Fact(name="flux-canny-pro", model="flux-pro-1.0-canny", asked={"control_image": PNG}, size="256x256"),
    Fact(name="flux-depth-dev", model="flux-pro-1.0-depth", asked={"control_image": PNG}, size="256x256"),
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.name} {list(fact.asked)}")
def test_a_prediction_is_drawn_as_its_input_says(server: Server, fact: Fact) -> None:
    (record,) = records(server, begin(server, model(fact.name), **fact.asked))
    drawn = record.generation
    assert (drawn.model, str(drawn.size), drawn.output_format) == (
        fact.model or fact.name,
        fact.size,
        fact.output_format,
    )
    assert {name: getattr(drawn, name) for name in fact.others} == fact.others
    assert not [told for told in record.warnings if "not a parameter" in told]


def test_pictures_of_a_list_fill_the_models_fields_in_their_order(server: Server) -> None:
    (record,) = records(server, begin(server, model("flux-2-dev"), input_images=[PNG, PNG, PNG]))
    assert [one.name for one in record.generation.pictures] == ["input_image", "input_image_2", "input_image_3"]


@pytest.mark.parametrize("named", [{"version": "black-forest-labs/flux-dev"}, {"model": "flux-dev"}], ids=str)
def test_the_model_may_stand_in_the_body(server: Server, named: dict[str, str]) -> None:
    answer = server.post(LIST, {**named, "input": {"prompt": "x"}})
    assert (answer.status_code, answer.json()["model"]) == (201, "black-forest-labs/flux-dev")


def test_a_prediction_goes_from_starting_to_succeeded(server: Server) -> None:
    begun = begin(server, seed=3, num_inference_steps=9)
    assert begun["id"] == str(uuid.UUID(begun["id"]))
    assert begun["urls"] == {
        "get": f"{ORIGIN}{LIST}/{begun['id']}", "cancel": f"{ORIGIN}{LIST}/{begun['id']}/cancel",
    }  # fmt: skip
    assert (begun["status"], begun["output"], begun["error"], begun["metrics"]) == ("starting", None, None, {})
    assert (begun["started_at"], begun["completed_at"]) == (None, None)
    assert begun["input"] | {"seed": 3, "num_inference_steps": 9, "prompt": "a red apple"} == begun["input"]
    (record,) = server.claim()
    assert get(server, begun)["status"] == "processing"
    server.now += 2.5
    server.draw_claimed(record)
    ended = get(server, begun)
    assert (ended["status"], ended["metrics"]) == ("succeeded", {"predict_time": 2.5, "image_count": 1})
    assert ended["logs"] == "Using seed: 3"
    assert (ended["created_at"], ended["completed_at"]) == ("2027-01-15T08:00:00.000Z", "2027-01-15T08:00:02.500Z")
    (link,) = ended["output"]
    assert server.ask("GET", link).headers["content-type"] == "image/webp"


@pytest.mark.parametrize("name", ["flux-kontext-pro", "flux-1.1-pro", "flux-2-pro"])
def test_models_of_one_picture_answer_its_link_alone(server: Server, name: str) -> None:
    begun = begin(server, model(name))
    server.draw()
    assert str(get(server, begun)["output"]).startswith(f"{ORIGIN}/results/")


def test_several_outputs_are_as_many_tasks_under_one_id(server: Server) -> None:
    key = server.new_key(grant=10_000)
    answer = server.ask("POST", DEV, key=key, body=b'{"input": {"prompt": "x", "num_outputs": 3, "seed": 5}}')
    begun = answer.json()
    first, *others = server.claim()
    server.draw_claimed(first)
    assert get(server, begun, key)["status"] == "processing"
    for record in others:
        server.draw_claimed(record)
    ended = get(server, begun, key)
    assert (ended["status"], len(set(ended["output"]))) == ("succeeded", 3)
    assert ended["logs"] == "Using seed: 5\nUsing seed: 6\nUsing seed: 7"
    assert server.balance(key) == 10_000 - 3 * 2500


def test_a_failure_and_a_refusal_are_failed_with_a_reason(server: Server) -> None:
    begun = begin(server)
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    failed = get(server, begun)
    assert (failed["status"], failed["error"]) == ("failed", "The device ran out of memory.")
    refused = begin(server, prompt="a naked schoolgirl")
    assert (refused["status"], refused["output"]) == ("failed", None)
    assert "refused by moderation" in refused["error"]


def test_cancelling_ends_all_tasks_of_a_prediction_and_costs_nothing(server: Server) -> None:
    key = server.new_key(grant=10_000)
    body = b'{"input": {"prompt": "x", "num_outputs": 2}}'
    begun = server.ask("POST", DEV, key=key, body=body).json()
    answer = server.ask("POST", begun["urls"]["cancel"], key=key)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert server.claim() == []
    assert server.balance(key) == 10_000


@pytest.mark.parametrize("prefer", ["wait", "wait=5", "respond-async, wait=60"])
def test_prefer_wait_holds_the_answer_until_the_end(server: Server, prefer: str) -> None:
    call = waiting(server, prefer)
    waits(server)
    server.draw()
    status, prediction = answered(call)
    assert (status, prediction["status"], len(prediction["output"])) == (201, "succeeded", 1)


def test_who_hangs_up_while_waiting_finds_the_prediction_later(server: Server) -> None:
    call = Call(
        server, DEV, key=server.key, method="POST", body=b'{"input": {"prompt": "x"}}', headers={"prefer": "wait"}
    )
    waits(server)
    call.hang_up()
    server.draw()
    (found,) = server.ask("GET", LIST, key=server.key).json()["results"]
    assert found["status"] == "succeeded"


def test_a_server_that_stops_answers_what_is_known(server: Server) -> None:
    call = Call(
        server, DEV, key=server.key, method="POST", body=b'{"input": {"prompt": "x"}}', headers={"prefer": "wait"}
    )
    waits(server)
    server.service.watches.end()
    status, prediction = answered(call)
    assert (status, prediction["status"]) == (201, "starting")


def test_the_list_is_in_pages_newest_first(server: Server) -> None:
    begun = [begin(server)["id"] for _ in range(101)]
    page = server.ask("GET", LIST, key=server.key).json()
    rest = server.ask("GET", page["next"], key=server.key).json()
    assert [one["id"] for one in (*page["results"], *rest["results"])] == begun[::-1]
    assert (len(page["results"]), page["previous"], rest["next"]) == (100, None, None)
    assert server.ask("GET", f"{LIST}?cursor=x", key=server.key).status_code == 422
    assert server.ask("GET", LIST, key=server.new_key()).json()["results"] == []


def test_nobody_sees_or_ends_a_strangers_prediction(server: Server) -> None:
    begun, stranger = begin(server), server.new_key()
    for method, url in (("GET", begun["urls"]["get"]), ("POST", begun["urls"]["cancel"])):
        answer = server.ask(method, url, key=stranger)
        assert (answer.status_code, answer.json()["title"]) == (404, "Not found")
    mixed = f"{LIST}/{begun['id']}.{uuid.UUID(int=1)}"
    assert server.ask("GET", mixed, key=server.key).status_code == 404
    assert get(server, begun)["status"] == "starting"


def test_a_webhook_tells_the_prediction_at_its_end(post: Posting) -> None:
    posted = post()
    fields = {
        "input": {"prompt": "x", "seed": 3}, "webhook": URL, "webhook_events_filter": ["start", "completed"],
    }  # fmt: skip
    begun = posted.server.post(DEV, fields).json()
    posted.server.draw()
    posted.deliver()
    (call,) = posted.receiver.seen
    told = json.loads(call.body)
    assert (told["id"], told["status"], told["urls"]) == (begun["id"], "succeeded", begun["urls"])
    assert posted.server.ask("GET", told["output"][0]).status_code == 200


@pytest.mark.parametrize("authorization", ["Bearer {key}", "Token {key}", "token {key}"])
def test_a_key_comes_as_bearer_or_token(server: Server, authorization: str) -> None:
    headers = {"authorization": authorization.format(key=server.key)}
    assert server.ask("POST", DEV, headers=headers, body=b'{"input": {"prompt": "x"}}').status_code == 201


def test_an_idempotency_key_begins_one_prediction(server: Server) -> None:
    body = {"input": {"prompt": "x", "num_outputs": 2}}
    first, again = (server.post(DEV, body, Idempotency_Key="4fd2").json() for _ in range(2))
    assert first["id"] == again["id"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": {}}, "input.prompt"),
        ({"input": {"prompt": "x", "seed": -1}}, "input.seed"),
        ({"input": {"prompt": "x", "num_inference_steps": 51}}, "input.num_inference_steps"),
        ({"input": {"prompt": "x", "num_outputs": 5}}, "input.num_outputs"),
        ({"input": {"prompt": "x", "num_outputs": "2"}}, "input.num_outputs"),
        ({"input": {"prompt": "x", "output_format": "gif"}}, "input.output_format"),
        ({"input": {"prompt": "x", "aspect_ratio": "wide"}}, "input.aspect_ratio"),
        ({"input": {"prompt": "x", "megapixels": "lots"}}, "input.megapixels"),
        ({"input": {"prompt": "x", "image": "no picture"}}, "input.image"),
        ({"input": {"prompt": "x"}, "webhook": "http://10.0.0.1/"}, "webhook"),
        ({"input": {"prompt": "x"}, "webhook": URL, "webhook_events_filter": ["start"]}, "webhook_events_filter"),
        ({"input": {"prompt": "x"}, "webhook_events_filter": ["end"]}, "webhook_events_filter"),
        ({"input": {"prompt": "x", "num_outputs": 2}, "webhook": URL}, "webhook"),
    ],
    ids=str,
)
def test_what_cannot_be_is_a_422_that_names_it(shared: Server, fields: dict[str, object], named: str) -> None:
    answer = shared.post(DEV, fields)
    body = answer.json()
    assert (answer.status_code, body.keys()) == (422, {"title", "detail", "status", "invalid_fields"})
    assert (body["status"], body["invalid_fields"][0]["field"]) == (422, named)
    assert body["detail"].startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("POST", model("flux-9"), 404, "Model not found"),
        ("POST", model("flux-3-image-klein"), 404, "Model not found"),
        ("GET", f"{LIST}/{uuid.UUID(int=1)}", 404, "Not found"),
        ("GET", f"{LIST}/x", 404, "Not found"),
        ("POST", "/v1/files", 501, "Bad request"),
        ("GET", DEV, 405, "Method not allowed"),
        ("DELETE", LIST, 405, "Method not allowed"),
        ("POST", f"{LIST}/{uuid.UUID(int=1)}", 405, "Method not allowed"),
    ],
)
def test_errors_are_in_replicates_shape(shared: Server, method: str, path: str, status: int, title: str) -> None:
    answer = shared.ask(method, path, key=shared.key, body=b'{"input": {"prompt": "x"}}')
    body = answer.json()
    assert (answer.status_code, body["title"], body["status"]) == (status, title, status)
    assert body["detail"]
    assert ("allow" in answer.headers) == (status == 405)
    unknown = shared.ask(method, path, headers={"authorization": "Token wrong"}, body=b"{")
    assert (unknown.status_code, unknown.json()["title"]) == (401, "Unauthenticated")


def test_a_prediction_that_cannot_be_paid_in_full_is_not_begun_in_part(serve: Callable[..., Server]) -> None:
    server = serve()
    key = server.new_key(grant=5000)
    answer = server.ask("POST", DEV, key=key, body=b'{"input": {"prompt": "x", "num_outputs": 3}}')
    assert (answer.status_code, answer.json()["title"]) == (402, "Insufficient credit")
    assert server.balance(key) == 5000
    assert server.claim() == []
