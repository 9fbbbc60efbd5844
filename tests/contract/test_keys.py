"""Keys: every form in which one is accepted, on every path that asks for one, and every way to be refused."""

from __future__ import annotations

import pytest
from facts import PREFIXES
from inprocess import Server
from shapes import is_error

BODY = b'{"prompt": "x"}'
FORMS = {
    "X-Key": [("X-Key", "{key}")],
    "x-key": [("x-key", "{key}")],
    "Bearer": [("Authorization", "Bearer {key}")],
    "bearer": [("authorization", "bearer {key}")],
    "BEARER and spaces": [("Authorization", "  BEARER   {key} ")],
    "X-Key scheme": [("Authorization", "X-Key {key}")],
    "x-key scheme": [("Authorization", "x-key {key}")],
    "bare": [("Authorization", "{key}")],
    "the same key twice": [("X-Key", "{key}"), ("Authorization", "Bearer {key}")],
    "beside an empty one": [("X-Key", ""), ("Authorization", "Bearer {key}")],
    "beside cookies": [("Cookie", "session=other"), ("X-Key", "{key}")],
}
REFUSED = {
    "nothing": ([], "Not authenticated"),
    "empty": ([("X-Key", "")], "Not authenticated"),
    "empty Authorization": ([("Authorization", "")], "Not authenticated"),
    "wrong": ([("X-Key", "{key}x")], "Not authenticated - Invalid Authentication"),
    "cut off": ([("X-Key", "fx_live_")], "Not authenticated - Invalid Authentication"),
    "only a scheme": ([("Authorization", "Bearer")], "Not authenticated - Invalid Authentication"),
    "another scheme": ([("Authorization", "Basic {key}")], "Not authenticated - Invalid Authentication"),
    "two schemes": ([("Authorization", "Bearer Bearer {key}")], "Not authenticated - Invalid Authentication"),
    "another header": ([("X-Api-Key", "{key}")], "Not authenticated"),
    "a cookie": ([("Cookie", "X-Key={key}")], "Not authenticated"),
    "beyond ASCII": ([("X-Key", "schlüssel")], "Not authenticated - Invalid Authentication"),
    "very long": ([("X-Key", "x" * 10_000)], "Not authenticated - Invalid Authentication"),
    "two different": (
        [("X-Key", "{key}"), ("Authorization", "Bearer other")],
        "Not authenticated - the request carries two different keys",
    ),
    "two different in one header": (
        [("X-Key", "{key}"), ("X-Key", "other")],
        "Not authenticated - the request carries two different keys",
    ),
}


def filled(headers: list[tuple[str, str]], key: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.replace("{key}", key).encode("latin-1")) for name, value in headers]


def ask(server: Server, method: str, path: str, headers: list[tuple[str, str]], body: bytes = b"") -> tuple[int, str]:
    answer = server.ask_raw(method, path, filled(headers, server.key), body)
    return answer.status_code, answer.text


@pytest.mark.parametrize("headers", FORMS.values(), ids=FORMS)
def test_a_key_is_accepted_in_every_form_and_dialect(shared: Server, headers: list[tuple[str, str]]) -> None:
    for prefix in PREFIXES:
        status, text = ask(shared, "POST", f"{prefix}/flux-dev", headers, BODY)
        assert status == 200, text
        task = shared.submit()
        assert ask(shared, "GET", f"{prefix}/get_result?id={task['id']}", headers)[0] == 200
    assert ask(shared, "GET", "/v1/models", headers)[0] == 200


@pytest.mark.parametrize(("headers", "message"), REFUSED.values(), ids=REFUSED)
def test_without_a_good_key_everything_is_a_401(shared: Server, headers: list[tuple[str, str]], message: str) -> None:
    task = shared.submit()
    given = filled(headers, shared.key)
    for prefix in PREFIXES:
        for method, path in (
            ("POST", f"{prefix}/flux-dev"),
            ("POST", f"{prefix}/no-such-model"),
            ("GET", f"{prefix}/get_result?id={task['id']}"),
            ("GET", f"{prefix}/tasks/{task['id']}/events"),
            ("GET", f"{prefix}/models"),
            ("DELETE", f"{prefix}/anything/else"),
        ):
            answer = shared.ask_raw(method, path, given, b"{")
            error = is_error(answer, 401, prefix)
            assert error["message"] == message
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/c2pa/certificates.pem"])
def test_what_the_server_says_about_itself_needs_no_key(shared: Server, path: str) -> None:
    for key in (None, "wrong", shared.key):
        assert shared.ask("GET", path, key=key).status_code == 200


def test_a_revoked_key_opens_nothing_any_more(server: Server) -> None:
    key = server.new_key()
    task = server.ask("POST", "/v1/flux-dev", key=key, body=BODY).json()
    poll = f"/v1/get_result?id={task['id']}"
    assert server.ask("GET", poll, key=key).status_code == 200
    server.revoke(key)
    is_error(server.ask("POST", "/v1/flux-dev", key=key, body=BODY), 401)
    is_error(server.ask("GET", poll, key=key), 401)
    assert server.poll(task)["status"] == "Pending"


def test_the_key_is_asked_for_before_anything_else_is_looked_at(shared: Server) -> None:
    for body in (b"", b"{", b"[]", b'{"width": 1}'):
        for key in (None, "wrong"):
            is_error(shared.ask("POST", "/v1/flux-dev", key=key, body=body), 401)
    is_error(shared.ask("GET", "/v1/get_result"), 422)


def test_an_address_that_tries_wrong_keys_all_the_time_is_told_to_wait_and_right_keys_are_let_in(
    server: Server,
) -> None:
    wrong = [server.ask("GET", "/v1/credits", key=f"wrong-{number}").status_code for number in range(320)]
    assert wrong[:100] == [401] * 100
    assert wrong[-1] == 429
    answer = server.ask("POST", "/v1/flux-dev", key="wrong", body=BODY)
    assert answer.status_code == 429
    server.now += int(answer.headers["retry-after"])
    assert server.ask("POST", "/v1/flux-dev", key="wrong", body=BODY).status_code == 401
    assert server.ask("GET", "/v1/credits", key=server.key).status_code == 200
    assert server.ask("POST", "/v1/flux-dev", key=server.key, body=BODY).status_code == 200
