"""Bodies of multipart/form-data: bytes to fields and files.

What it does not know: what a field means. A body is whole, and within its limit, before it comes here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from fluxserve.errors import MalformedForm

CONTENT_TYPE = b"multipart/form-data"
#: Most fields and files of a form: no request has so many.
MAX_PARTS = 200


@dataclass(slots=True)
class Form:
    """Texts and files by the names of their fields, in their order; a name may come more than once."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)


def is_form(content_type: str) -> bool:
    """Whether a header announces a form."""
    return parse_options_header(content_type)[0].lower() == CONTENT_TYPE


def parse_form(content_type: str, body: bytes) -> Form:
    """The form in a body. Raises MalformedForm."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise MalformedForm("The Content-Type of a form names its boundary, and this one does not.")
    reader = _Reader()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": reader.begin,
                "on_header_field": reader.header_name,
                "on_header_value": reader.header_value,
                "on_header_end": reader.header_end,
                "on_part_data": reader.data,
                "on_part_end": reader.end,
                "on_end": reader.end_all,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedForm("The request body is not the form that its Content-Type announces.") from None
    if not reader.is_whole:
        raise MalformedForm("The form ends before its last boundary.")
    return reader.form


class _Reader:
    """Puts the parser's pieces together."""

    def __init__(self) -> None:
        self.form = Form()
        self.is_whole = False
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data = bytearray()

    def begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MalformedForm(f"The form has more than {MAX_PARTS} fields.")
        self._headers = {}
        self._data = bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        options = parse_options_header(self._headers.get(b"content-disposition", b""))[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" in options:
            self.form.files.append((name, bytes(self._data)))
        else:
            self.form.texts.append((name, self._data.decode("utf-8", "replace")))

    def end_all(self) -> None:
        self.is_whole = True
