"""Every field of every model in both dialects: ranges, types, defaults, what is unset, what is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from facts import (
    EMPTY_IS_UNSET,
    EVERY,
    FIELDS,
    FLUX2,
    KONTEXT,
    NEEDED,
    OUR_PRICES,
    PREFIXES,
    PRICES,
    PROMPTED,
    ULTRA,
    Field,
)
from inprocess import Json, Server
from shapes import is_error

from fluxserve.catalogue import MODELS
from fluxserve.catalogue.schema import param_schema
from fluxserve.service.upsampling import UNAVAILABLE
from fluxserve.store.base import TaskRecord


def name_of(value: object) -> str:
    return value.name if isinstance(value, Field) else str(value)[:24]


ACCEPTED = [
    (field, model, text, outcome)
    for field in FIELDS
    for model in field.tried
    for text, outcome in field.accepted.items()
]
REFUSED = [
    (field, model, text, kind) for field in FIELDS for model in field.tried for text, kind in field.refused.items()
]


def body_of(field: Field, text: str, model: str = "flux-dev") -> bytes:
    needed = NEEDED[model]
    before = "" if needed.startswith(f'"{field.name}":') else f"{needed}, "
    return f'{{{before}"{field.name}": {text}}}'.encode()


def submit(server: Server, path: str, body: bytes) -> TaskRecord:
    answer = server.ask("POST", path, key=server.key, body=body)
    assert answer.status_code == 200, answer.text
    return server.record(answer.json())


def value_of(record: TaskRecord, attribute: str) -> object:
    generation = record.generation
    if attribute in ("width", "height"):
        return getattr(generation.size, attribute)
    return str(generation.size) if attribute == "size" else getattr(generation, attribute)


def told(warnings: Iterable[str]) -> list[str]:
    """But that nothing enriches prompts here."""
    return [warning for warning in warnings if warning != UNAVAILABLE]


@pytest.mark.parametrize(("field", "model", "text", "outcome"), ACCEPTED, ids=name_of)
def test_what_is_in_range_is_accepted_and_drawn(
    shared: Server, field: Field, model: str, text: str, outcome: object
) -> None:
    for prefix in PREFIXES:
        record = submit(shared, f"{prefix}/{model}", body_of(field, text))
        if field.attribute is not None:
            value = value_of(record, field.attribute)
            assert (value, type(value)) == (outcome, type(outcome))


@pytest.mark.parametrize(("field", "model", "text", "kind"), REFUSED, ids=name_of)
def test_what_is_out_of_range_or_of_another_type_is_a_422_that_names_the_field(
    shared: Server, field: Field, model: str, text: str, kind: str
) -> None:
    for prefix in PREFIXES:
        answer = shared.ask("POST", f"{prefix}/{model}", key=shared.key, body=body_of(field, text, model))
        body = is_error(answer, 422, prefix)
        (item,) = body["detail"]
        assert item["type"] in kind.split("|")
        assert item["loc"] == ["body", field.name]
        assert body["message"] == f"{field.name}: {item['msg']}"
        assert len(answer.content) < 2000


@pytest.mark.parametrize("field", [field for field in FIELDS if field.name != "prompt"], ids=name_of)
def test_null_means_unset_and_so_does_an_empty_text_where_text_is_optional(shared: Server, field: Field) -> None:
    for model in field.tried if field.tried[0] in PROMPTED else ():
        for text in ("null", '""') if field.name in EMPTY_IS_UNSET else ("null",):
            record = submit(shared, f"/v1/{model}", body_of(field, text))
            assert told(record.warnings) == []
            assert record.webhook_url is None
            if model in field.default and field.attribute is not None:
                assert value_of(record, field.attribute) == field.default[model]


@pytest.mark.parametrize("model", PROMPTED)
def test_a_prompt_alone_is_enough_and_takes_the_published_defaults(shared: Server, model: str) -> None:
    record = submit(shared, f"/v1/{model}", b'{"prompt": "an owl"}')
    for field in FIELDS:
        if model in field.default and field.attribute is not None:
            assert value_of(record, field.attribute) == field.default[model]
    assert 0 <= record.generation.seed < 2**32
    # Some models have their prompts enriched unless they are told not to, and here nothing enriches them.
    assert record.warnings == ((UNAVAILABLE,) if MODELS[model].wants_upsampling({"prompt": "an owl"}) else ())


@pytest.mark.parametrize("model", PROMPTED)
def test_the_prompt_is_required(shared: Server, model: str) -> None:
    for prefix in PREFIXES:
        answer = shared.post(f"{prefix}/{model}", {"seed": 1})
        assert answer.status_code == 422
        assert answer.json()["detail"] == [
            {"type": "missing", "loc": ["body", "prompt"], "msg": "Field required", "input": {"seed": 1}}
        ]


@pytest.mark.parametrize("field", FIELDS, ids=name_of)
def test_a_field_that_changes_nothing_without_another_says_so(shared: Server, field: Field) -> None:
    for model in field.tried if field.accepted else ():
        text = next(iter(field.accepted))
        warnings = told(submit(shared, f"/v1/{model}", body_of(field, text)).warnings)
        assert len(warnings) == int(field.warns), warnings
        assert all(warning.startswith(field.name) for warning in warnings)


@pytest.mark.parametrize("model", PROMPTED)
def test_unknown_fields_are_ignored_and_named(shared: Server, model: str) -> None:
    known = {field.name for field in FIELDS if model in field.models}
    strangers = {"negative_prompt": "blurry", "num_images": 4, "width_": [1, {"a": None}], "": True}
    others = dict.fromkeys(sorted({field.name for field in FIELDS} - known)[:10], 1)
    for prefix in PREFIXES:
        task = shared.submit({"prompt": "x", **strangers, **others}, f"{prefix}/{model}")
        expected = (strangers.keys() | others.keys()) | ({"width", "height"} - known)
        warnings = told(shared.poll(task)["details"]["warnings"])
        assert sorted(warnings) == sorted(f"{name} is not a parameter of {model} and was ignored" for name in expected)


def test_a_thousand_unknown_fields_make_a_short_answer(shared: Server) -> None:
    task = shared.submit({f"{number:04}" * 100: number for number in range(1000)})
    answer = shared.ask("GET", str(task["polling_url"]))
    assert len(answer.json()["details"]["warnings"]) == 20
    assert len(answer.content) < 4000


def test_several_mistakes_are_all_told(shared: Server) -> None:
    answer = shared.post("/v1/flux-dev", {"width": 1, "height": "x", "steps": 0})
    body = answer.json()
    assert [item["loc"][1] for item in body["detail"]] == ["prompt", "width", "height", "steps"]
    assert body["message"] == "prompt: Field required (and 3 more)"


def test_a_long_value_is_not_sent_back_whole(shared: Server) -> None:
    answer = shared.post("/v1/flux-dev", {"prompt": "x", "width": "y" * 100_000})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["input"] == "y" * 200 + "…"


@pytest.mark.parametrize("model", PROMPTED)
def test_a_submit_answers_id_address_price_and_size(shared: Server, model: str) -> None:
    sized = model not in (*ULTRA, *KONTEXT)
    size = {"width": 512, "height": 512} if sized else {"aspect_ratio": "1:1"}
    price, _ = (PRICES | OUR_PRICES)[model]
    for prefix in PREFIXES:
        answer = shared.post(f"{prefix}/{model}", {"prompt": "x", **size})
        body: Json = answer.json()
        assert list(body) == ["id", "polling_url", "cost", "input_mp", "output_mp"]
        assert body["cost"] == price
        assert (body["input_mp"], body["output_mp"]) == (0.0, 0.26 if sized else 4.19 if model in ULTRA else 1.05)


def test_each_further_megapixel_has_its_price(shared: Server) -> None:
    for model in FLUX2:
        first, further = (PRICES | OUR_PRICES)[model]
        body = shared.post(f"/v1/{model}", {"prompt": "x", "width": 2048, "height": 2048}).json()
        assert body["cost"] == pytest.approx(first + 3 * further)
        assert body["output_mp"] == 4.19


def test_a_published_model_that_is_not_drawn_says_why(shared: Server) -> None:
    for prefix in PREFIXES:
        answer = shared.post(f"{prefix}/flux-3-image-klein", {"prompt": "x"})
        assert "flux-2-klein-9b" in is_error(answer, 400, prefix)["message"]
        assert shared.ask("POST", f"{prefix}/flux-3-image-klein", body=b"{}").status_code == 401


@pytest.mark.parametrize("field", FIELDS, ids=name_of)
def test_a_field_is_the_same_in_every_model_that_has_it(field: Field) -> None:
    one, *others = (param_schema(found) for model in field.models if (found := MODELS[model].param(field.name)))
    for other in others:
        told = {"description", "default"}
        assert {name: one[name] for name in one.keys() - told} == {name: other[name] for name in other.keys() - told}


def test_a_submit_with_a_webhook_answers_its_shape_too(shared: Server) -> None:
    body = shared.submit({"webhook_url": "https://example.com/hook"})
    assert list(body) == ["id", "polling_url", "cost", "input_mp", "output_mp", "status", "webhook_url"]
    assert (body["status"], body["webhook_url"]) == ("Pending", "https://example.com/hook")


def test_the_table_knows_every_model_and_field_that_is_served() -> None:
    for model, spec in MODELS.items():
        assert {param.name for param in spec.params} == {field.name for field in FIELDS if model in field.models}
    assert set(MODELS) == set(EVERY)


def test_equal_fields_make_equal_generations_whatever_the_spelling(shared: Server) -> None:
    one = submit(shared, "/v1/flux-pro", b'{"prompt": "x", "seed": 1, "guidance": 3, "interval": 2}')
    other = submit(shared, "/flux/v1/flux-pro", b'{"interval":2.0,"guidance":3.0,"seed":1,"prompt":"\\u0078"}')
    assert one.generation == other.generation
    assert json.dumps(one.generation.guidance) == "3.0"
