"""What existing clients do and need, one row each: how they submit, poll and download, and what ends them.

Written after their behaviour, not with their code. A client here is as strict as the strictest of its releases.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
from inprocess import ORIGIN, Json, Server

from sample_pictures import PNG

#: The only words that strict clients read without an error while they wait and at the end.
WORDS = ("Pending", "Ready")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One client. `{key}` stands for the key; `polls` is a path for those that ignore polling_url.

    `attempt`: adds its counter to the polling_url. `suffix_from_url`: names the file after the end of the link.
    """

    name: str
    path: str
    submits: dict[str, str]
    polling: dict[str, str] = field(default_factory=dict)
    downloading: dict[str, str] = field(default_factory=dict)
    polls: str = ""
    attempt: bool = False
    suffix_from_url: bool = False
    fields: dict[str, object] = field(default_factory=dict)


XKEY = {"x-key": "{key}"}
BEARER = {"Authorization": "Bearer {key}"}
CLIENTS = (
    Client(
        name="Vercel AI SDK",
        path="/v1/flux-pro-1.1",
        submits=XKEY,
        polling=XKEY,
        downloading=XKEY,
        fields={"aspect_ratio": "16:9", "width": 512, "height": 288, "seed": 3, "steps": None, "webhook_url": None},
    ),
    Client(
        name="Vercel AI SDK, ultra with a size",
        path="/v1/flux-pro-1.1-ultra",
        submits=XKEY,
        polling=XKEY,
        downloading=XKEY,
        fields={"aspect_ratio": "1:1", "width": 1024, "height": 1024, "raw": False},
    ),
    Client(name="blackforest", path="/v1/flux-dev", submits=XKEY, polling=XKEY, fields={"safety_tolerance": 2}),
    Client(name="black-forest-labs", path="/v1/flux-pro", submits=XKEY, polling=XKEY, polls="/v1/get_result"),
    Client(
        name="LiteLLM",
        path="/v1/flux-pro-1.1",
        submits={**XKEY, "Content-Type": "application/json"},
        polling=XKEY,
        fields={"num_images": 1, "width": 256, "height": 256, "output_format": "png"},
    ),
    Client(name="huggingface_hub", path="/v1/flux-dev", submits=XKEY, fields={"num_inference_steps": 4}),
    Client(
        name="@huggingface/inference",
        path="/v1/flux-schnell",
        submits={"Authorization": "X-Key {key}"},
        attempt=True,
        fields={"response_format": "url"},
    ),
    Client(name="bfl-api", path="/v1/flux-dev", submits=XKEY, polling=XKEY, fields={"image_prompt": PNG}),
    Client(name="comfy-cli", path="/v1/flux-pro-1.1", submits=BEARER, polling=BEARER, suffix_from_url=True),
    Client(name="ComfyUI nodes", path="/v1/flux-pro-1.1-ultra", submits=XKEY, fields={"seed": 2**64 - 1}),
    Client(name="Pixeltable", path="/v1/flux-dev", submits=XKEY, polling=XKEY, polls="/v1/get_result"),
    Client(
        name="the flux repository",
        path="/v1/flux-pro",
        submits={"accept": "application/json", **XKEY},
        polling={"accept": "application/json", **XKEY},
        polls="/v1/get_result",
        suffix_from_url=True,
        fields={"interval": 2.0, "guidance": 3, "variant": "flux.1-pro"},
    ),
    Client(
        name="LibreChat",
        path="/v1/flux-dev",
        submits=XKEY,
        polling=XKEY,
        polls="/v1/get_result",
        fields={"raw": False, "number_of_images": 1, "endpoint": "/v1/flux-dev", "finetune_id": ""},
    ),
    Client(
        name="CometAPI",
        path="/flux/v1/flux-dev",
        submits=BEARER,
        polling=BEARER,
        polls="/flux/v1/get_result",
        fields={"image_prompt": "", "webhook_url": "", "webhook_secret": "", "interval": 2},
    ),
    Client(name="CometAPI through polling_url", path="/flux/v1/flux-pro-1.1", submits=BEARER),
)


def headers_of(server: Server, headers: dict[str, str]) -> dict[str, str]:
    return {name: value.format(key=server.key) for name, value in headers.items()}


