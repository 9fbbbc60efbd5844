"""What requests of OpenAI's images API hold, and how it is said in the fields of the model that draws.

What it does not know: tasks, answers.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from fluxserve import catalogue
from fluxserve.api import schemas
from fluxserve.api.dialect import Body
from fluxserve.api.forms import is_form, parse_form
from fluxserve.api.other_apis import operation
from fluxserve.catalogue import ModelSpec
from fluxserve.catalogue.params import MASK, Kind
from fluxserve.catalogue.schema import EXAMPLE_PROMPT
from fluxserve.errors import InvalidRequest, JsonValue

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
#: Those that answer with links where nothing is said, as do requests that name none.
LINKING = re.compile(r"dall-e-.*")
MAX_PICTURES = 10
MAX_INPUTS = 16
#: Pictures that are no picture to edit.
_NOT_EDITED = frozenset({MASK, "image_prompt", "preprocessed_image"})
#: What their fields are called here.
_ASKED_AS = {
    "width": "size",
    "height": "size",
    "aspect_ratio": "size",
    "steps": "quality",
    "safety_tolerance": "moderation",
}
#: `safety_tolerance` of a request that wants moderation to be `low`; every model takes it.
_LOW_MODERATION = 4
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
#: A number or a flag, as a form has it.
_PLAIN = re.compile(r"-?[0-9][0-9.eE+-]{0,30}|true|false")
#: Whoever is held needs no webhook.
_UNTOLD = frozenset({"webhook_url", "webhook_secret"})
_KINDS = {Kind.INTEGER, Kind.NUMBER, Kind.FLAG}


class ImagesRequest(BaseModel):
    """The fields of both calls. A field of the model that draws may stand beside them, such as `seed`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str = Field(description="What to draw, or what to change in the pictures.")
    model: str | None = Field(
        None, description="A model of this server, or one of OpenAI's, for which the setting `openai_model` stands in."
    )
    n: int = Field(1, ge=1, le=MAX_PICTURES, description="How many pictures; each is a task and costs its price.")
    size: str = Field("auto", pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$", description="`1024x1024`, or auto.")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] = Field(
        "auto", description="Steps of models that have them: low half as many as usual, high and hd the most."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field("png", description="File format of the pictures.")
    output_compression: int = Field(100, ge=0, le=100, description="Taken and not used: files are of quality 95.")
    background: Literal["auto", "opaque"] = Field("auto", description="Pictures are opaque.")
    moderation: Literal["auto", "low"] = Field("auto", description="low: safety_tolerance 4.")
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="Unset: url where no model or a dall-e is named, else b64_json."
    )
    stream: bool = Field(False, description="Answer with server-sent events; only with n = 1.")
    partial_images: int = Field(0, ge=0, le=3, description="Most previews in a stream.")
    user: str | None = Field(None, description="Your own opaque name for the end user.")
    style: str | None = Field(None, description="Taken and not used.")
    input_fidelity: str | None = Field(None, description="Taken and not used.")

    @property
    def links(self) -> bool:
        """Whether the answer has links to pictures in it, and not the pictures."""
        usual = "url" if self.model is None or LINKING.fullmatch(self.model) else "b64_json"
        return (self.response_format or usual) == "url"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The files of an edit."""

    images: Sequence[bytes] = ()
    mask: bytes | None = None


def read_form(content_type: str, body: bytes) -> tuple[dict[str, JsonValue], Pictures]:
    """The fields and files of an edit."""
    if not is_form(content_type):
        raise schemas.invalid(("body", "image"), "form", f"{EDITS} takes a multipart/form-data form", None)
    form = parse_form(content_type, body)
    images = [file for name, file in form.files if name in ("image", "image[]")]
    masks = [file for name, file in form.files if name == "mask"]
    if not images:
        raise schemas.invalid(("body", "image"), "missing", "Field required, as a file", None)
    if len(images) > MAX_INPUTS:
        raise schemas.invalid(("body", "image"), "too_long", f"There should be at most {MAX_INPUTS} pictures", None)
    return dict(form.texts), Pictures(images=images, mask=masks[0] if masks else None)


def values_of(asked: ImagesRequest, spec: ModelSpec, pictures: Pictures) -> dict[str, JsonValue]:
    """The request in the model's own fields. Raises InvalidRequest."""
    values: dict[str, JsonValue] = {
        "prompt": asked.prompt, "output_format": asked.output_format, "user": asked.user,
        **_size(asked.size, spec, is_edit=bool(pictures.images)), **_steps(asked.quality, spec),
    }  # fmt: skip
    if asked.moderation == "low":
        values["safety_tolerance"] = _LOW_MODERATION
    for name, value in (asked.model_extra or {}).items():
        param = spec.param(name)
        if name not in _UNTOLD:
            values[name] = _typed(value) if param is not None and param.kind in _KINDS else value
    return values | _files(spec, pictures)


def _typed(value: JsonValue) -> JsonValue:
    """A form has texts where JSON has numbers."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        with contextlib.suppress(ValueError):
            return cast("JsonValue", json.loads(value))
    return value


def _size(size: str, spec: ModelSpec, *, is_edit: bool) -> dict[str, JsonValue]:
    """The fields for a size; none where the model's own is meant, or follows from its pictures."""
    found = _SIZE.fullmatch(size)
    if found is None and is_edit:
        return {}
    width, height = (int(found[1]), int(found[2])) if found else (1024, 1024)
    if spec.param("width") and spec.param("height"):
        return {"width": width, "height": height}
    if spec.param("aspect_ratio"):
        common = math.gcd(width, height)
        return {"aspect_ratio": f"{width // common}:{height // common}"}
    return {}


