"""From prompts to pictures in one call, also awaited and many at once; and what a picture can do."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from PIL import Image

from fluxserve.client import AsyncClient, Client, ClientError, Picture, Result, Task, TaskFailed, generate
from fluxserve.client.calls import COMETAPI, prefix_of

ORIGIN = "http://flux.test"
T = TypeVar("T")


def file(colour: str = "red", kind: str = "JPEG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(written, kind)
    return written.getvalue()


class Drawer:
    """A server that draws at once; a prompt of `fail` fails. It counts how many are drawn at a time."""

    def __init__(self, origin: str = ORIGIN, polled_at: str | None = None) -> None:
        self.asked: list[httpx.Request] = []
        self.drawing = self.most = 0
        self._origin = origin
        self._polled_at = polled_at or f"{origin}/v1/get_result"
        self._lock = threading.Lock()
        self._prompts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path
        if request.method == "POST":
            with self._lock:
                self.drawing += 1
                self.most = max(self.most, self.drawing)
                self._prompts.append(json.loads(request.content)["prompt"])
                number = len(self._prompts) - 1
            return httpx.Response(
                200, json={"id": str(number), "polling_url": f"{self._polled_at}?id={number}", "cost": 1}
            )
        if path.endswith("/get_result"):
            prompt = self._prompts[int(request.url.params["id"])]
            with self._lock:
                self.drawing -= 1
            if prompt == "fail":
                return httpx.Response(200, json={"id": "1", "status": "Error", "details": {"error": "No."}})
            result = {"sample": f"https://pictures.test/{prompt}.jpeg", "prompt": prompt, "seed": 7}
            return httpx.Response(200, json={"id": "1", "status": "Ready", "result": result, "cost": 2.5})
        if path.endswith("/credits"):
            return httpx.Response(200, json={"credits": 12.5})
        return httpx.Response(200, content=file(), headers={"content-type": "image/jpeg"})


def client_of(drawer: Drawer, address: str = ORIGIN) -> Client:
    return Client(address, "the-key", transport=httpx.MockTransport(drawer))


def awaited(drawer: Drawer, work: Callable[[AsyncClient], Coroutine[None, None, T]]) -> T:
    async def run() -> T:
        async with AsyncClient(ORIGIN, "the-key", transport=httpx.MockTransport(drawer)) as client:
            return await work(client)

    return asyncio.run(run())


def picture(data: bytes = b"", media_type: str = "image/jpeg") -> Picture:
    result = Result(id="1", sample="s", prompt="p", seed=7, duration=None, cost=2.5, details={"warnings": ["w"]})
    return Picture(data=data or file(), media_type=media_type, result=result)


def test_one_call_goes_from_the_prompt_to_the_picture() -> None:
    drawer = Drawer()
    with client_of(drawer) as client:
        drawn = client.generate("apple", "flux-schnell", seed=7, width=256)
    assert (drawn.data, drawn.prompt, drawn.seed, drawn.cost) == (file(), "apple", 7, 2.5)
    created, polled, downloaded = drawer.asked
    assert json.loads(created.content) == {"prompt": "apple", "seed": 7, "width": 256}
    assert (created.url.path, created.headers["x-key"], polled.headers["x-key"]) == (
        "/v1/flux-schnell",
        *["the-key"] * 2,
    )
    assert "x-key" not in downloaded.headers


def test_an_awaited_call_is_the_same() -> None:
    drawer = Drawer()
    drawn = awaited(drawer, lambda client: client.generate("apple", seed=7))
    assert (drawn.data, drawn.prompt, drawn.seed) == (file(), "apple", 7)
    assert [request.method for request in drawer.asked] == ["POST", "GET", "GET"]


def test_pictures_go_in_whatever_they_are_in(tmp_path: Path) -> None:
    drawer, path = Drawer(), tmp_path / "in.png"
    path.write_bytes(file(kind="PNG"))
    with client_of(drawer) as client, Image.open(path) as image:
        client.generate(
            "p", input_image=path, input_image_2=file(), input_image_3=picture(), input_image_4=image,
            input_image_5="https://example.com/a.png",
        )  # fmt: skip
    sent = json.loads(drawer.asked[0].content)
    assert base64.b64decode(sent["input_image"]) == path.read_bytes()
    assert base64.b64decode(sent["input_image_2"]) == base64.b64decode(sent["input_image_3"]) == file()
    assert Image.open(io.BytesIO(base64.b64decode(sent["input_image_4"]))).size == (4, 3)
    assert sent["input_image_5"] == "https://example.com/a.png"


def test_a_picture_is_kept_as_it_came_or_in_another_format(tmp_path: Path) -> None:
    drawn = picture()
    assert drawn.save(tmp_path / "a.jpg").read_bytes() == drawn.data
    assert drawn.save(str(tmp_path / "a")).read_bytes() == drawn.data
    assert drawn.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert drawn.pil().size == (4, 3)
    assert (drawn.warnings, drawn._repr_mimebundle_()) == (("w",), {"image/jpeg": drawn.data})
    assert Image.open(io.BytesIO(drawn._repr_png_())).format == "PNG"


PROMPTS = [f"p{number}" for number in range(9)]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_many_come_in_their_order_so_many_at_a_time(concurrency: int) -> None:
    drawer, told = Drawer(), list[tuple[int, int]]()
    with client_of(drawer) as client:
        drawn = list(client.map(PROMPTS, concurrency=concurrency, progress=lambda *now: told.append(now), seed=1))
    assert [one.prompt for one in drawn] == PROMPTS
    assert 1 <= drawer.most <= concurrency
    assert told == [(number, 9) for number in range(1, 10)]


def test_many_can_be_awaited() -> None:
    drawer = Drawer()

    async def draw(client: AsyncClient) -> list[str]:
        return [one.prompt async for one in client.map(PROMPTS, concurrency=3)]

    assert awaited(drawer, draw) == PROMPTS
    assert drawer.most <= 3


def test_the_first_that_fails_ends_a_batch_and_no_more_are_asked_for() -> None:
    prompts = ["p0", "fail", *(f"p{number}" for number in range(100))]
    drawer = Drawer()
    with client_of(drawer) as client, pytest.raises(TaskFailed, match=r"No\."):
        list(client.map(prompts, concurrency=2))
    assert sum(request.method == "POST" for request in drawer.asked) < 12

    async def draw(client: AsyncClient) -> None:
        async for _ in client.map(prompts, concurrency=2):
            pass

    drawer = Drawer()
    with pytest.raises(TaskFailed, match=r"No\."):
        awaited(drawer, draw)
    assert sum(request.method == "POST" for request in drawer.asked) < 12


def test_a_bar_is_shown_for_those_who_want_one() -> None:
    with client_of(Drawer()) as client:
        assert len(list(client.map(PROMPTS, progress=True))) == 9


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("https://api.cometapi.com", "/flux/v1/flux-dev"),
        ("https://api.cometapi.com/flux/v1/", "/flux/v1/flux-dev"),
        ("http://127.0.0.1:8808/flux/v1", "/flux/v1/flux-dev"),
        ("https://api.bfl.ai/v1", "/v1/flux-dev"),
        ("http://notcometapi.com", "/v1/flux-dev"),
    ],
)
def test_the_address_says_which_dialect_is_spoken(address: str, path: str) -> None:
    drawer = Drawer(polled_at=address.removesuffix("/").removesuffix("/flux/v1").removesuffix("/v1") + "/get_result")
    with client_of(drawer, address) as client:
        client.generate("apple")
        assert client.credits() == 12.5
    assert drawer.asked[0].url.path == path
    name = "authorization" if prefix_of(address) == COMETAPI else "x-key"
    assert drawer.asked[0].headers[name] == ("Bearer the-key" if name == "authorization" else "the-key")


def test_the_key_goes_nowhere_but_to_its_server() -> None:
    drawer = Drawer(polled_at="https://elsewhere.test/v1/get_result")
    with client_of(drawer) as client:
        client.generate("apple")
    assert [("x-key" in request.headers) for request in drawer.asked] == [True, False, False]
    drawer = Drawer(polled_at="https://api.eu2.bfl.ai/v1/get_result")
    with client_of(drawer, "https://api.bfl.ai") as client:
        client.generate("apple")
    assert [("x-key" in request.headers) for request in drawer.asked] == [True, True, False]


def test_a_gateway_that_tells_of_another_servers_polls_is_polled_itself() -> None:
    drawer = Drawer(polled_at="https://api.eu2.bfl.ai/v1/get_result")
    with client_of(drawer, "https://api.cometapi.com") as client:
        client.generate("apple")
    assert drawer.asked[1].url.copy_with(query=None) == httpx.URL("https://api.cometapi.com/flux/v1/get_result")


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUXSERVE_API_KEY", raising=False)
    with pytest.raises(ClientError, match="set FLUXSERVE_API_KEY"):
        generate("apple")
    monkeypatch.setenv("FLUXSERVE_API_KEY", "mine")
    monkeypatch.setenv("FLUXSERVE_URL", f"{ORIGIN}/v1")
    drawer = Drawer()
    with Client(transport=httpx.MockTransport(drawer)) as client:
        client.generate("apple")
    assert (drawer.asked[0].url.host, drawer.asked[0].headers["x-key"]) == ("flux.test", "mine")


def test_the_other_calls_can_be_awaited_too() -> None:
    task = Task(id="0", polling_url=f"{ORIGIN}/v1/get_result?id=0", cost=None)

    async def work(client: AsyncClient) -> list[object]:
        made = await client.create("flux-dev", "apple")
        looked = [type(one) async for one in client.events(task)]
        return [made.id, looked, (await client.wait(task)).seed, await client.credits()]

    assert awaited(Drawer(), work) == ["0", [Result], 7, 12.5]
