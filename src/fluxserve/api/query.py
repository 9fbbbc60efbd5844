"""What stands behind the question mark of polls, lists and streams; a parameter that cannot be is told as in bodies.

Unknown and repeated parameters are tolerated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from fluxserve.api.schemas import invalid

#: Most fields of a query that are read; each `t` among them costs a signature.
MAX_FIELDS = 100
#: Longest wait of a poll, in seconds.
MAX_WAIT = 60
#: Entries of a page of a list.
DEFAULT_LIMIT, MAX_LIMIT = 50, 200
_WHOLE = re.compile(r"[0-9]{1,9}")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_SECONDS = re.compile(r"-?[0-9]{1,400}(?:\.[0-9]{0,400})?(?:[eE][+-]?[0-9]{1,4})?")
Fields = Mapping[str, Sequence[str]]


def parse(query: bytes) -> Fields:
    """Every parameter with its values; raises InvalidRequest."""
    try:
        return parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="replace")
    except ValueError:
        raise invalid(("query",), "too_long", f"There should be at most {MAX_FIELDS} fields", None) from None


def first(fields: Fields, name: str) -> str | None:
    """The first value of a parameter, if it is there."""
    values = fields.get(name)
    return None if values is None else values[0]


def preview(fields: Fields) -> bool:
    """Whether the caller asks for previews; raises InvalidRequest."""
    if (text := first(fields, "preview")) is None:
        return False
    if (flag := _FLAGS.get(text.lower())) is None:
        message = "Input should be a valid boolean, unable to interpret input"
        raise invalid(("query", "preview"), "bool_parsing", message, text)
    return flag


def wait(fields: Fields) -> float:
    """How long the caller waits for the task's end, in seconds; raises InvalidRequest."""
    if (text := first(fields, "wait")) is None:
        return 0.0
    if not _SECONDS.fullmatch(text):
        message = "Input should be a valid number, unable to parse string as a number"
        raise invalid(("query", "wait"), "float_parsing", message, text)
    seconds = float(text)
    if seconds < 0:
        raise invalid(("query", "wait"), "greater_than_equal", "Input should be greater than or equal to 0", text)
    if seconds > MAX_WAIT:
        message = f"Input should be less than or equal to {MAX_WAIT}"
        raise invalid(("query", "wait"), "less_than_equal", message, text)
    return seconds


def limit(fields: Fields) -> int:
    """How many entries a page may have; raises InvalidRequest."""
    if (text := first(fields, "limit")) is None:
        return DEFAULT_LIMIT
    if not _WHOLE.fullmatch(text):
        raise invalid(("query", "limit"), "int_parsing", "Input should be a valid integer", text)
    number = int(text)
    if number < 1:
        raise invalid(("query", "limit"), "greater_than_equal", "Input should be greater than or equal to 1", text)
    if number > MAX_LIMIT:
        raise invalid(("query", "limit"), "less_than_equal", f"Input should be less than or equal to {MAX_LIMIT}", text)
    return number
