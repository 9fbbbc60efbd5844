"""The served document against the server: generated requests, valid and not, and every answer checked against it."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import schemathesis
from facts import PREFIXES, PROMPTED
from inprocess import Json, Server
from other_routes import HELD
from schemathesis.engine import events, from_schema

from fluxserve.api.query import MAX_WAIT
from fluxserve.catalogue import MODELS
from fluxserve.catalogue.params import MAX_AREA, Kind

#: Generated per operation beyond the boundary cases, of which there are several hundred in all.
QUICK, LONG = 5, 300
MAX_RATIO = 21 / 9
#: Of the models that need no picture one of each sort is tried, or in the long run all.
TRIED = frozenset({"flux-dev", "flux-pro-1.1-ultra", "flux-kontext-dev", "flux-2-flex"})
PICTURES = {param.name for spec in MODELS.values() for param in spec.params if param.kind is Kind.IMAGE}
WHOLE = ("width", "height", "steps", "seed", "safety_tolerance")


@dataclass(slots=True)
class Report:
    """How many requests were made, and what was wrong with their answers."""

    cases: int = 0
    problems: list[str] = field(default_factory=list)
    statuses: set[tuple[str, int]] = field(default_factory=set)


def test_generated_requests_are_answered_as_the_document_says(server: Server, long: bool) -> None:
    config = schemathesis.Config.from_dict(
        {
            "headers": {"X-Key": server.key},
            "generation": {"max-examples": LONG if long else QUICK},
            "phases": {"stateful": {"enabled": False}},
            "suppress-health-check": ["all"],
            # The same requests every time, but for the long run, which looks for new ones.
            **({} if long else {"seed": 1}),
        }
    )
    # The body of an estimate is that of any model: tests of its own compare the two.
    left_out = MODELS.keys() - (PROMPTED if long else TRIED)
    # Nobody draws here, and what is held has tests of its own.
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app, config=config).exclude(
        path=[
            *(f"{prefix}/{name}" for prefix in PREFIXES for name in (*left_out, "estimate")),
            *(route.split(" ")[1] for route in HELD),
        ]
    )
    account = server.record(server.submit()).account_id
    cursors = {
        "cursor": server.signer.cursor(account, 2),
        "deliveries_cursor": server.signer.cursor(f"{account} deliveries", 2),
    }
    known = [ready_task(server) | cursors, server.submit()]

    @schema.hook
    def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
        return not is_stricter_than_the_schema(case.body)

    asked: Counter[str] = Counter()

    @schema.hook
    def map_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
        if case.path.endswith("/events"):
            server.draw()  # a stream of a task that has not ended would not end either
        asked[case.path] += not case.path.endswith("/get_result") or "id" in case.query
        return with_known_names(case, known, asked[case.path] % 4)

    report = run(schema)
    assert not report.problems, "\n\n".join(report.problems[:5])
    assert report.cases >= (5000 if long else 300)
    for prefix in ("/v1", "/flux/v1"):
        assert {(f"POST {prefix}/flux-dev", 200), (f"POST {prefix}/flux-dev", 422)} <= report.statuses
        tasks = f"{prefix}/tasks"
        assert {(f"GET {tasks}", 200), (f"POST {tasks}/{{id}}/cancel", 200), (f"DELETE {tasks}/{{id}}", 200)} <= (
            report.statuses
        )
        assert {(f"GET {tasks}/{{id}}/events", 200), (f"GET {tasks}/{{id}}/events", 422)} <= report.statuses
        hooks = f"{prefix}/webhooks/deliveries"
        assert {(f"GET {hooks}", 200), (f"POST {hooks}/{{id}}/replay", 200)} <= report.statuses
        assert not long or (f"GET {hooks}", 422) in report.statuses
        assert {(f"GET {prefix}/get_result", 200), (f"GET {prefix}/get_result", 422)} <= report.statuses
    assert {("GET /results/{token}/{name}", 200), ("GET /results/{token}/{name}", 403)} <= report.statuses


def ready_task(server: Server) -> Json:
    task = server.submit({"webhook_url": "https://example.com/hook"})
    server.draw()
    return task | {"sample": server.poll(task)["result"]["sample"]}


def is_stricter_than_the_schema(body: object) -> bool:
    """What JSON Schema cannot say: ranges of ratios and areas, that 512.0 is no whole number, what base64 holds,
    which fine-tunes are there, and where a webhook may lead.
    """
    if not isinstance(body, dict):
        return False
    if any(isinstance(body.get(name), float) for name in WHOLE):
        return True
    if any(isinstance(text := body.get(name), str) and text for name in {*PICTURES, "finetune_id", "webhook_url"}):
        return True
    width, height = body.get("width"), body.get("height")
    if isinstance(width, int) and (width or 1024) * (height if isinstance(height, int) and height else 1024) > MAX_AREA:
        return True
    if isinstance(height, int) and height * 1024 > MAX_AREA:
        return True
    width, _, height = str(body.get("aspect_ratio")).partition(":")
    if not (width.isdecimal() and height.isdecimal()) or int(height) == 0:
        return False
    return not 1 / MAX_RATIO <= int(width) / int(height) <= MAX_RATIO


def with_known_names(case: schemathesis.Case[Any], known: list[Json], chosen: int) -> schemathesis.Case[Any]:
    """An Idempotency-Key of its own for each request, a cursor of ours, and half of the rest, or more, for what exists.

    `chosen` counts up to the number of `known` and as far beyond.
    """
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and 1 <= len(key) <= 255:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
    if case.path.endswith("/get_result") and "id" in case.query and chosen < 3:
        case.query.update(parse_qsl(urlsplit(known[chosen % len(known)]["polling_url"]).query))
    if re.fullmatch(r"[A-Za-z0-9_-]{32}", str(case.query.get("cursor"))):
        case.query["cursor"] = known[0]["deliveries_cursor" if case.path.endswith("/deliveries") else "cursor"]
    if ("/tasks/" in case.path or case.path.endswith("/replay")) and chosen < len(known):
        case.path_parameters.update({"id": known[chosen]["id"]})
    if isinstance(case.query.get("wait"), (int, float)) and 0 < case.query["wait"] <= MAX_WAIT:
        case.query["wait"] = min(case.query["wait"], 0.01)
    if case.path.startswith("/results/") and chosen == 0:
        _, _, token, name = urlsplit(known[0]["sample"]).path.split("/")
        case.path_parameters.update({"token": token, "name": name})
    return case


def run(schema: Any) -> Report:
    """Run every phase; the sorts of problems come once each."""
    report = Report()
    seen = set()
    for event in from_schema(schema).execute():
        if isinstance(event, (events.NonFatalError, events.FatalError)):
            report.problems.append(repr(event))
        if not isinstance(event, events.ScenarioFinished):
            continue
        recorder = event.recorder
        report.cases += len(recorder.interactions)
        report.statuses |= {
            (recorder.label, interaction.response.status_code)
            for interaction in recorder.interactions.values()
            if interaction.response is not None
        }
        for name, problem in problems(recorder):
            if (recorder.label, name) not in seen:
                seen.add((recorder.label, name))
                report.problems.append(f"{recorder.label}: {problem}")
    return report


def problems(recorder: Any) -> Iterator[tuple[str, str]]:
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info
                yield check.name, f"{check.name}: {failure.failure.message}\n{failure.code_sample}"
