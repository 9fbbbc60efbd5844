"""Forms: what a client packs comes out as it went in, and what is no form is refused."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.api.forms import MAX_PARTS, is_form, parse_form
from fluxserve.errors import MalformedForm

NAMES = st.sampled_from(["prompt", "image", "image[]", "mask", "n"])
#: Bytes that a boundary is made of come often, so that parts of one do.
FILES = st.one_of(st.binary(max_size=300), st.text("-\r\nab", max_size=60).map(str.encode))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@given(texts=st.dictionaries(NAMES, TEXTS, max_size=4), files=st.lists(st.tuples(NAMES, FILES), min_size=1, max_size=5))
def test_what_was_packed_comes_out(texts: dict[str, str], files: list[tuple[str, bytes]]) -> None:
    packed = httpx.Request(
        "POST", "http://flux.test", data=texts, files=[(name, ("a.png", file, "image/png")) for name, file in files]
    )
    content_type = packed.headers["content-type"]
    assert is_form(content_type)
    form = parse_form(content_type, packed.read())
    assert (dict(form.texts), form.files) == (texts, files)


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/mixed; boundary=x", "multipart"])
def test_other_bodies_are_no_forms(content_type: str) -> None:
    assert not is_form(content_type)


PART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n'


@pytest.mark.parametrize(
    ("boundary", "body"),
    [
        ("", PART + b"--x--\r\n"),
        ("; boundary=", PART + b"--x--\r\n"),
        ("; boundary=x", b""),
        ("; boundary=x", PART),
        ("; boundary=x", PART + b"--x"),
        ("; boundary=x", b"--y--\r\n"),
        ("; boundary=x", b"--x\r\nno header\r\n\r\nb\r\n--x--\r\n"),
        ("; boundary=x", PART * (MAX_PARTS + 1) + b"--x--\r\n"),
    ],
)
def test_what_is_no_whole_form_is_refused(boundary: str, body: bytes) -> None:
    with pytest.raises(MalformedForm):
        parse_form("multipart/form-data" + boundary, body)


def test_as_many_fields_as_there_may_be_are_read() -> None:
    form = parse_form("multipart/form-data; boundary=x", PART * MAX_PARTS + b"--x--\r\n")
    assert form.texts == [("a", "b")] * MAX_PARTS
