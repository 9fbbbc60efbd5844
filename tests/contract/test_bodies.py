"""Request bodies that are no JSON, no object, or JSON at its edges; and bodies that are too large."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from facts import PREFIXES
from inprocess import Server
from shapes import COMETAPI, is_error

from fluxserve.catalogue.params import MAX_FILE
from sample_pictures import file_of, picture, text_of

NO_JSON = {
    "empty": b"",
    "blank": b" \r\n\t",
    "cut off": b'{"prompt": "x"',
    "a word": b"prompt",
    "form": b"prompt=x&width=512",
    "single quotes": b"{'prompt': 'x'}",
    "trailing comma": b'{"prompt": "x",}',
    "trailing text": b'{"prompt": "x"} x',
    "two values": b'{"prompt": "x"}{"prompt": "y"}',
    "comment": b'{"prompt": "x" /* y */}',
    "unquoted name": b'{prompt: "x"}',
    "NaN": b'{"prompt": "x", "guidance": NaN}',
    "Infinity": b'{"prompt": "x", "guidance": Infinity}',
    "-Infinity": b'{"prompt": "x", "guidance": -Infinity}',
    "NaN in an unknown field": b'{"prompt": "x", "a": [NaN]}',
    "leading zero": b'{"prompt": "x", "seed": 01}',
    "plus sign": b'{"prompt": "x", "seed": +1}',
    "hexadecimal": b'{"prompt": "x", "seed": 0x1}',
    "control character in a text": b'{"prompt": "a\nb"}',
    "NUL in a text": b'{"prompt": "a\x00b"}',
    "unknown escape": b'{"prompt": "\\x41"}',
    "invalid UTF-8": b'{"prompt": "\xff"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "lone surrogate escape": b'{"prompt": "\\ud800"}',
    "lone surrogate in a name": b'{"prompt": "x", "\\udc00": 1}',
    "byte order mark": b'\xef\xbb\xbf{"prompt": "x"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "Latin-1": '{"prompt": "\xe9"}'.encode("latin-1"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "100,000 open lists": b"[" * 100_000,
    "100,000 open objects": b'{"prompt":' * 100_000,
    "100,000 nested lists in an unknown field": b'{"prompt": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number of 5,000 digits": b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}",
    "a number of 5,000 digits in an unknown field": b'{"prompt": "x", "a": ' + b"1" * 5000 + b"}",
}
NO_OBJECT = {
    "list": b"[]", "text": b'"x"', "number": b"1", "fraction": b"1.5", "true": b"true", "null": b"null",
    "list of an object": b'[{"prompt": "x"}]', "long text": b'"' + b"x" * 100_000 + b'"',
    "nested list": b"[" * 100 + b"]" * 100, "long number": b"1" * 4000, "out of range": b"1e999",
}  # fmt: skip
FINE = {
    "white space around": b' \n{"prompt" : "x"}\r\n ',
    "duplicate names: the last one counts": b'{"prompt": 1, "prompt": "x"}',
    "escaped name": b'{"\\u0070rompt": "x"}',
    "surrogate pair": b'{"prompt": "x", "user": "\\ud83c\\udf4e"}',
    "deep unknown field": b'{"prompt": "x", "a": ' + b"[" * 100 + b"]" * 100 + b"}",
    "infinite number in an unknown field": b'{"prompt": "x", "a": 1e999}',
    "negative zero": b'{"prompt": "x", "seed": -0}',
}


def cases(table: dict[str, bytes]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("body", table.values(), ids=table.keys())


@pytest.mark.parametrize("prefix", PREFIXES)
@cases(NO_JSON)
def test_a_body_that_is_no_json_is_a_400(shared: Server, prefix: str, body: bytes) -> None:
    error = is_error(shared.ask("POST", f"{prefix}/flux-dev", key=shared.key, body=body), 400, prefix)
    assert "JSON" in str(error["message"])


@pytest.mark.parametrize("prefix", PREFIXES)
@cases(NO_OBJECT)
def test_json_that_is_no_object_is_a_422(shared: Server, prefix: str, body: bytes) -> None:
    answer = shared.ask("POST", f"{prefix}/flux-dev", key=shared.key, body=body)
    is_error(answer, 422, prefix)
    (item,) = answer.json()["detail"]
    assert (item["type"], item["loc"]) == ("dict_type", ["body"])
    assert len(answer.content) < 2000


@pytest.mark.parametrize("prefix", PREFIXES)
@cases(FINE)
def test_odd_but_valid_json_is_read(shared: Server, prefix: str, body: bytes) -> None:
    answer = shared.ask("POST", f"{prefix}/flux-dev", key=shared.key, body=body)
    assert answer.status_code == 200
    assert shared.record(answer.json()).generation.prompt == "x"


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/json", "application/json; charset=utf-8", "text/plain", "application/octet-stream",
     "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense"],
)  # fmt: skip
def test_the_content_type_does_not_matter(shared: Server, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    for prefix in PREFIXES:
        path = f"{prefix}/flux-dev"
        assert shared.ask("POST", path, key=shared.key, headers=headers, body=b'{"prompt": "x"}').status_code == 200
        is_error(shared.ask("POST", path, key=shared.key, headers=headers, body=b"prompt=x"), 400, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_body_over_the_limit_is_a_413_whether_its_length_is_told_or_not(
    serve: Callable[..., Server], prefix: str
) -> None:
    server = serve(max_body=2000)
    path = f"{prefix}/flux-dev"

    def chunks(number: int) -> Iterator[bytes]:
        yield b'{"prompt": "x", "a_field": "'
        yield from (b"y" * 100 for _ in range(number))
        yield b'"}'

    assert server.ask("POST", path, key=server.key, body=chunks(19)).status_code == 200
    assert server.ask("POST", path, key=server.key, body=b"".join(chunks(19))).status_code == 200
    for body in (chunks(20), b"".join(chunks(20))):
        error = is_error(server.ask("POST", path, key=server.key, body=body), 413, prefix)
        assert "2000 bytes" in str(error["message"])
    assert len(server.service.views) == 2


def test_an_endless_body_is_not_read_beyond_the_limit(serve: Callable[..., Server]) -> None:
    server = serve(max_body=2000)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1_000_000:
            sent += 100
            yield b"y" * 100

    is_error(server.ask("POST", "/v1/flux-dev", key=server.key, body=endless()), 413)
    assert sent <= 2200


def test_a_wrong_key_with_40_megabytes_of_broken_json_is_a_401_and_nothing_is_read(shared: Server) -> None:
    for prefix in PREFIXES:
        for headers in ({}, {"Content-Length": str(40 * 2**20)}):
            read = False

            def broken() -> Iterator[bytes]:
                nonlocal read
                read = True
                yield from (b"[" * 2**20 for _ in range(40))

            for key in ("wrong", None):
                answer = shared.ask("POST", f"{prefix}/flux-dev", key=key, headers=headers, body=broken())
                is_error(answer, 401, prefix)
            assert not read


def padded(size: int) -> str:
    """A picture whose file has so many bytes; what follows its end is nothing to anybody."""
    return text_of(file_of(picture(256, 256)).ljust(size, b"\0"))


def test_twenty_megabytes_of_picture_are_welcome(shared: Server) -> None:
    body = json.dumps({"prompt": "x", "image_prompt": padded(MAX_FILE)}).encode()
    answer = shared.ask("POST", f"{COMETAPI}/flux-dev", key=shared.key, body=body)
    assert answer.status_code == 200


MEGABYTE = 2**20
CROWDED = {
    "lists in an unknown field": b'{"prompt": "x", "a": [' + b"[]," * 100_000 + b"[]]}",
    "objects in an unknown field": b'{"prompt": "x", "a": [' + b"{}," * 100_000 + b"{}]}",
    "numbers in an unknown field": b'{"prompt": "x", "a": [' + b"1," * MEGABYTE + b"1]}",
    "unknown fields": b'{"prompt": "x"' + b"".join(b',"a%d":1' % number for number in range(100_000)) + b"}",
    "lists deep in a list": b'{"prompt": "x", "a": ' + b"[" * 90 + b"[]," * 100_000 + b"[]" + b"]" * 90 + b"}",
}


@pytest.mark.parametrize("prefix", PREFIXES)
@cases(CROWDED)
def test_a_large_body_of_many_values_is_a_400_and_is_never_read_as_json(
    shared: Server, prefix: str, body: bytes
) -> None:
    error = is_error(shared.ask("POST", f"{prefix}/flux-dev", key=shared.key, body=body), 400, prefix)
    assert "more than 20000 commas" in str(error["message"])


def test_what_a_large_body_may_legally_hold_is_not_taken_for_many_values(shared: Server) -> None:
    fields = {
        "prompt": ",[{" * 3333,
        "image_prompt": "data:image/png;base64," + padded(4 * MEGABYTE),
        "webhook_url": "https://example.com/" + "," * 2000,
        "webhook_secret": "[" * 1024,
        "user": "{" * 256,
    }
    task = shared.submit(fields)
    assert shared.record(task).generation.prompt == fields["prompt"]
