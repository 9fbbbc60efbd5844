"""JSON Schema (2020-12) of a model's request, made from its params: for OpenAPI and the model list.

null means unset in every optional field, and so does "" in those that hold text.
"""

from __future__ import annotations

from fluxserve.catalogue.params import MAX_PICTURE_TEXT, RATIO_PATTERN, URL_PATTERN, Kind, Param
from fluxserve.catalogue.spec import ModelSpec
from fluxserve.errors import JsonValue

Schema = dict[str, JsonValue]
EXAMPLE_PROMPT = "A paper boat floating on calm water at sunrise."
#: A white PNG of 256x256.
EXAMPLE_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAQAAAAEAAQAAAAB0CZXLAAAAM0lEQVR42u3KoQEAAAwCIP9/Wk9YXYBMeoggCIIgCIIgCIIgCIIgCIIgCIIgCIIgCMLv"
    "MPPS4dI8z/G7AAAAAElFTkSuQmCC"
)
_TYPES = {
    Kind.TEXT: "string",
    Kind.URL: "string",
    Kind.RATIO: "string",
    Kind.IMAGE: "string",
    Kind.CHOICE: "string",
    Kind.INTEGER: "integer",
    Kind.NUMBER: "number",
    Kind.FLAG: "boolean",
}
#: Kinds in which "" means unset.
TEXTUAL = frozenset({Kind.TEXT, Kind.URL, Kind.RATIO, Kind.CHOICE, Kind.IMAGE})


def request_schema(spec: ModelSpec) -> Schema:
    """The schema of a model's request body."""
    return {
        "type": "object",
        "title": spec.title,
        "description": f"{spec.help} Unknown fields are ignored, and `details.warnings` of the result names them. "
        "Integers are written as such: 512.0 is refused.",
        "properties": {param.name: param_schema(param) for param in spec.params},
        "required": [param.name for param in spec.params if param.required],
        "examples": [_example(spec)],
    }


def param_schema(param: Param) -> Schema:
    """The schema of one field."""
    kind = _TYPES[param.kind]
    schema: Schema = {
        "description": _description(param),
        "type": kind if param.required else [kind, "null"],
    }
    optional: Schema = {
        "default": param.default,
        "minimum": param.minimum if param.auto is None else None,
        "maximum": param.maximum,
        "multipleOf": param.multiple_of,
        "maxLength": MAX_PICTURE_TEXT if param.kind is Kind.IMAGE else param.max_length,
        "enum": [*param.choices, "", None] if param.choices else None,
        "pattern": _pattern(param),
        "anyOf": None if param.auto is None else [{"const": param.auto}, {"minimum": param.minimum}],
    }
    return schema | {name: value for name, value in optional.items() if value is not None}


def _pattern(param: Param) -> str | None:
    patterns = {Kind.RATIO: RATIO_PATTERN, Kind.URL: URL_PATTERN}
    pattern = patterns.get(param.kind)
    return None if pattern is None else f"^$|{pattern}"


def _description(param: Param) -> str:
    unset = "" if param.required else ' null or "" means unset.' if param.kind in TEXTUAL else " null means unset."
    return f"{param.help}{unset}"


def _example(spec: ModelSpec) -> Schema:
    return {"prompt": EXAMPLE_PROMPT, **spec.example}
