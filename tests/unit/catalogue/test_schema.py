"""The JSON Schema of each model: valid, complete, and of one mind with what the API accepts."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fluxserve.api.schemas import check
from fluxserve.catalogue import MODELS, ModelSpec
from fluxserve.catalogue.params import Kind, Param
from fluxserve.catalogue.schema import TEXTUAL, Schema, param_schema, request_schema
from fluxserve.errors import InvalidRequest, JsonValue

jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="needs jsonschema_rs, which comes with schemathesis")
#: Each once, though many models may have it.
EVERY_PARAM = list({id(param): (spec, param) for spec in MODELS.values() for param in spec.params}.values())
#: What a body cannot do without, by model.
NEEDED: dict[str, dict[str, JsonValue]] = {
    name: {param.name: "AAAA" if param.kind is Kind.IMAGE else "a" for param in spec.params if param.required}
    for name, spec in MODELS.items()
}


def name_of(value: object) -> str:
    """How a case is called."""
    return value.name if isinstance(value, (ModelSpec, Param)) else ""


def fits(schema: Schema, value: JsonValue) -> bool:
    """Whether `value` is valid under `schema`."""
    return bool(jsonschema_rs.validator_for(schema).is_valid(value))


def accepted(spec: ModelSpec, body: dict[str, JsonValue]) -> bool:
    """Whether the API takes it."""
    try:
        check(spec, json.dumps(body).encode())
    except InvalidRequest:
        return False
    return True


def candidates(param: Param) -> Iterator[JsonValue]:
    """Values at and around every bound, and of every other type."""
    yield from (None, True, False, 0, 1, -1, 7, 2.5, "", " ", "text", [], {}, ["text"], "true", "1")
    for bound in (param.minimum, param.maximum):
        if bound is not None:
            whole = int(bound)
            yield from (whole, whole - 1, whole + 1, whole - 32, whole + 32, whole - 16, whole + 16)
            if param.kind is Kind.NUMBER:
                yield from (bound, bound - 0.01, bound + 0.01)
    if param.max_length is not None:
        yield from ("h" * param.max_length, "h" * (param.max_length + 1))
        yield from (f"https://x/{'h' * (param.max_length - 10)}", f"https://x/{'h' * (param.max_length - 9)}")
    yield from (*param.choices, *(choice.upper() for choice in param.choices), "gif")
    yield from (
        "16:9",
        "1:1",
        "9:21",
        "21:9",
        "16:9 ",
        "0:1",
        "1:0",
        "16x9",
        "https://example.com/hook",
        "ftp://x",
        "//x",
    )
    yield param.default


@pytest.mark.parametrize("spec", MODELS.values(), ids=name_of)
def test_the_schema_is_a_valid_one_and_its_examples_fit_and_are_accepted(spec: ModelSpec) -> None:
    schema = request_schema(spec)
    jsonschema_rs.meta.validate(schema)
    assert json.loads(json.dumps(schema)) == schema
    for example in schema["examples"]:  # type: ignore[union-attr]
        assert fits(schema, example)
        assert accepted(spec, example)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", MODELS.values(), ids=name_of)
def test_the_schema_has_every_field_and_requires_the_prompt_or_the_picture(spec: ModelSpec) -> None:
    schema = request_schema(spec)
    assert list(schema["properties"]) == [param.name for param in spec.params]  # type: ignore[arg-type]
    assert schema["required"] == list(NEEDED[spec.name])
    follows = spec.name.endswith(("canny", "depth"))  # one picture of two is needed, which resolve looks at
    assert fits(schema, {}) == accepted(spec, {}) == follows
    if not follows:
        assert schema["required"] == (["image"] if spec.name.endswith(("fill", "expand")) else ["prompt"])


@pytest.mark.parametrize("spec", MODELS.values(), ids=name_of)
def test_unknown_fields_fit(spec: ModelSpec) -> None:
    body: dict[str, JsonValue] = {**NEEDED[spec.name], "sampler": "euler"}
    assert fits(request_schema(spec), body)
    assert accepted(spec, body)


@pytest.mark.parametrize(("spec", "param"), EVERY_PARAM, ids=name_of)
def test_a_value_fits_the_schema_exactly_when_the_api_accepts_it(spec: ModelSpec, param: Param) -> None:
    schema = request_schema(spec)
    for value in candidates(param):
        body = {**NEEDED[spec.name], param.name: value}
        assert fits(schema, body) == accepted(spec, body), value


@pytest.mark.parametrize(("spec", "param"), EVERY_PARAM, ids=name_of)
def test_the_default_is_told_and_fits(spec: ModelSpec, param: Param) -> None:
    schema = param_schema(param)
    assert schema.get("default") == param.default
    if param.default is not None:
        assert fits(schema, param.default)
        assert spec.param(param.name) is param


@pytest.mark.parametrize(("spec", "param"), EVERY_PARAM, ids=name_of)
def test_what_unset_means_is_told(spec: ModelSpec, param: Param) -> None:
    description = str(param_schema(param)["description"])
    assert description.startswith(param.help)
    assert ("null" in description) == (not param.required)
    assert ('""' in description) == (not param.required and param.kind in TEXTUAL)


@pytest.mark.parametrize("value", ["1:100", "22:9", "9:22"])
def test_a_ratio_out_of_range_is_what_the_schema_cannot_say(value: str) -> None:
    spec = MODELS["flux-pro-1.1-ultra"]
    assert fits(request_schema(spec), {"prompt": "a", "aspect_ratio": value})
    assert not accepted(spec, {"prompt": "a", "aspect_ratio": value})


def test_a_whole_float_is_what_the_schema_cannot_refuse() -> None:
    spec = MODELS["flux-dev"]
    assert fits(request_schema(spec), {"prompt": "a", "width": 512.0})
    assert not accepted(spec, {"prompt": "a", "width": 512.0})
