"""Requests of OpenAI's images API to a server of this process, which are held until something is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import httpx
from calls import Call, waits
from inprocess import Json, Server

from sample_pictures import file_of, picture

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
BOUNDARY = "a-boundary"
RED = file_of(picture(256, 256))
Files = Sequence[tuple[str, bytes]]


def generate(
    server: Server, *, key: str | None = None, headers: Mapping[str, str] | None = None, **fields: object
) -> Call:
    """A generation that was sent; nothing is drawn yet."""
    body = json.dumps({"prompt": "a red apple", "size": "256x256", **fields}).encode()
    given = {"content-type": "application/json", **(headers or {})}
    return Call(server, GENERATIONS, key=key or server.key, method="POST", body=body, headers=given)


def edit(server: Server, files: Files, **fields: str) -> Call:
    """An edit that was sent; nothing is drawn yet."""
    request = httpx.Request(
        "POST", "http://flux.test" + EDITS, data={"prompt": "a green apple", **fields},
        files=[(name, (f"{number}.png", file, "image/png")) for number, (name, file) in enumerate(files)],
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )  # fmt: skip
    headers = {"content-type": request.headers["content-type"]}
    return Call(server, EDITS, key=server.key, method="POST", body=request.read(), headers=headers)


def answered(call: Call) -> tuple[int, Json]:
    """Status and body of a call that is or will be answered."""
    status, _ = call.begin()
    return status, json.loads(call.whole())


def drawn(server: Server, call: Call, tasks: int = 1) -> tuple[int, Json]:
    """The same, once a worker has drawn everything."""
    waits(server, tasks)
    server.draw()
    return answered(call)


def refused(call: Call, status: int, *, code: str | None, param: str | None = None) -> str:
    """The message of a call that is refused so, in OpenAI's envelope and nothing else."""
    found, body = answered(call)
    assert found == status, body
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    return str(body["error"]["message"])
