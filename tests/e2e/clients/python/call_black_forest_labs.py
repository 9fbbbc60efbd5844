"""PyPI's black-forest-labs."""

from __future__ import annotations

import time

import httpx
from black_forest_labs import Client
from outcome import KEY, PROMPT, URL, run


def draw(model: str, **fields: object) -> bytes:
    client = Client(api_key=KEY, base_url=URL)
    task = client.generate(model, prompt=PROMPT, **fields)
    while not task.is_done:
        time.sleep(0.2)
        task = client.get_result(task)
    return httpx.get(task.result.sample).content


run(
    {
        "text": lambda: draw("flux-dev", width=512, height=512),
        "ultra": lambda: draw("flux-pro-1.1-ultra", aspect_ratio="1:1"),
        "flux2": lambda: draw("flux-2-pro", width=512, height=512),
        "size": lambda: draw("flux-dev", width=100, height=512),
        "key": lambda: draw("flux-dev", width=512, height=512),
    }
)
