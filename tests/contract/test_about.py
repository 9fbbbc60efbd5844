"""What the server says about itself: health, readiness, models, the served document and its page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

import jsonschema_rs
import pytest
from facts import EVERY, FIELDS, OUR_PRICES, PREFIXES, PRICES
from fastapi.openapi.models import OpenAPI
from inprocess import ORIGIN, Json, Server
from other_routes import OTHER_ROUTES

from fluxserve import __version__
from fluxserve.api.about import Readiness

#: The example of the published documents.
SEED_PROMPT = "A paper boat floating on calm water at sunrise."


@pytest.fixture(scope="module")
def document(shared: Server) -> Json:
    answer = shared.ask("GET", "/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    return dict(answer.json())


def walk(value: object) -> Iterator[Mapping[str, object]]:
    """Every object in the document."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from walk(inner)


def test_health_is_that_the_process_answers(shared: Server) -> None:
    answer = shared.ask("GET", "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": __version__})


def test_readiness_says_why_not_and_what_to_do(server: Server) -> None:
    keys = ["ready", "reason", "starting", "workers", "left_out", "unfinished_tasks", "upsampling", "moderation"]
    ready = server.ask("GET", "/readyz")
    assert (ready.status_code, list(ready.json())) == (200, keys)
    assert (ready.json()["ready"], ready.json()["reason"]) == (True, "")
    server.readiness = Readiness(
        ready=False,
        reason="No worker is connected.",
        workers=0,
        left_out=["x is broken"],
        unfinished_tasks=3,
        moderation="on",
    )
    not_ready = server.ask("GET", "/readyz")
    assert (not_ready.status_code, list(not_ready.json())) == (503, keys)
    assert not_ready.json() == {
        "ready": False, "reason": "No worker is connected.", "starting": False, "workers": 0,
        "left_out": ["x is broken"], "unfinished_tasks": 3, "upsampling": "", "moderation": "on",
    }  # fmt: skip
    assert not_ready.headers["cache-control"] == "no-store"


def test_the_list_of_models_has_the_common_shape_and_tells_price_and_weights(shared: Server) -> None:
    body = shared.ask("GET", "/v1/models", key=shared.key).json()
    assert list(body) == ["object", "data", "moderation", "not_drawn"]
    (refused,) = body["not_drawn"]
    assert refused["id"] == "flux-3-image-klein"
    assert refused["reason"]
    assert body["object"] == "list"
    models = {model["id"]: model for model in body["data"]}
    assert models.keys() == set(EVERY)
    for name, model in models.items():
        assert (model["object"], model["path"]) == ("model", f"/v1/{name}")
        assert (model["price"], model["price_further"]) == (PRICES | OUR_PRICES)[name]
        assert model["price_is_published"] is (name in PRICES)
        assert "mini" in model["runs_on"]
        edits = name.startswith(("flux-kontext", "flux-2")) or name.endswith(("canny", "depth"))
        assert ("image-to-image" in model["runs_on"]) == edits
        assert model["license"]
        schema = model["parameters"]
        jsonschema_rs.meta.validate(schema)
        assert schema["properties"].keys() == {field.name for field in FIELDS if name in field.models}


def test_the_served_document_is_valid_openapi_3_1(document: Json) -> None:
    assert str(document["openapi"]).startswith("3.1.")
    OpenAPI.model_validate(document)
    components = document["components"]
    for schema in components["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    for found in walk(document):
        if isinstance(reference := found.get("$ref"), str):
            _, section, kind, name = reference.split("/")
            assert section == "components"
            assert name in components[kind], reference


def test_the_served_document_lists_every_route_once(document: Json) -> None:
    paths = document["paths"]
    expected = {"/healthz", "/readyz", "/c2pa/certificates.pem", "/v1/models", "/results/{token}/{name}"}
    expected |= {f"{prefix}/{name}" for prefix in PREFIXES for name in (*EVERY, "get_result", "credits", "estimate")}
    of_tasks = ("tasks", "tasks/{id}", "tasks/{id}/cancel", "tasks/{id}/events")
    of_webhooks = ("webhooks/deliveries", "webhooks/deliveries/{id}/replay")
    expected |= {f"{prefix}/{name}" for prefix in PREFIXES for name in (*of_tasks, *of_webhooks)}
    expected |= {route.split(" ")[1] for route in OTHER_ROUTES}
    assert paths.keys() == expected
    told = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert told >= OTHER_ROUTES
    names = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(names) == len(set(names)) == len(told) == len(expected) + 1  # predictions are listed and begun
    for path, methods in paths.items():
        for operation in methods.values():
            assert operation["responses"]
            parameters = operation.get("parameters", [])
            told = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
            assert told == set(re.findall(r"{(\w+)}", path))


def test_the_served_document_tells_both_ways_to_give_a_key(document: Json) -> None:
    assert document["components"]["securitySchemes"] == {
        "XKey": {"type": "apiKey", "in": "header", "name": "X-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }


def test_the_examples_are_those_of_the_published_documents_and_are_accepted(shared: Server, document: Json) -> None:
    schemas = document["components"]["schemas"]
    paths = document["paths"]
    for prefix in PREFIXES:
        for name in EVERY:
            content = paths[f"{prefix}/{name}"]["post"]["requestBody"]["content"]
            reference = str(content["application/json"]["schema"]["$ref"])
            (example,) = schemas[reference.rpartition("/")[2]]["examples"]
            assert example["prompt"] == SEED_PROMPT
            assert shared.post(f"{prefix}/{name}", example).status_code == 200


def test_every_answer_of_a_task_fits_the_served_document(server: Server, document: Json) -> None:
    schemas = document["components"]["schemas"]
    fits = {name: jsonschema_rs.validator_for(schemas[name]).validate for name in ("Submitted", "Result", "Error")}
    for prefix in PREFIXES:
        task = server.submit({"webhook_url": "https://example.com/"}, f"{prefix}/flux-dev")
        fits["Submitted"](task)
        fits["Result"](server.poll(task))
        server.draw()
        fits["Result"](server.poll(task))
        fits["Result"](server.ask("GET", f"{prefix}/get_result?id=x", key=server.key).json())
        fits["Error"](server.ask("GET", f"{prefix}/get_result?id=x").json())
        fits["Error"](server.ask("POST", f"{prefix}/flux-dev", key=server.key, body=b"{").json())


def test_the_page_of_the_docs_works_without_any_other_host(shared: Server) -> None:
    page = shared.ask("GET", "/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    addresses = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page.text)
    assert len(addresses) >= 4
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text).replace(f"{ORIGIN}/", "")
    kinds = set()
    for address in addresses:
        assert urlsplit(address).netloc == ""
        answer = shared.ask("GET", address)
        assert answer.status_code == 200, address
        assert answer.content
        kinds.add(answer.headers["content-type"].partition(";")[0])
    assert {"text/css", "application/json"} < kinds
    assert kinds & {"text/javascript", "application/javascript"}
