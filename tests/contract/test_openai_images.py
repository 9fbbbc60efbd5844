"""OpenAI's images API as its clients know it: every field, what it comes to, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import pytest
from calls import Call, waits
from images_calls import EDITS, GENERATIONS, RED, answered, drawn, edit, generate, refused
from inprocess import Server
from PIL import Image

from fluxserve.errors import ConfigurationError
from fluxserve.store.base import TaskRecord
from sample_pictures import file_of, picture

PREVIEW = b"\xff\xd8 a preview"


def tasks_of(server: Server) -> list[TaskRecord]:
    """Those that are there, the oldest first."""
    answer = server.ask("GET", "/v1/tasks", key=server.key).json()
    return [server.record(task) for task in reversed(answer["tasks"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A request, and what is drawn for it; `size`, `steps` and so on are those of the Generation."""

    fields: dict[str, object]
    model: str = "flux-2-dev"
    size: str = "1024x1024"
    steps: int = 28
    output_format: str = "png"
    others: dict[str, object] = field(default_factory=dict)


FACTS = [
    Fact(fields={}),
    Fact(fields={"model": None, "n": None, "size": None, "quality": None, "user": ""}),
    *(Fact(fields={"model": model}) for model in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5-mini")),
    Fact(fields={"model": "chatgpt-image-latest"}),
    *(
        Fact(fields={"model": "dall-e-3", "size": size}, size=size)
        for size in ("256x256", "512x512", "1792x1024", "1024x1792", "1536x1024", "1024x1536")
    ),
    Fact(fields={"size": "auto"}),
    Fact(fields={"model": "flux-dev", "size": "512x768"}, model="flux-dev", size="512x768"),
    Fact(fields={"model": "flux-pro-1.1-ultra"}, model="flux-pro-1.1-ultra", size="2048x2048"),
    Fact(fields={"model": "flux-pro-1.1-ultra", "size": "1792x768"}, model="flux-pro-1.1-ultra", size="3136x1344"),
    Fact(fields={"model": "flux-kontext-pro", "size": "1536x1024"}, model="flux-kontext-pro", size="1248x832"),
    Fact(fields={"quality": "low"}, steps=14),
    *(Fact(fields={"quality": quality}) for quality in ("auto", "medium", "standard")),
    *(Fact(fields={"quality": quality}, steps=50) for quality in ("high", "hd")),
    Fact(fields={"quality": "high", "model": "flux-schnell"}, model="flux-schnell", steps=12),
    Fact(fields={"quality": "low", "model": "flux-2-pro"}, model="flux-2-pro"),
    *(Fact(fields={"output_format": kind}, output_format=kind) for kind in ("png", "jpeg", "webp")),
    Fact(fields={"moderation": "low"}, others={"safety_tolerance": 4}),
    Fact(fields={"moderation": "auto", "background": "opaque", "output_compression": 50, "style": "vivid"}),
    Fact(fields={"seed": 7, "steps": 9, "guidance": 3}, steps=9, others={"seed": 7, "guidance": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: json.dumps(fact.fields))
def test_a_request_is_drawn_as_its_fields_say(server: Server, fact: Fact) -> None:
    body = json.dumps({"prompt": "a red apple", **fact.fields}).encode()
    call = Call(server, GENERATIONS, key=server.key, method="POST", body=body)
    waits(server)
    (record,) = tasks_of(server)
    drawn_so = record.generation
    assert (drawn_so.model, str(drawn_so.size), drawn_so.steps, drawn_so.output_format) == (
        fact.model, fact.size, fact.steps, fact.output_format,
    )  # fmt: skip
    assert {name: getattr(drawn_so, name) for name in fact.others} == fact.others
    call.hang_up()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "missing_required_parameter"),
        ({"prompt": 5}, "prompt", "invalid_value"),
        ({"prompt": "x" * 10_001}, "prompt", "invalid_value"),
        *(({"n": n}, "n", "invalid_value") for n in (0, 11, -1, "two", 1.5)),
        *(({"size": size}, "size", "invalid_value") for size in ("1024", "1024x", "0x0", "1024X1024", 1024, "100x100")),
        ({"size": "4096x4096"}, "size", "invalid_value"),
        ({"size": "1536x1024", "model": "flux-dev"}, "size", "invalid_value"),
        ({"quality": "best"}, "quality", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        ({"output_compression": 101}, "output_compression", "invalid_value"),
        ({"background": "transparent"}, "background", "invalid_value"),
        ({"moderation": "off"}, "moderation", "invalid_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"partial_images": 4, "stream": True}, "partial_images", "invalid_value"),
        ({"stream": True, "n": 2}, "n", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"steps": 51}, "quality", "invalid_value"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_a_400_that_names_it(
    shared: Server, fields: dict[str, object], param: str, code: str
) -> None:
    message = refused(generate(shared, **fields), 400, code=code, param=param)
    assert message.startswith(f"{param}: ")
    assert tasks_of(shared) == []


@pytest.mark.parametrize("model", ["flux-9", "flux-3-image-klein", "gpt-4o", "dall-e", "../flux-dev"])
def test_a_model_that_is_not_here_is_a_404(shared: Server, model: str) -> None:
    refused(generate(shared, model=model), 404, code="model_not_found", param="model")


@pytest.mark.parametrize("path", [GENERATIONS, EDITS])
def test_a_wrong_key_and_a_missing_one_are_401_in_openais_envelope(shared: Server, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        call = Call(shared, path, method="POST", headers=headers, body=b"{")
        refused(call, 401, code="invalid_api_key")


@pytest.mark.parametrize("body", [b"", b"{", b"prompt=x", b"\xff"])
def test_a_body_that_is_no_json_is_a_400(shared: Server, body: bytes) -> None:
    refused(Call(shared, GENERATIONS, key=shared.key, method="POST", body=body), 400, code=None)


def test_what_is_no_path_or_no_post_is_told_in_the_same_envelope(shared: Server) -> None:
    refused(Call(shared, "/v1/images/variations", key=shared.key, method="POST", body=b"{}"), 404, code=None)
    answer = shared.ask("GET", GENERATIONS, key=shared.key)
    assert (answer.status_code, answer.headers["allow"], list(answer.json())) == (405, "POST", ["error"])


def test_a_picture_is_answered_as_base64_with_what_it_took(server: Server) -> None:
    call = generate(server, model="gpt-image-1", quality="high", seed=3)
    waits(server)
    server.draw()
    status, headers = call.begin()
    body = json.loads(call.whole())
    (record,) = tasks_of(server)
    assert (status, headers["x-fluxserve-model"], headers["x-fluxserve-tasks"]) == (200, "flux-2-dev", record.id)
    (shown,) = body.pop("data")
    assert shown.keys() == {"b64_json", "seed"}
    with Image.open(BytesIO(base64.b64decode(shown["b64_json"]))) as made:
        assert (made.format, made.size) == ("PNG", (256, 256))
    assert body == {
        "created": int(record.finished_at or 0), "size": "256x256", "quality": "high", "output_format": "png",
        "background": "opaque",
        "usage": {
            "total_tokens": 768, "input_tokens": 512, "input_tokens_details": {"text_tokens": 512, "image_tokens": 0},
            "output_tokens": 256, "output_tokens_details": {"text_tokens": 0, "image_tokens": 256},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "links"),
    [
        ({}, True), ({"model": "dall-e-3"}, True), ({"model": "dall-e-2", "response_format": "b64_json"}, False),
        ({"model": "gpt-image-1"}, False), ({"model": "flux-dev"}, False),
        ({"model": "flux-dev", "response_format": "url"}, True), ({"response_format": "b64_json"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_links_are_answered_where_openai_answers_them(server: Server, fields: dict[str, object], links: bool) -> None:
    _, body = drawn(server, generate(server, **fields))
    (shown,) = body["data"]
    assert ("url" in shown, "b64_json" in shown) == (links, not links)
    if links:
        picture = server.ask("GET", shown["url"])
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")


def test_n_pictures_are_n_tasks_with_seeds_of_their_own_and_cost_n_prices(server: Server) -> None:
    key = server.new_key(grant=10_000)
    _, body = drawn(server, generate(server, key=key, n=3, seed=2**64 - 1), tasks=3)
    assert [shown["seed"] for shown in body["data"]] == [2**64 - 1, 0, 1]
    assert len({shown["url"] for shown in body["data"]}) == 3
    assert body["usage"]["output_tokens"] == 3 * 256
    assert server.balance(key) == 10_000 - 3 * 1200


def test_a_picture_that_fails_is_left_out_and_told_and_costs_nothing(server: Server) -> None:
    key = server.new_key(grant=10_000)
    call = generate(server, key=key, n=3)
    waits(server, 3)
    first, *others = server.claim()
    server.fail(first, "The device ran out of memory.")
    for record in others:
        server.draw_claimed(record)
    status, body = answered(call)
    assert (status, len(body["data"])) == (200, 2)
    assert [failure["message"] for failure in body["failures"]] == ["The device ran out of memory."]
    assert server.balance(key) == 10_000 - 2 * 1200


def test_where_no_picture_was_drawn_the_reason_is_the_answer(server: Server) -> None:
    call = generate(server, n=2)
    waits(server, 2)
    for record in server.claim():
        server.fail(record, "The device ran out of memory.")
    assert refused(call, 500, code="drawing_failed") == "The device ran out of memory."


@pytest.mark.parametrize(
    ("model", "code"), [("gpt-image-1", "moderation_blocked"), ("dall-e-3", "content_policy_violation")]
)
def test_a_prompt_that_is_refused_is_a_400_that_says_so(server: Server, model: str, code: str) -> None:
    key = server.new_key(grant=10_000)
    refused(generate(server, key=key, model=model, n=4, prompt="a naked schoolgirl"), 400, code=code)
    assert server.balance(key) == 10_000


def test_who_hangs_up_is_taken_at_their_word(server: Server) -> None:
    key = server.new_key(grant=10_000)
    call = generate(server, key=key, n=2)
    waits(server, 2)
    server.claim()
    call.hang_up()
    assert not call.has_more()
    assert server.balance(key) == 10_000
    assert server.claim() == []
    assert server.faults() == []


def test_who_has_an_idempotency_key_may_hang_up_and_come_again(server: Server) -> None:
    key, headers = server.new_key(grant=10_000), {"idempotency-key": "4fd2"}
    call = generate(server, key=key, headers=headers, n=2)
    waits(server, 2)
    call.hang_up()
    server.draw()
    first = answered(generate(server, key=key, headers=headers, n=2))
    assert (first[0], len(first[1]["data"])) == (200, 2)
    again = answered(generate(server, key=key, headers=headers, n=2))
    assert [shown["seed"] for shown in again[1]["data"]] == [shown["seed"] for shown in first[1]["data"]]
    assert server.balance(key) == 10_000 - 2 * 1200
    message = refused(generate(server, key=key, headers=headers, n=1, prompt="another"), 400, code="invalid_value",
                      param="idempotency-key")  # fmt: skip
    assert "Idempotency-Key" in message


def test_what_is_not_drawn_in_time_is_given_up(serve: Callable[..., Server]) -> None:
    server = serve(hold=0.05)
    key = server.new_key(grant=10_000)
    call = generate(server, key=key)
    refused(call, 504, code=None)
    assert server.balance(key) == 10_000
    assert server.claim() == []


def test_a_request_that_cannot_be_paid_in_full_is_not_drawn_in_part(server: Server) -> None:
    key = server.new_key(grant=3000)
    refused(generate(server, key=key, n=3), 429, code="insufficient_quota")
    assert server.balance(key) == 3000
    assert server.claim() == []


def test_too_many_tasks_are_a_429_that_says_when_to_come_again(server: Server) -> None:
    key = server.new_key(max_active=1)
    call = generate(server, key=key, n=2)
    status, headers = call.begin()
    assert (status, headers["retry-after"]) == (429, "2")
    assert json.loads(call.whole())["error"]["code"] == "rate_limit_exceeded"
    assert server.claim() == []


def test_a_server_that_stops_lets_its_callers_go(server: Server) -> None:
    call = generate(server)
    waits(server)
    server.service.watches.end()
    refused(call, 503, code=None)


def test_a_stream_shows_previews_and_ends_with_the_picture(server: Server) -> None:
    call = generate(server, model="gpt-image-1", stream=True, partial_images=2)
    waits(server)
    (record,) = server.claim()
    for step in (10, 11, 20, 27):
        server.run(shown(server, record, step))
    status, headers = call.begin()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    partials = [named(call), named(call)]
    assert [event["partial_image_index"] for event in partials] == [0, 1]
    assert all(event["type"] == "image_generation.partial_image" for event in partials)
    assert all(base64.b64decode(event["b64_json"]).startswith(PREVIEW) for event in partials)
    server.draw_claimed(record)
    last = named(call)
    assert (last["type"], last["usage"]["output_tokens"]) == ("image_generation.completed", 256)
    assert base64.b64decode(last["b64_json"]).startswith(b"\x89PNG")
    assert call.is_over()


async def shown(server: Server, record: TaskRecord, step: int) -> None:
    """A worker has made this step, and shows another preview."""
    server.service.advance(record.id, step, record.generation.steps)
    server.service.show_preview(record.id, PREVIEW + bytes([step]))
    for _ in range(20):
        await asyncio.sleep(0)


def named(call: Call) -> dict[str, object]:
    """The data of the next event, which is called as it says."""
    name, data = call.block().split("\n")
    body = json.loads(data.removeprefix("data: "))
    assert name == f"event: {body['type']}"
    return dict(body)


def test_a_stream_whose_picture_fails_ends_with_an_error(server: Server) -> None:
    call = generate(server, stream=True)
    waits(server)
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    call.begin()
    body = named(call)
    assert (body["type"], body["error"]["message"]) == ("error", "The device ran out of memory.")  # type: ignore[index]
    assert call.is_over()


def test_who_hangs_up_on_a_stream_ends_its_task(server: Server) -> None:
    call = generate(server, stream=True)
    waits(server)
    call.begin()
    call.hang_up()
    assert server.claim() == []


# Edits


def test_a_request_that_is_held_holds_no_pictures(server: Server) -> None:
    noise = file_of(Image.frombytes("RGB", (1000, 1000), random.Random(1).randbytes(3_000_000)))
    waits(server, 0)
    tracemalloc.start()
    try:
        call = edit(server, [("image", noise)], model="gpt-image-1")
        waits(server)
        gc.collect()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > len(noise)
    assert held < len(noise) / 2
    call.hang_up()


@pytest.mark.parametrize(
    ("fields", "names", "model", "size"),
    [
        ({}, ("input_image",), "flux-2-dev", "256x256"),
        ({"model": "gpt-image-1"}, ("input_image", "input_image_2", "input_image_3"), "flux-2-dev", "256x256"),
        ({"size": "512x512"}, ("input_image",), "flux-2-dev", "512x512"),
        ({"model": "flux-kontext-pro"}, ("input_image", "input_image_2"), "flux-kontext-pro", "1024x1024"),
        ({"model": "flux-dev"}, ("image",), "flux-dev", "256x256"),
        ({"model": "flux-pro-1.0-canny"}, ("control_image",), "flux-pro-1.0-canny", "256x256"),
    ],
    ids=str,
)
def test_an_edit_fills_the_models_fields_in_their_order(
    server: Server, fields: dict[str, str], names: tuple[str, ...], model: str, size: str
) -> None:
    field = "image" if len(names) == 1 else "image[]"
    call = edit(server, [(field, RED)] * len(names), **fields)
    waits(server)
    (record,) = tasks_of(server)
    assert (record.generation.model, str(record.generation.size)) == (model, size)
    assert tuple(one.name for one in record.generation.pictures) == names
    server.draw()
    assert answered(call)[0] == 200


def test_numbers_in_a_form_are_numbers(server: Server) -> None:
    call = edit(server, [("image", RED)], n="2", seed="7", steps="9", guidance="3.5", stream="false")
    waits(server, 2)
    assert [(one.generation.seed, one.generation.steps) for one in tasks_of(server)] == [(7, 9), (8, 9)]
    call.hang_up()


def half(colour: str, alpha: int) -> bytes:
    """A picture whose left half is as opaque as it says."""
    made = picture(256, 256, colour, "RGBA")
    made.putalpha(Image.new("L", made.size, 255))
    made.paste((0, 0, 0, alpha), (0, 0, 128, 256))
    return file_of(made)


def white_left() -> bytes:
    made = Image.new("RGB", (256, 256), "black")
    made.paste("white", (0, 0, 128, 256))
    return file_of(made)


@pytest.mark.parametrize("mask", [half("red", 0), white_left()], ids=["transparent", "white"])
def test_what_a_mask_leaves_out_is_drawn_anew(server: Server, mask: bytes) -> None:
    call = edit(server, [("image", RED), ("mask", mask)], model="gpt-image-1", size="1024x1024")
    waits(server)
    (record,) = server.claim()
    assert (record.generation.model, str(record.generation.size)) == ("flux-pro-1.0-fill", "256x256")
    files = server.run(server.service.read_inputs(record))
    with Image.open(BytesIO(files["mask"])) as shown_mask:
        assert [shown_mask.convert("L").getpixel(at) for at in ((10, 10), (200, 10))] == [255, 0]
    server.draw_claimed(record)
    assert answered(call)[0] == 200


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ([("other", RED)], {}, "image"),
        ([("image", b"no picture")], {}, "image"),
        ([("image[]", RED)] * 9, {}, "image"),
        ([("image[]", RED)] * 17, {}, "image"),
        ([("image", RED)], {"model": "flux-schnell"}, "image"),
        ([("image[]", RED)] * 2 + [("mask", RED)], {}, "image"),
        ([("image", RED), ("mask", RED)], {"model": "flux-2-pro"}, "mask"),
        ([("image", RED), ("mask", file_of(picture(128, 256)))], {}, "mask"),
    ],
    ids=["none", "no picture", "too many", "far too many", "no field", "one with a mask", "no mask", "another size"],
)
def test_pictures_that_cannot_be_are_a_400(
    shared: Server, files: list[tuple[str, bytes]], fields: dict[str, str], param: str
) -> None:
    code = "missing_required_parameter" if files[0][0] == "other" else "invalid_value"
    refused(edit(shared, files, **fields), 400, code=code, param=param)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 201),
        ("multipart/form-data; boundary=x", b""),
    ],
)
def test_a_form_that_is_none_is_a_400(shared: Server, content_type: str, body: bytes) -> None:
    call = Call(shared, EDITS, key=shared.key, method="POST", body=body, headers={"content-type": content_type})
    refused(call, 400, code=None)


def test_an_edit_as_json_is_told_to_be_a_form(shared: Server) -> None:
    call = Call(shared, EDITS, key=shared.key, method="POST", body=b"{}", headers={"content-type": "application/json"})
    assert "multipart/form-data" in refused(call, 400, code="invalid_value", param="image")


def test_a_model_that_stands_in_has_to_exist(serve: Callable[..., Server]) -> None:
    with pytest.raises(ConfigurationError, match="openai_model names flux-9"):
        serve(openai_model="flux-9")
