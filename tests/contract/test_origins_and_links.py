"""Where links lead: to the origin the caller used, or the one that the settings name; and how long they work."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from urllib.parse import urlsplit

import httpx
import pytest
from facts import PREFIXES
from inprocess import ORIGIN, Json, Server
from PIL import Image
from shapes import is_error

PUBLIC = "https://flux.example.com"


def origin_of(url: object) -> str:
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc}"


def ready(server: Server, fields: dict[str, object] | None = None) -> tuple[Json, str]:
    """A drawn task and the link to its picture."""
    task = server.submit(fields)
    server.draw()
    return task, str(server.poll(task)["result"]["sample"])


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (ORIGIN, ORIGIN),
        ("http://127.0.0.1:8808", "http://127.0.0.1:8808"),
        ("http://localhost:8808", "http://localhost:8808"),
        ("http://[::1]:8808", "http://[::1]:8808"),
        ("http://Flux.Test", "http://flux.test"),
        ("https://flux.test", "https://flux.test"),
    ],
)
def test_links_lead_to_the_origin_that_the_caller_used(shared: Server, prefix: str, base: str, expected: str) -> None:
    task = shared.ask("POST", f"{base}{prefix}/flux-dev", key=shared.key, body=b'{"prompt": "x"}').json()
    assert str(task["polling_url"]).startswith(f"{expected}{prefix}/get_result?id={task['id']}&t=")
    shared.draw()
    sample = shared.ask("GET", str(task["polling_url"])).json()["result"]["sample"]
    assert origin_of(sample) == expected


def test_each_poll_answers_with_the_origin_of_that_poll(server: Server) -> None:
    task, _ = ready(server)
    url = urlsplit(str(task["polling_url"]))
    elsewhere = server.ask("GET", f"http://other.test:99{url.path}?{url.query}").json()
    assert origin_of(elsewhere["result"]["sample"]) == "http://other.test:99"


FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "flux.example.com"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (FORWARDED, PUBLIC),
        ({"X-Forwarded-Proto": "HTTPS"}, "https://flux.test"),
        ({"X-Forwarded-Host": "flux.example.com:8443"}, "http://flux.example.com:8443"),
        ({"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "flux.example.com, inner"}, PUBLIC),
        ({"X-Forwarded-For": "1.2.3.4", "Forwarded": "host=evil.example.com"}, ORIGIN),
    ],
)
def test_a_trusted_proxy_says_what_the_outside_world_sees(
    serve: Callable[..., Server], headers: dict[str, str], expected: str
) -> None:
    server = serve(trusted_proxies=" 10.0.0.1, 10.0.0.2")
    for address in ("10.0.0.1", "10.0.0.2"):
        answer = server.ask(
            "POST", "/v1/flux-dev", key=server.key, headers=headers, body=b'{"prompt": "x"}', address=address
        )
        assert origin_of(answer.json()["polling_url"]) == expected


def test_nobody_else_is_believed(serve: Callable[..., Server]) -> None:
    server = serve(trusted_proxies="10.0.0.1")
    for address in ("10.0.0.2", "127.0.0.1"):
        answer = server.ask(
            "POST", "/v1/flux-dev", key=server.key, headers=FORWARDED, body=b'{"prompt": "x"}', address=address
        )
        assert origin_of(answer.json()["polling_url"]) == ORIGIN


def test_a_public_url_wins_over_everything(serve: Callable[..., Server]) -> None:
    server = serve(public_url=PUBLIC)
    for headers in ({}, {"Host": "evil.example.com"}, {"X-Forwarded-Host": "evil.example.com"}):
        task = server.ask("POST", "/v1/flux-dev", key=server.key, headers=headers, body=b'{"prompt": "x"}').json()
        assert origin_of(task["polling_url"]) == PUBLIC
        server.draw()
        url = urlsplit(str(task["polling_url"]))
        answer = server.ask("GET", f"{url.path}?{url.query}", headers=headers).json()
        assert origin_of(answer["result"]["sample"]) == PUBLIC


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a/b", "user@host", "host:port", "host:123456", "[::1", "a\\b", "<script>", "a?b", "a#b"],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_malformed_host_is_refused_and_makes_no_task(shared: Server, prefix: str, host: str) -> None:
    before = len(shared.service.views)
    for headers in ({"Host": host}, {"X-Forwarded-Host": host or "-%"}, {"X-Forwarded-Proto": host or "javascript"}):
        answer = shared.ask("POST", f"{prefix}/flux-dev", key=shared.key, headers=headers, body=b'{"prompt": "x"}')
        is_error(answer, 421, prefix)
    assert len(shared.service.views) == before


def test_only_listed_hosts_are_served_where_there_is_a_list(serve: Callable[..., Server]) -> None:
    server = serve(allowed_hosts="flux.example.com,localhost")
    task = server.ask("POST", "http://localhost:8808/v1/flux-dev", key=server.key, body=b'{"prompt": "x"}').json()
    server.draw()
    poll = server.ask("GET", str(task["polling_url"]))
    assert poll.status_code == 200
    sample = str(poll.json()["result"]["sample"])
    for path in ("/v1/get_result", "/v1/models", "/healthz", "/docs", urlsplit(sample).path):
        is_error(server.ask("GET", f"http://evil.example.com{path}", key=server.key), 421)
        assert server.ask("GET", f"http://FLUX.example.com{path}?id=x", key=server.key).status_code in (200, 404)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_trusted_proxy_cannot_lead_past_the_list_of_hosts(serve: Callable[..., Server], prefix: str) -> None:
    server = serve(allowed_hosts="127.0.0.1,flux.example.com")

    def submit(host: str, forwarded: str, address: str = "127.0.0.1") -> httpx.Response:
        headers = {"Host": host, "X-Forwarded-Host": forwarded}
        path = f"{prefix}/flux-dev"
        return server.ask("POST", path, key=server.key, headers=headers, body=b'{"prompt": "x"}', address=address)

    for host, forwarded in (
        ("127.0.0.1", "evil.test"),
        ("127.0.0.1", "evil.test, flux.example.com"),
        ("127.0.0.1", "flux.example.com@evil.test"),
        # A page that rebinds its name to this machine speaks from a trusted address and may set any header but Host.
        ("evil.test", "flux.example.com"),
    ):
        is_error(submit(host, forwarded), 421, prefix)
    assert len(server.service.views) == 0
    through = submit("127.0.0.1", "flux.example.com:8443, inner")
    assert origin_of(through.json()["polling_url"]) == "http://flux.example.com:8443"
    not_believed = submit("127.0.0.1", "evil.test", address="10.0.0.9")
    assert origin_of(not_believed.json()["polling_url"]) == "http://127.0.0.1"


@pytest.mark.parametrize(("suffix", "format_"), [("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_the_link_ends_in_sample_and_the_formats_suffix(server: Server, suffix: str, format_: str) -> None:
    _, sample = ready(server, {"output_format": suffix, "width": 288, "height": 256})
    assert urlsplit(sample).path.endswith(f"/sample.{suffix}")
    assert urlsplit(sample).query == ""
    answer = server.ask("GET", sample)
    assert (answer.status_code, answer.headers["content-type"]) == (200, f"image/{suffix}")
    picture = Image.open(BytesIO(answer.content))
    assert (picture.format, picture.size) == (format_, (288, 256))


@pytest.mark.parametrize(("ratio", "size"), [("21:9", (3136, 1344)), ("9:21", (1344, 3136)), ("1:1", (2048, 2048))])
def test_ultra_draws_the_size_of_its_ratio(server: Server, ratio: str, size: tuple[int, int]) -> None:
    task = server.post("/v1/flux-pro-1.1-ultra", {"prompt": "x", "aspect_ratio": ratio}).json()
    server.draw()
    picture = Image.open(BytesIO(server.ask("GET", str(server.poll(task)["result"]["sample"])).content))
    assert picture.size == size


def test_every_poll_signs_anew_and_old_links_work_until_they_expire(server: Server) -> None:
    task, first = ready(server)
    server.now += 400
    second = str(server.poll(task)["result"]["sample"])
    assert first != second
    pictures = {server.ask("GET", link).content for link in (first, second)}
    assert len(pictures) == 1
    server.now += 200
    error = is_error(server.ask("GET", first), 403)
    assert "Poll the task again" in str(error["message"])
    assert server.ask("GET", second).status_code == 200


def test_a_picture_needs_no_key_and_a_wrong_one_does_no_harm(server: Server) -> None:
    _, sample = ready(server)
    for headers in ({}, {"X-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Accept": "text/html"}):
        answer = server.ask("GET", sample, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


def test_links_that_were_changed_are_refused(server: Server) -> None:
    _, sample = ready(server)
    *_, token, _ = sample.split("/")
    for forged in (
        sample.replace(".jpeg", ".png"),
        sample.replace("sample.", "sample.png."),
        sample.replace(token, token[:-1]),
        sample.replace(token, token[::-1]),
        sample.replace(token, token + "="),
        sample.replace(token, "é" * 20),
        f"{ORIGIN}/results/x/sample.jpeg",
        f"{ORIGIN}/results/{'x' * 5000}/sample.jpeg",
    ):
        is_error(server.ask("GET", forged), 403)
    for elsewhere in (f"{ORIGIN}/results/", sample + "/x", sample.replace("/results/", "/results//")):
        assert server.ask("GET", elsewhere).status_code in (403, 404)


def test_a_deleted_picture_is_a_404_and_the_task_stays_ready_without_it(server: Server) -> None:
    task, sample = ready(server)
    server.now += 3700
    fresh = str(server.poll(task)["result"]["sample"])
    server.sweep()
    is_error(server.ask("GET", fresh), 404)
    body = server.poll(task)
    assert (body["status"], body["result"]["sample"]) == ("Ready", None)
    is_error(server.ask("GET", sample), 403)


def test_a_head_of_a_picture_tells_its_size_without_sending_it(server: Server) -> None:
    _, sample = ready(server)
    head, get = server.ask("HEAD", sample), server.ask("GET", sample)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)


def test_the_life_of_a_link_is_a_setting(serve: Callable[..., Server]) -> None:
    server = serve(link_ttl=30)
    _, sample = ready(server)
    server.now += 29
    assert server.ask("GET", sample).status_code == 200
    server.now += 1
    is_error(server.ask("GET", sample), 403)