def _steps(quality: str, spec: ModelSpec) -> dict[str, JsonValue]:
    """The steps for a quality, of models that have them."""
    steps = spec.param("steps")
    if steps is None or not isinstance(steps.default, int):
        return {}
    if quality == "low":
        return {"steps": max(int(steps.minimum or 1), -(-steps.default // 2))}
    return {"steps": int(steps.maximum or steps.default)} if quality in ("high", "hd") else {}


def _files(spec: ModelSpec, pictures: Pictures) -> dict[str, JsonValue]:
    """The files in the model's fields, as base64. Raises InvalidRequest where it has none for them."""
    names = [param.name for param in spec.params if param.kind is Kind.IMAGE and param.name not in _NOT_EDITED]
    if len(pictures.images) > len(names):
        message = f"{spec.name} takes {len(names) or 'no'} picture{'' if len(names) == 1 else 's'}"
        raise schemas.invalid(("body", "image"), "too_long", message, len(pictures.images))
    if pictures.mask is not None and spec.param(MASK) is None:
        takes = ", ".join(other.name for other in catalogue.MODELS.values() if other.param(MASK))
        raise schemas.invalid(("body", "mask"), "no_masks", f"{spec.name} takes no mask; {takes} does", None)
    files = dict(zip(names, pictures.images, strict=False))
    if pictures.mask is not None:
        files[MASK] = pictures.mask
    return {name: base64.b64encode(file).decode() for name, file in files.items()}


def quality_of(asked: ImagesRequest) -> str:
    """As answers tell it."""
    return {"low": "low", "high": "high", "hd": "high"}.get(asked.quality, "medium")


def as_asked(error: InvalidRequest) -> InvalidRequest:
    """The same, by the names of the fields that the caller knows."""
    where, _ = first_of(error)
    if not isinstance(where, str):
        return error
    name = "image" if where.startswith(("image", "input_image", "control_image")) else _ASKED_AS.get(where, where)
    item = {**error.items[0], "loc": ["body", name]}
    return InvalidRequest(f"{name}: {item['msg']}", [item, *error.items[1:]])


def first_of(error: InvalidRequest) -> tuple[JsonValue, JsonValue]:
    """The field that the caller should look at first, and what is wrong with it."""
    item = error.items[0]
    loc = item.get("loc")
    return (loc[1] if isinstance(loc, (list, tuple)) and len(loc) > 1 else None), item.get("type")


# What the served document says

_ERROR_SCHEMA: Body = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                **{name: {"type": ["string", "null"]} for name in ("type", "param", "code")},
            },
        }
    },
}
_ANSWER_SCHEMA: Body = {
    "type": "object",
    "required": ["created", "data", "size", "quality", "output_format", "background", "usage"],
    "properties": {
        "created": {"type": "integer"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["seed"],
                "properties": {
                    "b64_json": {"type": "string"},
                    "url": {"type": "string", "format": "uri"},
                    "revised_prompt": {"type": "string"},
                    "seed": {"type": "integer"},
                },
            },
        },
        "failures": {"type": "array", "description": "Why pictures are left out, where any are."},
        "usage": {"type": "object", "description": "Tokens as the network reads them: text, and pixels by 16 x 16."},
    },
}
_ANSWERS = {
    "400": "A field that cannot be, or moderation refused.",
    "401": "No key, or a wrong one.",
    "404": "No such model.",
    "413": "The body is too large.",
    "429": "Too many unfinished tasks, too fast, or not enough credits.",
    "500": "The pictures could not be drawn.",
    "503": "Not now; see Retry-After.",
    "504": "Not drawn within `hold` seconds; given up, unless an Idempotency-Key was sent.",
}


def document(title: str) -> Body:
    """Both calls as the served document tells them."""
    request = ImagesRequest.model_json_schema()
    request["examples"] = [{"prompt": EXAMPLE_PROMPT, "model": "flux-dev", "size": "512x512"}]
    pictures = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MAX_INPUTS}
    mask = {"type": "string", "format": "binary", "description": "What it leaves out, or shows in white, is drawn."}
    form = {
        **request,
        "properties": {**request["properties"], "image": pictures, "mask": mask},
        "required": ["prompt", "image"],
    }
    return {
        GENERATIONS: {"post": _operation(title, "generate", "Draw from a prompt", "application/json", request)},
        EDITS: {"post": _operation(title, "edit", "Change pictures by words", "multipart/form-data", form)},
    }


def _operation(title: str, name: str, summary: str, media_type: str, schema: Body) -> Body:
    about = "The pictures; with `stream` their events, as text/event-stream."
    answers = {"200": (about, _ANSWER_SCHEMA), **{status: (why, _ERROR_SCHEMA) for status, why in _ANSWERS.items()}}
    body: Body = {"required": True, "content": {media_type: {"schema": schema}}}
    return operation(f"openai_{name}", title, summary, answers) | {"requestBody": body}
