"""Request bodies: bytes to checked values, by pydantic models made from the catalogue.

400 is a body that is not JSON; 422 is JSON that breaks the schema, told as pydantic tells it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import pydantic_core
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.params import (
    MAX_PICTURE_TEXT,
    MAX_RATIO,
    PICTURE_URL_PATTERN,
    RATIO_PATTERN,
    URL_PATTERN,
    Kind,
    Param,
)
from fluxserve.catalogue.schema import TEXTUAL
from fluxserve.catalogue.sizes import parse_ratio
from fluxserve.errors import InvalidRequest, JsonValue, MalformedJson

#: Longest text of an `input` echoed in a 422.
ECHO_LIMIT = 200
#: Bodies over this many bytes are looked at before they are parsed: only a long text makes a legal one so large.
LARGE = 256 * 1024
#: More commas than all texts but a picture can hold; base64 has none.
MAX_COMMAS = 20_000
_PICTURE_URL = re.compile(PICTURE_URL_PATTERN)
_URL = re.compile(URL_PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The fields that were set, those with pictures and those with URLs of some apart, and the names the model does

    not know."""

    values: Mapping[str, JsonValue]
    pictures: Mapping[str, str]
    urls: Mapping[str, str]
    ignored: tuple[str, ...]


def check(spec: ModelSpec, body: bytes) -> Checked:
    """Parse and check a request body. Raises MalformedJson or InvalidRequest."""
    return check_fields(spec, parse_object(body))


def parse_object(body: bytes) -> dict[str, JsonValue]:
    """The body as a JSON object. Raises MalformedJson or InvalidRequest."""
    fields = parse_json(body)
    if not isinstance(fields, dict):
        item: dict[str, JsonValue] = {
            "type": "dict_type",
            "loc": ["body"],
            "msg": "Input should be a JSON object",
            "input": _clip(fields),
        }
        raise _invalid([item])
    return fields


def check_fields(spec: ModelSpec, fields: Mapping[str, JsonValue]) -> Checked:
    """Check a request's fields. Raises InvalidRequest."""
    model = model_of(spec)
    try:
        checked = model.__pydantic_validator__.validate_python(fields)
    except ValidationError as error:
        raise refused(error) from None
    values = {name: value for name in checked.model_fields_set if (value := getattr(checked, name)) is not None}
    unknown = fields.keys() - model.model_fields.keys() if len(fields) > len(checked.model_fields_set) else ()
    pictures = {name: str(values.pop(name)) for name in _picture_fields(spec) if name in values}
    urls = {name: text for name, text in pictures.items() if _PICTURE_URL.match(text)}
    return Checked(
        values=values,
        pictures={name: text for name, text in pictures.items() if name not in urls},
        urls=urls,
        ignored=tuple(sorted(_clip_text(name, 64) for name in unknown)[:20]),
    )


def parse_json(body: bytes) -> JsonValue:
    """The body as JSON; NaN and Infinity are no JSON. Raises MalformedJson."""
    if not body or body.isspace():
        raise MalformedJson("The request body is empty. Send a JSON object with a prompt.")
    if len(body) > LARGE and _has_many_values(body):
        raise MalformedJson(f"The request body is JSON with more than {MAX_COMMAS} commas; no request has so many.")
    try:
        return cast("JsonValue", pydantic_core.from_json(body, allow_inf_nan=False))
    except ValueError:
        raise MalformedJson("The request body is not valid JSON.") from None


def _has_many_values(body: bytes) -> bool:
    """Whether parsing would take many times the body's size, and so long that nobody else is answered meanwhile.

    Values stand beside each other with commas between, or inside each other, which the parser limits by itself.
    """
    place = -1
    for _ in range(MAX_COMMAS + 1):
        place = body.find(b",", place + 1)
        if place < 0:
            return False
    return True


@functools.cache
def _picture_fields(spec: ModelSpec) -> tuple[str, ...]:
    return tuple(param.name for param in spec.params if param.kind is Kind.IMAGE)


