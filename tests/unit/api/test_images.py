import asyncio
import errno
import os
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Send

from fluxserve.api.images import PART, Pictures
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.storage import LocalStorage, Picture, new_object_name

KEY = bytes(32)
PICTURE = b"\xff\xd8 a picture \xff\xd9"
NOW = 1_800_000_000.0
ORIGIN = "https://app.example.com"


class Server:
    """The handler with a folder of pictures and a clock that can be turned."""

    def __init__(self, folder: Path) -> None:
        self.signer = LinkSigner([KEY], 600)
        self.storage = LocalStorage(folder)
        self.now = NOW
        self.app = Pictures(self.signer, self.storage, lambda: self.now, [ORIGIN + "/"])

    def picture(self, suffix: str = "jpeg", data: bytes = PICTURE) -> str:
        name = new_object_name("png")[:-3] + suffix
        self.storage.put(name, data)
        return self.signer.sign_picture(name, int(self.now) + 600)

    async def serve(self, method: str, path: str, send: Send, gone: asyncio.Event | None = None) -> None:
        """One request of a caller who hangs up when `gone` is set."""
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        await self.app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)

    def sent(self, method: str, path: str) -> list[Message]:
        """The ASGI messages themselves."""
        messages: list[Message] = []

        async def send(message: Message) -> None:
            messages.append(message)

        asyncio.run(self.serve(method, path, send))
        return messages

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return asyncio.run(asked())


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_a_link_gives_the_picture_with_headers_that_make_it_harmless(server: Server, suffix: str) -> None:
    answer = server.ask("GET", server.picture(suffix))
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert dict(answer.headers) == {
        "content-type": f"image/{suffix}",
        "content-length": str(len(PICTURE)),
        "content-disposition": f'inline; filename="sample.{suffix}"',
        "cache-control": "private, max-age=600",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
        "cross-origin-resource-policy": "same-site",
        "vary": "Origin",
    }


def test_a_cache_may_keep_a_picture_only_as_long_as_its_link_lives(server: Server) -> None:
    path = server.picture()
    server.now += 599.5
    assert server.ask("GET", path).headers["cache-control"] == "private, max-age=0"


def test_a_head_gives_the_same_headers_without_the_picture(server: Server) -> None:
    path = server.picture()
    head, get = server.ask("HEAD", path), server.ask("GET", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == get.headers
    assert server.sent("HEAD", path)[1:] == [{"type": "http.response.body", "body": b"", "more_body": False}]


def test_a_picture_is_sent_at_once(server: Server) -> None:
    whole = {"type": "http.response.body", "body": PICTURE, "more_body": False}
    assert server.sent("GET", server.picture())[1:] == [whole]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 1000])
