"""The floor beside which requests are measured: the same HTTP server and parser, answering a constant.

    python benchmarks/floor.py PORT

`GET /` answers 200 bytes of JSON; `POST /` reads the body first. What fluxserve takes beyond this is its own.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

from fluxserve.api.http_protocol import Limits, make_protocol

BODY = b'{"id":"00000000-0000-0000-0000-000000000000","status":"Pending","padding":"' + b"x" * 120 + b'"}'
Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """One constant answer."""
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http=make_protocol(Limits(exempt=frozenset({"127.0.0.1"}))),
        loop="uvloop",
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="error",
        server_header=False,
    )