def submit(server: Server, client: Client) -> Json:
    fields = {"prompt": "a red apple", **client.fields}
    return server.submit_with(client.path, headers_of(server, client.submits), fields)


def check_submitted(task: Json) -> None:
    """An id, numbers where numbers are expected, and an absolute address on the origin that was used."""
    assert uuid.UUID(task["id"]).version == 4
    assert all(isinstance(task[name], (int, float)) for name in ("cost", "input_mp", "output_mp"))
    assert same_origin(task["polling_url"])


def same_origin(url: str) -> bool:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" == ORIGIN


def poll(server: Server, client: Client, task: Json, attempt: int) -> Json:
    url = (
        httpx.URL(ORIGIN + client.polls, params={"id": task["id"]}) if client.polls else httpx.URL(task["polling_url"])
    )
    if client.attempt:
        url = url.copy_merge_params({"attempt": str(attempt)})
    answer = server.ask("GET", str(url), headers=headers_of(server, client.polling))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body: Json = answer.json()
    assert body["id"] == task["id"]
    assert body["status"] in WORDS
    assert "errors" not in body
    return body


def check_ready(server: Server, client: Client, body: Json) -> None:
    result = body["result"]
    assert isinstance(result["prompt"], str)
    assert isinstance(result["seed"], int)
    assert all(isinstance(result[name], (int, float)) for name in ("start_time", "end_time", "duration"))
    assert same_origin(result["sample"])
    if client.suffix_from_url:
        assert result["sample"].rpartition(".")[2] in ("jpeg", "png", "webp")
    for _ in range(2):
        picture = server.ask("GET", result["sample"], headers=headers_of(server, client.downloading))
        assert picture.status_code == 200
        assert picture.headers["content-type"].startswith("image/")
        assert picture.content


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_an_existing_client_gets_its_picture(server: Server, client: Client) -> None:
    task = submit(server, client)
    check_submitted(task)
    assert poll(server, client, task, 1)["status"] == "Pending"
    (record,) = server.claim()
    running = poll(server, client, task, 2)
    assert (running["status"], running["result"]) == ("Pending", None)
    server.draw_claimed(record)
    body = poll(server, client, task, 3)
    assert body["status"] == "Ready"
    check_ready(server, client, body)


def reads_detail(body: Json) -> object:
    """AI SDK, bfl-api, the flux repository."""
    return body["detail"]


def reads_message(body: Json) -> object:
    """The vendor's SDK, and clients that show one line."""
    return body["message"]


def reads_error(body: Json) -> object:
    """Programs written for CometAPI or OpenAI."""
    return body["error"]["message"]


@pytest.mark.parametrize(
    ("path", "reads"),
    [
        ("/v1/flux-dev", reads_detail),
        ("/v1/flux-dev", reads_message),
        ("/flux/v1/flux-dev", reads_message),
        ("/flux/v1/flux-dev", reads_error),
    ],
)
def test_a_client_can_show_why_it_was_refused(server: Server, path: str, reads: Callable[[Json], object]) -> None:
    for answer in (
        server.post(path, {"prompt": "x", "width": 100}),
        server.ask("POST", path, body=b'{"prompt": "x"}'),
        server.ask("POST", path, key=server.key, body=b"prompt=x"),
    ):
        body = answer.json()
        assert answer.headers["content-type"] == "application/json"
        assert reads(body)
        assert "errors" not in body


def test_a_client_that_reads_the_reason_of_a_failure_finds_it(server: Server) -> None:
    task = server.submit()
    (record,) = server.claim()
    server.fail(record, "The device ran out of memory.")
    body = server.poll(task)
    assert (body["status"], body["details"]["error"]) == ("Error", "The device ran out of memory.")


def test_a_client_that_knows_only_an_id_learns_that_it_is_unknown_from_the_status(server: Server) -> None:
    for path in ("/v1/get_result", "/flux/v1/get_result"):
        body = server.ask("GET", path, key=server.key, query={"id": str(uuid.UUID(int=1))}).json()
        assert (body["status"], body["result"]) == ("Task not found", None)


def test_a_client_that_resubmits_after_a_lost_answer_pays_once(server: Server) -> None:
    headers = {"x-key": server.key, "Idempotency-Key": "4fd2"}
    ids = {server.submit_with("/v1/flux-dev", headers, {"prompt": "x"})["id"] for _ in range(3)}
    assert len(ids) == 1
