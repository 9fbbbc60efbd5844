"""`POST /v1/estimate`: the price of a request, equal to the submit's, with nothing drawn, reserved or kept."""

from __future__ import annotations

import pytest
from facts import EVERY, PREFIXES, PROMPTED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inprocess import Json, Server
from PIL import Image
from shapes import is_error

from fluxserve.catalogue import MODELS
from fluxserve.catalogue.params import MAX_AREA, Kind
from sample_pictures import file_of, picture, text_of

LYING, UPRIGHT = text_of(file_of(picture(480, 320))), text_of(file_of(picture(256, 512)))
LARGE = text_of(file_of(Image.new("RGB", (3000, 2000))))
#: As in the header: a submit that has to unpack them finds that they are cut off.
HEADER_ALONE = text_of(file_of(picture(1100, 1000))[:200])
URL = "https://example.com/owl.png"
SIDE = st.sampled_from([None, 256, 512, 1024, 1440])
COUNTS = [
    ("flux-dev", {"width": 1440, "height": 1440}, 2.5, 0.0, 2.07),
    ("flux-2-pro", {"width": 1024, "height": 1024}, 3.0, 0.0, 1.05),
    ("flux-2-pro", {"width": 1040, "height": 1024}, 4.5, 0.0, 1.06),
    ("flux-2-pro", {"width": 2048, "height": 2048}, 7.5, 0.0, 4.19),
    ("flux-2-max", {"input_image": LYING}, 10.0, 0.15, 0.15),
    ("flux-2-flex", {"input_image": LYING, "input_image_2": HEADER_ALONE}, 15.0, 1.25, 0.15),
    ("flux-2-klein-4b", {"input_image": LYING, "width": 2048, "height": 1024}, 1.6, 0.15, 2.1),
    ("flux-2-klein-9b", {"width": 64, "height": 64}, 1.5, 0.0, 0.0),
    ("flux-kontext-max", {"input_image": UPRIGHT}, 8.0, 0.13, 1.05),
    ("flux-pro-1.1-ultra", {"aspect_ratio": "1:1"}, 6.0, 0.0, 4.19),
]


def estimate(server: Server, model: str, fields: dict[str, object], prefix: str = "/v1") -> Json:
    answer = server.post(f"{prefix}/estimate", {"model": model, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("model", "fields", "cost", "inputs", "output"), COUNTS)
def test_it_counts_as_the_price_list_does(
    shared: Server, prefix: str, model: str, fields: dict[str, object], cost: float, inputs: float, output: float
) -> None:
    told = estimate(shared, model, {"prompt": "x", **fields}, prefix)
    assert told == {"cost": cost, "input_mp": inputs, "output_mp": output, "at_most": False}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_it_is_what_the_submit_costs(shared: Server, data: st.DataObject) -> None:
    spec = MODELS[data.draw(st.sampled_from(EVERY))]
    fields: dict[str, object] = {"prompt": "an owl", "unknown": 1}
    fields |= {name: side for name in ("width", "height") if spec.param(name) and (side := data.draw(SIDE))}
    fields |= {name: 64 for name in ("top", "left") if spec.param(name)}
    names = [param.name for param in spec.params if param.kind is Kind.IMAGE]
    if {"image", "mask"} <= set(names):
        fields |= dict.fromkeys(("image", "mask"), data.draw(st.sampled_from([LYING, UPRIGHT])))
    elif names:
        chosen = data.draw(st.sets(st.sampled_from(names), min_size=spec.name not in PROMPTED, max_size=3))
        fields |= {name: data.draw(st.sampled_from([LYING, UPRIGHT, LARGE])) for name in sorted(chosen)}
    submitted = shared.post(f"/v1/{spec.name}", fields)
    told = shared.post("/v1/estimate", {"model": spec.name, **fields})
    assert told.status_code == submitted.status_code, told.text
    if submitted.status_code == 200:
        answer = submitted.json()
        shared.ask("DELETE", f"/v1/tasks/{answer['id']}", key=shared.key)
        expected = {name: answer[name] for name in ("cost", "input_mp", "output_mp")}
        assert told.json() == {**expected, "at_most": False}
    else:
        assert told.json()["message"] == submitted.json()["message"]


def test_pictures_by_url_are_counted_as_large_as_they_can_be(shared: Server) -> None:
    fields: dict[str, object] = {"prompt": "x", "input_image": LYING, "input_image_2": URL}
    told = estimate(shared, "flux-2-pro", fields)
    submitted = shared.submit_with("/v1/flux-2-pro", {"X-Key": shared.key}, fields)
    shared.ask("DELETE", f"/v1/tasks/{submitted['id']}", key=shared.key)
    most = round((480 * 320 + MAX_AREA) / 1e6, 2)
    assert told == {"cost": submitted["cost"], "input_mp": most, "output_mp": 0.15, "at_most": True}
    alone = estimate(shared, "flux-2-pro", {"prompt": "x", "input_image": URL})
    assert (alone["output_mp"], alone["input_mp"], alone["cost"]) == (4.19, 4.19, 3 + 7 * 1.5)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_submit_refuses_is_refused_alike(shared: Server, prefix: str) -> None:
    for model, fields in (
        ("flux-dev", {"prompt": "x", "width": 100}),
        ("flux-dev", {"prompt": "x", "image": "AAAA"}),
        ("flux-dev", {"prompt": "x", "finetune_id": "nobody"}),
        ("flux-dev", {"prompt": "x", "webhook_url": "http://127.0.0.1/"}),
        ("flux-2-pro", {"prompt": "x", "input_image": "http://127.0.0.1/x.png"}),
        ("flux-2-pro", {"prompt": "x", "width": 4096, "height": 4096}),
        ("flux-pro-1.0-fill", {"image": LYING}),
    ):
        told = shared.post(f"{prefix}/estimate", {"model": model, **fields})
        submitted = shared.post(f"{prefix}/{model}", fields)
        assert told.status_code == submitted.status_code >= 400
        assert told.json() == submitted.json()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_model_must_be_named_that_is_there(shared: Server, prefix: str) -> None:
    is_error(shared.post(f"{prefix}/estimate", {"prompt": "x"}), 422, prefix)
    is_error(shared.post(f"{prefix}/estimate", {"prompt": "x", "model": 7}), 422, prefix)
    is_error(shared.post(f"{prefix}/estimate", ["x"]), 422, prefix)
    unknown = shared.post(f"{prefix}/estimate", {"prompt": "x", "model": "flux-2-por"})
    is_error(unknown, 404, prefix)
    assert "Near it: flux-2-pro," in unknown.json()["detail"]
    is_error(shared.post(f"{prefix}/estimate", {"prompt": "x", "model": "flux-3-image-klein"}), 400, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_it_needs_a_key_and_a_post(shared: Server, prefix: str) -> None:
    is_error(shared.ask("POST", f"{prefix}/estimate", body=b"{"), 401, prefix)
    refused = shared.ask("GET", f"{prefix}/estimate", key=shared.key)
    is_error(refused, 405, prefix)
    assert refused.headers["allow"] == "POST"


def test_it_costs_nothing_and_leaves_nothing(server: Server) -> None:
    poor = server.new_key(grant=0)
    body = b'{"model": "flux-2-pro", "prompt": "x", "width": 512, "height": 512}'
    answer = server.ask("POST", "/v1/estimate", key=poor, body=body)
    assert (answer.status_code, answer.json()["cost"]) == (200, 3.0)
    assert server.balance(poor) == 0
    assert server.ask("GET", "/v1/tasks", key=poor).json()["tasks"] == []
    assert not server.claim()
