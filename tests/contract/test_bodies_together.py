"""Many large bodies at once: together they have a limit, which small ones never meet and every end gives back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from facts import PREFIXES
from inprocess import ORIGIN, Server
from shapes import is_error

LIMIT = 1_000_000
SMALL = b'{"prompt": "x"}'


def body_of(size: int) -> bytes:
    around = json.dumps({"prompt": "x", "a_field": ""}).encode()
    return around[:-2] + b"y" * (size - len(around)) + around[-2:]


class Upload:
    """A request whose body stops before its last 100 bytes until `go`; `read` is set when the server wants those."""

    def __init__(self, server: Server, body: bytes, path: str = "/v1/flux-dev") -> None:
        self._body = body
        self.read, self.go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(ask(server, self._parts(), path))

    async def _parts(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body) - 100, 50_000):
            yield self._body[start : min(start + 50_000, len(self._body) - 100)]
        self.read.set()
        await self.go.wait()
        yield self._body[-100:]

    async def finish(self) -> httpx.Response:
        self.go.set()
        return await self.task


async def ask(server: Server, body: bytes | AsyncIterator[bytes], path: str = "/v1/flux-dev") -> httpx.Response:
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        return await client.post(path, content=body, headers={"X-Key": server.key})


@pytest.mark.parametrize("prefix", PREFIXES)
def test_large_bodies_beyond_the_limit_are_a_503_and_small_ones_are_welcome(
    serve: Callable[..., Server], prefix: str
) -> None:
    server = serve(max_body=LIMIT, max_bodies=LIMIT)
    path = f"{prefix}/flux-dev"

    async def scenario() -> None:
        first = Upload(server, body_of(700_000), path)
        await first.read.wait()
        answer = await ask(server, body_of(400_000), path)
        is_error(answer, 503, prefix)
        assert answer.headers["retry-after"] == "2"
        for fine in (SMALL, body_of(64 * 1024), body_of(300_000)):
            assert (await ask(server, fine, path)).status_code == 200
        assert (await first.finish()).status_code == 200
        assert (await ask(server, body_of(400_000), path)).status_code == 200

    server.run(scenario())
    assert len(server.service.views) == 5


def test_a_server_full_of_large_bodies_still_takes_prompts(serve: Callable[..., Server]) -> None:
    server = serve(max_body=LIMIT, max_bodies=LIMIT)

    async def scenario() -> None:
        full = Upload(server, body_of(LIMIT))
        await full.read.wait()
        small = [Upload(server, body_of(64 * 1024)) for _ in range(20)]
        for upload in small:
            await upload.read.wait()
        assert {(await upload.finish()).status_code for upload in small} == {200}
        assert (await full.finish()).status_code == 200

    server.run(scenario())


def test_a_length_that_is_only_announced_takes_no_room(serve: Callable[..., Server]) -> None:
    server = serve(max_body=LIMIT, max_bodies=LIMIT)

    async def scenario() -> None:
        idle = Upload(server, body_of(200))
        await idle.read.wait()
        assert (await ask(server, body_of(LIMIT))).status_code == 200
        assert (await idle.finish()).status_code == 200

    server.run(scenario())


ENDS = {
    "accepted": (body_of(LIMIT), 200),
    "no JSON": (b"x" * LIMIT, 400),
    "too large": (body_of(LIMIT + 50), 413),
    "breaks the schema": (body_of(LIMIT).replace(b'"prompt"', b'"prompd"', 1), 422),
}


@pytest.mark.parametrize(("body", "status"), ENDS.values(), ids=ENDS.keys())
def test_however_a_request_ends_its_room_is_free_again(serve: Callable[..., Server], body: bytes, status: int) -> None:
    server = serve(max_body=LIMIT, max_bodies=LIMIT)

    async def scenario() -> None:
        for _ in range(2):
            upload = Upload(server, body)
            assert (await upload.finish()).status_code == status
        assert (await ask(server, body_of(LIMIT))).status_code == 200

    server.run(scenario())


def test_a_request_that_was_cut_off_gives_its_room_back(serve: Callable[..., Server]) -> None:
    server = serve(max_body=LIMIT, max_bodies=LIMIT)

    async def scenario() -> None:
        upload = Upload(server, body_of(LIMIT))
        await upload.read.wait()
        assert (await ask(server, body_of(400_000))).status_code == 503
        upload.task.cancel()
        await asyncio.wait([upload.task])
        assert (await ask(server, body_of(LIMIT))).status_code == 200

    server.run(scenario())


def test_one_body_within_its_own_limit_always_fits(serve: Callable[..., Server]) -> None:
    server = serve(max_body=LIMIT, max_bodies=1024)
    assert server.ask("POST", "/v1/flux-dev", key=server.key, body=body_of(LIMIT)).status_code == 200
