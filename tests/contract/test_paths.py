"""Paths, methods and origins at their edges: what is nearly a path, HEAD and OPTIONS, browsers, odd headers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from facts import PREFIXES
from inprocess import Server
from shapes import COMETAPI, is_error

BODY = b'{"prompt": "x"}'
PAGE = "https://app.example.com"
NEARLY = [
    "{p}/", "{p}//flux-dev", "{p}/flux-dev/", "{p}/./flux-dev%00", "{p}/flux-dev%20", "{p}/flux-dev;x=1",
    "{p}/flux-dev%2F", "{p}%2Fflux-dev", "{p}/..%2Fv1/flux-dev", "{p}/%2e%2e/flux-dev", "{p}/FLUX-DEV",
    "{p}/flux-dev.json", "{p}/get_result/", "{p}/get_result/x", "{p}//get_result", "{p}%2Fget_result",
    "{p}/get_result%2F", "{p}/%00", "{p}/flux-dev/get_result", "{p}/results/x/sample.jpeg", "{p}/healthz",
    "{p}/tasks/", "{p}/tasks//cancel", "{p}/tasks/x/", "{p}/tasks/x/cancel/", "{p}/tasks/x/y",
    "{p}/tasks/x/events/", "{p}/tasks//events", "{p}/tasks/events/x", "{p}/tasks/x%2Fevents", "{p}/tasks/x%2Fcancel",
    "{p}/webhooks", "{p}/webhooks/deliveries/", "{p}/webhooks/deliveries/x", "{p}/webhooks/deliveries//replay",
    "{p}//tasks", "{p}/Tasks", "{p}/tasks%00", "{p}/tasks/x/y/cancel",
]  # fmt: skip
OUTSIDE = [
    "/v1", "/flux", "/flux/v1", "/v1flux-dev", "/v2/flux-dev", "//v1/flux-dev", "/flux/flux-dev", "/V1/flux-dev",
    "/healthz/", "/healthz/x", "/models", "/admin", "/docs-assets/..%2f..%2fapi_key", "/results", "/api_key", "/.env",
    "/%2e%2e/%2e%2e/etc/passwd", "/redoc", "/c2pa", "/c2pa/authority.pem", "/c2pa/signing.pem", "/c2pa/../api_key",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("path", NEARLY)
def test_what_is_nearly_a_path_is_a_404_behind_the_key(shared: Server, prefix: str, path: str) -> None:
    url = path.format(p=prefix) + "?id=x"
    before = len(shared.service.views)
    for method in ("GET", "POST", "DELETE"):
        is_error_in_some_dialect(shared, method, url, 404, shared.key)
        status = shared.ask(method, url, body=b"{").status_code
        assert status == (404 if "%2f" in url.lower() else 401)
    assert len(shared.service.views) == before


def is_error_in_some_dialect(server: Server, method: str, url: str, status: int, key: str) -> None:
    answer = server.ask(method, url, key=key, body=BODY if method == "POST" else None)
    is_error(answer, status, COMETAPI if "error" in answer.json() else "/v1")


def test_the_root_leads_to_the_docs(shared: Server) -> None:
    answer = shared.ask("GET", "/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


@pytest.mark.parametrize("path", OUTSIDE)
def test_there_is_nothing_elsewhere(shared: Server, path: str) -> None:
    for method in ("GET", "POST"):
        is_error(shared.ask(method, path, key=shared.key, body=BODY if method == "POST" else None), 404)


@pytest.mark.parametrize("path", ["%2e%2e/application.py", "%2e%2e%5capplication.py", "x", "", "%00", "x" * 300])
def test_the_assets_of_the_docs_lead_nowhere_else(shared: Server, path: str) -> None:
    is_error(shared.ask("GET", f"/docs-assets/{path}"), 404)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *((f"{prefix}/flux-dev", "POST") for prefix in PREFIXES),
        *((f"{prefix}/get_result", "GET, HEAD") for prefix in PREFIXES),
        *((f"{prefix}/tasks", "GET, HEAD") for prefix in PREFIXES),
        *((f"{prefix}/tasks/x", "DELETE") for prefix in PREFIXES),
        *((f"{prefix}/tasks/x/cancel", "POST") for prefix in PREFIXES),
        *((f"{prefix}/tasks/x/events", "GET, HEAD") for prefix in PREFIXES),
        *((f"{prefix}/webhooks/deliveries", "GET, HEAD") for prefix in PREFIXES),
        *((f"{prefix}/webhooks/deliveries/x/replay", "POST") for prefix in PREFIXES),
        ("/v1/models", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
        ("/results/x/sample.jpeg", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_other_methods_are_told_which_are_allowed(shared: Server, path: str, allowed: str) -> None:
    dialect = COMETAPI if path.startswith(COMETAPI) else "/v1"
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - set(allowed.split(", ")):
        answer = shared.ask(method, path, key=shared.key, body=BODY if method == "POST" else None)
        is_error(answer, 405, dialect)
        assert answer.headers.get_list("allow") == [allowed]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/v1/models"])
def test_a_head_has_the_status_and_headers_of_a_get(shared: Server, path: str) -> None:
    head, get = (shared.ask(method, path, key=shared.key) for method in ("HEAD", "GET"))
    assert head.status_code == get.status_code == 200
    assert head.headers == get.headers


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_head_of_a_model_makes_no_task(shared: Server, prefix: str) -> None:
    before = len(shared.service.views)
    assert shared.ask("HEAD", f"{prefix}/flux-dev", key=shared.key, body=BODY).status_code == 405
    assert len(shared.service.views) == before


def test_a_listed_page_may_use_the_whole_api_from_a_browser(serve: Callable[..., Server]) -> None:
    server = serve(cors_origins=PAGE)
    for path in ("/v1/flux-dev", "/flux/v1/flux-dev", "/v1/get_result", "/v1/models", "/readyz", "/results/x/y"):
        asked = server.ask("OPTIONS", path, headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
        assert asked.status_code == 204
        assert asked.headers.get_list("access-control-allow-origin") == [PAGE]
        assert asked.headers["access-control-allow-headers"] == "*, Authorization"
        answer = server.ask("GET", path, headers={"Origin": PAGE})
        assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
        assert answer.headers.get_list("vary") == ["Origin"]
        assert asked.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE" or path.startswith("/results")
    posted = server.ask("POST", "/v1/flux-dev", key=server.key, headers={"Origin": PAGE}, body=BODY)
    assert (posted.status_code, posted.headers["access-control-allow-origin"]) == (200, PAGE)
    is_error(server.ask("POST", "/v1/flux-dev", headers={"Origin": PAGE}, body=BODY), 401)


@pytest.mark.parametrize("origins", ["", PAGE])
def test_other_pages_may_not(serve: Callable[..., Server], origins: str) -> None:
    server = serve(cors_origins=origins)
    for other in ("https://evil.example.com", "null", PAGE + ".evil.com", PAGE.replace("https", "http")):
        for method, path in (("OPTIONS", "/v1/flux-dev"), ("GET", "/healthz"), ("POST", "/v1/flux-dev")):
            headers = {"Origin": other, "Access-Control-Request-Method": "POST"}
            answer = server.ask(method, path, key=server.key, headers=headers, body=BODY if method == "POST" else None)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers.get("vary", "") == ("Origin" if origins else "")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Key", "a\r\nX-Injected: 1"), ("Idempotency-Key", "a\r\nX-Injected: 1"), ("Origin", "a\r\nX-Injected: 1"),
        ("X-Forwarded-Proto", "http\r\nX-Injected: 1"), ("X-Forwarded-Host", "host\r\nX-Injected: 1"),
        ("Host", "host\r\nX-Injected: 1"), ("X-Forwarded-Host", "host\n"), ("Host", "host\n"),
    ],
)  # fmt: skip
def test_line_breaks_in_headers_never_come_back_in_headers_or_links(
    serve: Callable[..., Server], prefix: str, name: str, value: str
) -> None:
    server = serve(cors_origins=PAGE)
    headers = [(b"x-key", server.key.encode()), (name.lower().encode(), value.encode())]
    for method, path in (("POST", f"{prefix}/flux-dev"), ("GET", f"{prefix}/get_result?id=x"), ("GET", "/healthz")):
        answer = server.ask_raw(method, path, headers, BODY if method == "POST" else b"")
        assert "x-injected" not in answer.headers
        assert all("\n" not in value and "\r" not in value for value in answer.headers.values())
        if answer.status_code == 200 and method == "POST":
            assert "\\n" not in answer.json()["polling_url"]


def test_a_defect_is_a_500_without_a_word_of_its_cause(server: Server) -> None:
    task = server.submit()
    server.draw()
    server.lose_database()
    for prefix in PREFIXES:
        refused = server.post(f"{prefix}/flux-dev", {"prompt": "x"})
        is_error(refused, 503, prefix)
        assert refused.headers["retry-after"] == "1"
        is_error(server.ask("GET", f"{prefix}/get_result?id=nobody", key=server.key), 500, prefix)
    assert server.poll(task)["status"] == "Ready"
