"""Every route and every kind of caller: who is let in, who is told nothing, and that no route is left out.

The routes come from the served document, so one that is added has to be given its place here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx
import pytest
from facts import PREFIXES
from inprocess import Json, Server
from other_routes import BEGINNING, HELD, OF_ONE_PREDICTION
from other_routes import OF_THE_CALLER as OTHERS_OF_THE_CALLER

#: Routes that ask for no key.
OPEN = {"GET /healthz", "GET /readyz", "GET /c2pa/certificates.pem", "GET /results/{token}/{name}"}
#: Routes that show or change one task, by its id; the id of nobody's task is answered alike.
OF_ONE_TASK = {
    f"{method} {prefix}/{path}"
    for prefix in PREFIXES
    for method, path in (
        ("GET", "get_result"), ("DELETE", "tasks/{id}"), ("POST", "tasks/{id}/cancel"), ("GET", "tasks/{id}/events"),
        ("POST", "webhooks/deliveries/{id}/replay"),
    )
} | OF_ONE_PREDICTION  # fmt: skip
#: Routes that answer what is the caller's own, or the same to everyone with a key.
OF_THE_CALLER = (
    {"GET /v1/models"}
    | OTHERS_OF_THE_CALLER
    | {f"GET {prefix}/{path}" for prefix in PREFIXES for path in ("credits", "tasks", "webhooks/deliveries")}
)
CANARY = "canary-of-the-owner"


@pytest.fixture
def routes(server: Server) -> set[str]:
    """METHOD PATH of every operation of the served document."""
    paths: Json = server.ask("GET", "/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


@pytest.fixture
def task(server: Server) -> Json:
    """A ready task of the server's first key."""
    made = server.submit({"prompt": CANARY})
    server.draw()
    return made


def submits(routes: set[str]) -> set[str]:
    return routes - OPEN - OF_ONE_TASK - OF_THE_CALLER


def asked(server: Server, route: str, task_id: str, headers: Mapping[str, str]) -> httpx.Response:
    method, path = route.split(" ")
    query = {"id": task_id} if path.endswith("/get_result") else None
    body = None if method != "POST" or "{id}" in path else b"{}" if route in HELD else b'{"prompt": "x"}'
    return server.ask(method, path.replace("{id}", task_id), headers=headers, query=query, body=body)


def test_every_route_has_its_place(routes: set[str]) -> None:
    assert routes >= OPEN | OF_ONE_TASK | OF_THE_CALLER
    assert all(route.startswith("POST ") and "{" not in route for route in submits(routes) - BEGINNING)


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Cookie": "key=wrong"}, {"X-Key": "{revoked}"}],
    ids=["none", "wrong", "wrong bearer", "a cookie", "revoked"],
)
def test_without_a_good_key_no_route_but_the_open_ones_says_anything(
    server: Server, routes: set[str], task: Json, headers: Mapping[str, str]
) -> None:
    revoked = server.new_key()
    server.revoke(revoked)
    given = {name: value.replace("{revoked}", revoked) for name, value in headers.items()}
    for route in sorted(routes - OPEN):
        answer = asked(server, route, str(task["id"]), given)
        assert answer.status_code == 401, route
        assert CANARY not in answer.text
        assert str(task["id"]) not in answer.text, route
    assert server.poll(task)["status"] == "Ready"


def test_another_account_cannot_tell_ones_tasks_from_nobodys(server: Server, routes: set[str], task: Json) -> None:
    other = {"X-Key": server.new_key()}
    for route in sorted(OF_ONE_TASK):
        nobodys = str(uuid.uuid4())
        foreign, unknown = (asked(server, route, task_id, other) for task_id in (str(task["id"]), nobodys))
        assert foreign.status_code == unknown.status_code, route
        assert foreign.text.replace(str(task["id"]), nobodys) == unknown.text, route
        assert foreign.headers.keys() == unknown.headers.keys(), route
    for route in sorted(OF_THE_CALLER | submits(routes)):
        answer = asked(server, route, str(task["id"]), other)
        assert str(task["id"]) not in answer.text, route
        assert CANARY not in answer.text, route
    assert server.poll(task)["status"] == "Ready"


def test_two_keys_of_an_account_see_the_same_tasks(server: Server) -> None:
    keys = [server.new_key(account="shared") for _ in range(2)]
    made = server.ask("POST", "/v1/flux-dev", key=keys[0], body=b'{"prompt": "x"}').json()
    for key in keys:
        listed = server.ask("GET", "/v1/tasks", key=key).json()["tasks"]
        assert [one["id"] for one in listed] == [made["id"]]
        assert server.ask("GET", f"/v1/get_result?id={made['id']}", key=key).status_code == 200


def test_whoever_has_a_polling_url_may_look_and_do_no_more(server: Server, routes: set[str], task: Json) -> None:
    capability = urlsplit(str(task["polling_url"])).query.partition("&t=")[2]
    assert capability
    for route in sorted(routes - OPEN):
        method, path = route.split(" ")
        answer = server.ask(
            method, path.replace("{id}", str(task["id"])), query={"id": str(task["id"]), "t": capability}
        )
        looks = path.endswith(("/get_result", "/events"))
        assert answer.status_code == (200 if looks else 401), route
    forged = capability[:-1] + ("A" if capability[-1] != "A" else "B")
    assert server.ask("GET", "/v1/get_result", query={"id": str(task["id"]), "t": forged}).status_code == 401
