"""Replicate's Python client."""

from __future__ import annotations

import httpx
from outcome import KEY, PICTURE, PROMPT, URL, run
from replicate.client import Client


def draw(name: str, **fields: object) -> bytes:
    client = Client(api_token=KEY, base_url=URL)
    asked = {"prompt": PROMPT, **fields}
    output = client.run(f"black-forest-labs/{name}", input=asked, file_encoding_strategy="base64")
    return httpx.get(str(output[0] if isinstance(output, list) else output)).content


def edit() -> bytes:
    with PICTURE.open("rb") as picture:
        return draw("flux-kontext-pro", input_image=picture, aspect_ratio="match_input_image")


run(
    {
        "text": lambda: draw("flux-dev", width=512, height=512),
        "ultra": lambda: draw("flux-1.1-pro-ultra", aspect_ratio="1:1"),
        "flux2": lambda: draw("flux-2-pro", width=512, height=512),
        "kontext": edit,
        "size": lambda: draw("flux-dev", width=100, height=512),
        "key": lambda: draw("flux-dev"),
    }
)
