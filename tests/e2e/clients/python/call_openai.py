"""OpenAI's Python client."""

from __future__ import annotations

import base64

from openai import OpenAI
from outcome import KEY, PICTURE, PROMPT, URL, run

client = OpenAI(api_key=KEY, base_url=f"{URL}/v1", max_retries=0)


def draw(model: str, size: str = "512x512", **fields: object) -> bytes:
    answer = client.images.generate(model=model, prompt=PROMPT, size=size, **fields)
    return base64.b64decode(answer.data[0].b64_json)


def edit(model: str, **fields: object) -> bytes:
    with PICTURE.open("rb") as picture:
        answer = client.images.edit(model=model, image=picture, prompt=PROMPT, **fields)
    return base64.b64decode(answer.data[0].b64_json)


def edit_under_a_mask() -> bytes:
    with PICTURE.open("rb") as picture, PICTURE.open("rb") as mask:
        answer = client.images.edit(model="gpt-image-1", image=[picture], mask=mask, prompt=PROMPT)
    return base64.b64decode(answer.data[0].b64_json)


def stream() -> bytes:
    events = client.images.generate(model="gpt-image-1", prompt=PROMPT, size="512x512", stream=True, partial_images=2)
    *_, last = events
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens
    return base64.b64decode(last.b64_json)


run(
    {
        "text": lambda: draw("flux-dev"),
        "ultra": lambda: draw("flux-pro-1.1-ultra", "1024x1024"),
        "flux2": lambda: draw("flux-2-pro"),
        "kontext": lambda: edit("flux-kontext-pro"),
        "size": lambda: draw("flux-dev", "100x512"),
        "key": lambda: draw("flux-dev"),
        "gpt-image": lambda: draw("gpt-image-1", quality="low"),
        "mask": edit_under_a_mask,
        "stream": stream,
    }
)