@functools.cache
def model_of(spec: ModelSpec) -> type[BaseModel]:
    """The pydantic model of a request, made once."""
    fields: dict[str, Any] = {param.name: _field(param) for param in spec.params}
    name = "".join(part.capitalize() for part in spec.name.replace(".", "").split("-")) + "Inputs"
    return create_model(name, __config__=ConfigDict(extra="ignore", protected_namespaces=()), **fields)


def _field(param: Param) -> tuple[Any, Any]:
    annotation = _annotation(param)
    if param.required:
        return annotation, ...
    optional = annotation | None
    if param.kind in TEXTUAL:
        optional = Annotated[optional, BeforeValidator(_empty_is_unset)]
    if param.auto is not None:
        optional = Annotated[optional, BeforeValidator(functools.partial(_auto_is_unset, param.auto))]
    return optional, None


def _annotation(param: Param) -> Any:
    bounds = {"ge": param.minimum, "le": param.maximum, "multiple_of": param.multiple_of}
    match param.kind:
        case Kind.INTEGER:
            return Annotated[int, Field(strict=True, **_whole(bounds))]
        case Kind.NUMBER:
            return Annotated[float, Field(strict=True, allow_inf_nan=False, **_set(bounds))]
        case Kind.FLAG:
            return Annotated[bool, Field(strict=True)]
        case Kind.CHOICE:
            return Literal[param.choices]
        case Kind.RATIO:
            return Annotated[str, Field(strict=True, pattern=RATIO_PATTERN), AfterValidator(_ratio_in_range)]
        case Kind.URL:
            return Annotated[str, Field(strict=True, max_length=param.max_length), AfterValidator(_is_url)]
        case Kind.IMAGE:
            return Annotated[str, Field(strict=True, max_length=MAX_PICTURE_TEXT)]
        case Kind.TEXT:
            return Annotated[str, Field(strict=True, max_length=param.max_length)]


def _set(bounds: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: value for name, value in bounds.items() if value is not None}


def _whole(bounds: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: int(value) for name, value in _set(bounds).items()}


def _empty_is_unset(value: object) -> object:
    return None if value == "" else value


def _auto_is_unset(auto: int, value: object) -> object:
    return None if type(value) is int and value == auto else value


def _ratio_in_range(text: str) -> str:
    width, height = parse_ratio(text)
    if not 1 / MAX_RATIO <= width / height <= MAX_RATIO:
        raise PydanticCustomError("aspect_ratio_range", "Aspect ratio should be between 21:9 and 9:21")
    return text


def _is_url(text: str) -> str:
    if not _URL.fullmatch(text):
        raise PydanticCustomError("string_pattern_mismatch", "Input should be an http or https URL")
    return text


def invalid(loc: tuple[str, ...], kind: str, message: str, value: JsonValue) -> InvalidRequest:
    """A 422 for something that pydantic does not see: a query parameter, a header, or what a field holds."""
    return _invalid([{"type": kind, "loc": list(loc), "msg": message, "input": _clip(value)}])


def refused(error: ValidationError) -> InvalidRequest:
    """A 422 for what pydantic found in a body."""
    return _invalid([_item(dict(detail)) for detail in error.errors(include_url=False)])


def _item(detail: dict[str, Any]) -> dict[str, JsonValue]:
    detail["loc"] = ["body", *detail["loc"]]
    detail["input"] = _clip(detail["input"])
    return detail


def _invalid(items: list[dict[str, JsonValue]]) -> InvalidRequest:
    first = items[0]
    loc = cast("list[str]", first["loc"])
    where = ".".join(map(str, loc[1:])) or loc[0]
    more = f" (and {len(items) - 1} more)" if len(items) > 1 else ""
    return InvalidRequest(f"{where}: {first['msg']}{more}", items)


def _clip(value: JsonValue) -> JsonValue:
    """The value, with long texts cut: an error must not send a picture back."""
    if isinstance(value, str):
        return _clip_text(value, ECHO_LIMIT)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return _clip_text(str(value), ECHO_LIMIT)
    if isinstance(value, Mapping):
        return {_clip_text(str(name), 64): _clip(entry) for name, entry in list(value.items())[:20]}
    if isinstance(value, list):
        return [_clip(entry) for entry in value[:20]]
    return value


def _clip_text(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