def test_a_picture_is_sent_whole_in_parts_that_have_a_limit(server: Server, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    path = server.picture(data=data)
    start, *parts = server.sent("GET", path)
    assert (b"content-length", b"%d" % size) in start["headers"]
    assert b"".join(part["body"] for part in parts) == data
    assert max(len(part["body"]) for part in parts) <= PART
    assert [part.get("more_body", False) for part in parts] == [True] * (len(parts) - 1) + [False]
    assert (len(parts) == 1) == (size <= PART)
    assert len(server.sent("HEAD", path)) == 2
    assert server.ask("GET", path).content == data


class Taker:
    """Takes what it is sent only after `take`, and looks at the server's open files meanwhile."""

    def __init__(self, server: Server, path: str) -> None:
        self.body = b""
        self._taken = asyncio.Semaphore(0)
        self._came = asyncio.Semaphore(0)
        self.gone = asyncio.Event()
        self.task = asyncio.create_task(server.serve("GET", path, self._send, self.gone))

    async def _send(self, message: Message) -> None:
        self.body += message.get("body", b"")
        self._came.release()
        await self._taken.acquire()

    async def came(self) -> None:
        await self._came.acquire()

    def take(self, messages: int) -> None:
        for _ in range(messages):
            self._taken.release()


def open_pictures(folder: Path) -> int:
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return sum(link.startswith(str(folder)) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.parametrize("end", ["whole", "cancelled", "hung up"])
def test_a_caller_who_does_not_take_a_part_is_not_sent_the_next(server: Server, tmp_path: Path, end: str) -> None:
    data = bytes(range(256)) * (PART // 64)
    path = server.picture(data=data)

    async def scenario() -> None:
        taker = Taker(server, path)
        for _ in range(2):  # The start, then the first part, which is not taken.
            await taker.came()
            assert open_pictures(tmp_path) == 1
            taker.take(1)
        await taker.came()
        assert len(taker.body) == PART
        server.storage.delete(next(iter(server.storage.names_older_than(1e12))))
        if end == "cancelled":
            taker.task.cancel()
            await asyncio.wait([taker.task])
        elif end == "hung up":
            taker.gone.set()
            for _ in range(5):  # Until the server has heard of it.
                await asyncio.sleep(0)
            taker.take(100)
            await taker.task
            assert len(taker.body) <= 2 * PART
        else:
            taker.take(100)
            await taker.task
            assert taker.body == data
        assert open_pictures(tmp_path) == 0

    asyncio.run(scenario())


def test_keys_and_other_headers_and_ranges_change_nothing(server: Server) -> None:
    answer = server.ask(
        "GET", server.picture(), x_key="wrong", authorization="Bearer wrong", range="bytes=0-3", accept="text/html"
    )
    assert (answer.status_code, answer.content) == (200, PICTURE)


def test_a_picture_may_be_fetched_again_until_the_link_expires(server: Server) -> None:
    path = server.picture()
    for _ in range(3):
        server.now += 199
        assert server.ask("GET", path).status_code == 200
    server.now += 3
    answer = server.ask("GET", path)
    assert answer.status_code == 403
    body = answer.json()
    assert body["status_code"] == 403
    assert body["detail"] == body["message"] == "This link expired 0 s ago. Poll the task again for a new one."
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_a_forged_link_is_refused_and_says_what_to_do(server: Server) -> None:
    path = server.picture()
    for forged in (
        path.replace(".jpeg", ".png"),
        path.replace("sample", "simple"),
        path[:30] + ("A" if path[30] != "A" else "B") + path[31:],
        "/results/x/sample.jpeg",
        "/results//sample.jpeg",
        "/results/..%2f..%2fsecrets.json/sample.jpeg",
    ):
        answer = server.ask("GET", forged)
        assert answer.status_code in (403, 404)
        assert answer.json()["status_code"] == answer.status_code
    assert "poll the task again" in server.ask("GET", "/results/x/sample.jpeg").json()["message"]


def test_another_servers_link_is_refused(server: Server) -> None:
    name = new_object_name("jpeg")
    server.storage.put(name, PICTURE)
    path = LinkSigner([bytes(31) + b"x"], 600).sign_picture(name, int(NOW) + 600)
    assert server.ask("GET", path).status_code == 403


def test_a_deleted_picture_is_not_found(server: Server) -> None:
    name = new_object_name("jpeg")
    answer = server.ask("GET", server.signer.sign_picture(name, int(NOW) + 600))
    assert answer.status_code == 404
    assert "gone" in answer.json()["message"]


class OutOfReach(LocalStorage):
    """A folder on a disk that does not answer."""

    def open(self, object_name: str) -> Picture:
        raise OSError(errno.EIO, os.strerror(errno.EIO), object_name)


def test_a_picture_that_cannot_be_read_for_now_is_a_503(server: Server, tmp_path: Path) -> None:
    link = server.picture()
    server.app = Pictures(server.signer, OutOfReach(tmp_path), lambda: server.now, [])
    answer = server.ask("GET", link)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "Try again" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/results/", "/results/a", "/results/a/sample.jpeg/b", "/results/a/b/c/d"])
def test_other_paths_below_results_are_not_found(server: Server, path: str) -> None:
    assert server.ask("GET", path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_told_what_is_allowed(server: Server, method: str) -> None:
    answer = server.ask(method, server.picture())
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert server.ask("GET", server.picture()).status_code == 200


@pytest.mark.parametrize("path", ["picture", "/results/x/sample.jpeg"], ids=["picture", "error"])
def test_only_a_listed_origin_is_named(server: Server, path: str) -> None:
    path = server.picture() if path == "picture" else path
    listed = server.ask("GET", path, origin=ORIGIN)
    assert (listed.headers["access-control-allow-origin"], listed.headers["vary"]) == (ORIGIN, "Origin")
    for other in ("https://evil.example.com", ORIGIN + ".evil.com", ORIGIN.upper(), "null", ""):
        answer = server.ask("GET", path, origin=other)
        assert answer.headers["vary"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_credentials_are_never_allowed_across_origins(server: Server) -> None:
    assert "access-control-allow-credentials" not in server.ask("GET", server.picture(), origin=ORIGIN).headers


def test_a_preflight_of_a_listed_origin_is_answered(server: Server) -> None:
    answer = server.ask("OPTIONS", server.picture(), origin=ORIGIN, access_control_request_method="GET")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD"
    assert server.ask("OPTIONS", server.picture(), origin="https://evil.example.com").status_code == 405


def test_without_listed_origins_nothing_varies(server: Server) -> None:
    server.app = Pictures(server.signer, server.storage, lambda: NOW, [])
    answer = server.ask("GET", server.picture(), origin=ORIGIN)
    assert "vary" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
