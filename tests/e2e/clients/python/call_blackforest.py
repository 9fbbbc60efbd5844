"""The vendor's Python SDK."""

from __future__ import annotations

import requests
from blackforest import BFLClient
from blackforest.types.general.client_config import ClientConfig
from outcome import KEY, PICTURE, PROMPT, URL, run


def draw(model: str, **fields: object) -> bytes:
    client = BFLClient(api_key=KEY, base_url=URL)
    config = ClientConfig(sync=True, timeout=30, polling_interval=1)
    result = client.generate(model, {"prompt": PROMPT, **fields}, config)
    sample = result["sample"] if isinstance(result, dict) else result.result["sample"]
    return requests.get(sample, timeout=30).content


run(
    {
        "text": lambda: draw("flux-dev", width=512, height=512),
        "ultra": lambda: draw("flux-pro-1.1-ultra", aspect_ratio="1:1"),
        "kontext": lambda: draw("flux-kontext-pro", input_image=str(PICTURE)),
        "size": lambda: draw("flux-dev", width=100, height=512),
        "key": lambda: draw("flux-dev", width=512, height=512),
    }
)
