"""`GET /metrics`: who may read it, what it counts, and that it names nobody."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from inprocess import Server
from prometheus_client.parser import text_string_to_metric_families

ADMIN = "admin-key-of-this-test"
CANARY = "canary-of-the-owner"
DOCS = Path(__file__).parents[2] / "docs/metrics.md"


def scraped(server: Server, address: str = "127.0.0.1", headers: dict[str, str] | None = None) -> httpx.Response:
    return server.ask("GET", "/metrics", headers={"Host": "127.0.0.1:8808", **(headers or {})}, address=address)


def numbers(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    answer = scraped(server)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.headers["content-type"].startswith("text/plain; version=1.0.0")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("127.0.0.1", {"Host": "localhost:8808"}, 200),
        ("127.0.0.1", {"Host": "[::1]:8808"}, 200),
        ("127.0.0.1", {"Host": "rebound.example:8808"}, 401),
        ("127.0.0.1", {"Host": "192.0.2.1"}, 401),
        ("127.0.0.1", {"Host": ""}, 401),
        ("192.0.2.1", {}, 401),
        ("192.0.2.1", {"X-Key": ADMIN}, 200),
        ("192.0.2.1", {"Authorization": f"Bearer {ADMIN}"}, 200),
        ("192.0.2.1", {"X-Key": ADMIN + "x"}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 401),
        ("127.0.0.1", {"Via": "1.1 proxy"}, 401),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.1", "X-Key": ADMIN}, 200),
    ],
)
def test_it_is_for_the_machine_itself_and_the_admin_key(
    serve: Callable[..., Server], address: str, headers: dict[str, str], status: int
) -> None:
    answer = scraped(serve(admin_key=ADMIN), address, headers)
    assert answer.status_code == status
    assert ("fluxserve_tasks" in answer.text) is (status == 200)


def test_a_callers_key_opens_it_to_nobody(server: Server) -> None:
    assert scraped(server, "192.0.2.1", {"X-Key": server.key}).status_code == 401


def test_the_admin_key_draws_nothing(serve: Callable[..., Server]) -> None:
    answer = serve(admin_key=ADMIN).ask("POST", "/v1/flux-dev", headers={"X-Key": ADMIN}, body=b'{"prompt": "x"}')
    assert answer.status_code == 401


def test_it_counts_what_was_asked_drawn_and_refused(server: Server) -> None:
    server.submit({"prompt": CANARY})
    server.submit({"prompt": CANARY, "user": CANARY})
    waiting = numbers(server)
    assert waiting["fluxserve_tasks", (("state", "queued"),)] == 2
    server.now += 30
    assert numbers(server)["fluxserve_oldest_task_seconds", (("state", "queued"),)] == 30
    assert waiting["fluxserve_unfinished_teraflop", ()] > 0
    server.draw()
    server.ask("POST", "/v1/flux-dev", key=server.key, body=b"{")
    drawn = numbers(server)
    assert drawn["fluxserve_tasks", (("state", "queued"),)] == 0
    assert drawn["fluxserve_tasks_ended_total", (("model", "flux-dev"), ("state", "ready"))] == 2
    assert drawn["fluxserve_drawn_teraflop_total", (("model", "flux-dev"),)] == pytest.approx(
        waiting["fluxserve_unfinished_teraflop", ()]
    )
    for stage, seconds in (("waiting", 60), ("whole", 60)):
        labels = (("model", "flux-dev"), ("stage", stage))
        assert drawn["fluxserve_task_seconds_count", labels] == 2
        assert drawn["fluxserve_task_seconds_sum", labels] == pytest.approx(seconds, abs=1)
    assert drawn["fluxserve_request_seconds_count", (("route", "submit"), ("status", "200"))] == 2
    assert drawn["fluxserve_request_seconds_count", (("route", "submit"), ("status", "400"))] == 1
    assert drawn["process_resident_memory_bytes", ()] > 2**20


def test_events_are_counted_by_their_lines(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fluxserve")
    with server.service.metrics.counting_events():
        task = server.submit()
        server.ask("POST", f"/v1/tasks/{task['id']}/cancel", key=server.key)
    server.submit()
    found = numbers(server)
    assert found["fluxserve_events_total", (("action", "cancelled"),)] == 1
    assert found["fluxserve_events_total", (("action", "accepted"),)] == 1


def test_nobody_and_nothing_that_was_asked_is_named(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fluxserve")
    with server.service.metrics.counting_events():
        server.submit({"prompt": CANARY, "user": CANARY, "webhook_url": f"https://{CANARY}.example/"})
        server.draw()
    text = scraped(server).text
    assert CANARY not in text
    assert server.key not in text
    assert "default" not in text


def test_every_metric_is_documented(server: Server) -> None:
    server.submit()
    server.draw()
    told = {
        family.name
        for family in text_string_to_metric_families(scraped(server).text)
        if family.name.startswith("fluxserve_")
    }
    written = set(re.findall(r"^\| `(fluxserve_\w+?)(?:_total)?`", DOCS.read_text("utf-8"), re.MULTILINE))
    assert told == written
