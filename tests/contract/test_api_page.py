"""The page about the API: its examples have the keys of real answers, and its words are those that are served."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from calls import Call
from inprocess import Json, Server

from fluxserve.api.bfl import STATUSES
from fluxserve.api.cometapi import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
REQUEST, SUBMITTED, PENDING, READY, PREVIEW, CANCELLED, LISTED, ESTIMATED, PLAIN, INVALID, COMETAPI = [
    json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
(STREAM,) = re.findall(r"^```text\n(.*?)\n^```$", PAGE, re.MULTILINE | re.DOTALL)


def keys(value: object) -> object:
    """The shape of a body: its keys, without what they hold."""
    if isinstance(value, dict):
        return {name: keys(inner) for name, inner in value.items()}
    return [keys(inner) for inner in value] if isinstance(value, list) else None


def test_the_example_of_a_task_is_what_a_server_answers(server: Server) -> None:
    task = server.post("/v1/flux-dev", REQUEST).json()
    assert (keys(task), task["cost"], task["output_mp"]) == (keys(SUBMITTED), SUBMITTED["cost"], SUBMITTED["output_mp"])
    assert len(task["polling_url"]) - len("http://flux.test") == len(SUBMITTED["polling_url"]) - len(
        "http://127.0.0.1:8808"
    )
    server.claim()
    server.service.advance(task["id"], 7, 28)
    assert server.poll(task) == PENDING | {"id": task["id"]}


def test_the_example_of_an_estimate_is_what_a_server_answers(server: Server) -> None:
    asked = {"model": "flux-2-pro", "prompt": "x", "width": 1040, "height": 1024}
    assert server.post("/v1/estimate", asked).json() == ESTIMATED
    assert json.dumps(asked) in PAGE


def test_the_example_of_a_result_is_what_a_server_answers(server: Server) -> None:
    task = server.post("/v1/flux-dev", REQUEST).json()
    server.draw(seconds=1.5)
    result: Json = server.poll(task)
    details = result["details"]
    assert {"drawn_by", "steps", "drawn_at", "fingerprint", "pixels_sha256"} == details.keys()
    assert keys(result | {"details": None}) == keys(READY | {"details": None})
    assert (result["result"]["prompt"], result["result"]["duration"]) == (REQUEST["prompt"], 1.5)


def test_the_example_of_a_preview_is_what_a_server_answers(server: Server) -> None:
    task = server.submit()
    url = f"{task['polling_url']}&preview=true"
    server.ask("GET", url)
    server.service.show_preview(task["id"], base64.b64decode(PREVIEW["data"]))
    assert server.ask("GET", url).json()["preview"] == PREVIEW


def test_the_example_of_a_stream_is_what_a_server_answers(server: Server) -> None:
    task = server.post("/v1/flux-dev", REQUEST).json()
    (record,) = server.claim()
    stream = Call(server, f"/v1/tasks/{task['id']}/events", key=server.key)
    stream.begin()
    blocks = [stream.block() for _ in range(2)][1:]
    server.service.advance(record.id, 7, 28)
    blocks.append(stream.block())
    assert "\n\n".join(blocks) == STREAM.replace(PENDING["id"], task["id"])
    table = PAGE.partition("| event |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == {"status", "progress", "preview", "result"}


def test_the_examples_of_a_cancelled_task_and_of_a_list_are_what_a_server_answers(server: Server) -> None:
    task, _ = (server.post("/v1/flux-dev", REQUEST).json() for _ in range(2))
    page = server.ask("GET", "/v1/tasks?limit=1", key=server.key).json()
    assert keys(page) == keys(LISTED)
    assert len(page["next_cursor"]) == len(LISTED["next_cursor"])
    cancelled = server.ask("POST", f"/v1/tasks/{task['id']}/cancel", key=server.key).json()
    assert cancelled == CANCELLED | {"id": task["id"]}


def test_the_examples_of_errors_are_what_a_server_answers(server: Server) -> None:
    assert server.ask("POST", "/v1/flux-dev").json() == PLAIN
    assert server.post("/v1/flux-dev", {"prompt": "x", "width": 100}).json() == INVALID
    poor = server.new_key(grant=1)
    assert server.ask("POST", "/flux/v1/flux-dev", key=poor, body=b'{"prompt": "x"}').json() == COMETAPI


def test_the_page_names_every_status_and_code_and_no_other() -> None:
    table = PAGE.partition("| status |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z][\w ]+)`", table)) == {*STATUSES.values(), "Task not found"}
    codes = PAGE.partition("`code` is ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", codes)) == set(CODES.values())
