"""LiteLLM: as a provider that speaks OpenAI's API. Its own provider of Black Forest Labs polls no host but bfl.ai."""

from __future__ import annotations

import base64

import litellm
from outcome import KEY, PICTURE, PROMPT, URL, run

HERE = {"api_base": f"{URL}/v1", "api_key": KEY}


def draw(model: str, size: str = "512x512") -> bytes:
    answer = litellm.image_generation(prompt=PROMPT, model=f"openai/{model}", size=size, **HERE)
    return base64.b64decode(answer.data[0].b64_json)


def edit() -> bytes:
    with PICTURE.open("rb") as picture:
        answer = litellm.image_edit(image=[picture], prompt=PROMPT, model="openai/flux-kontext-pro", **HERE)
    return base64.b64decode(answer.data[0].b64_json)


def as_black_forest_labs() -> bytes:
    answer = litellm.image_generation(prompt=PROMPT, model="black_forest_labs/flux-pro-1.1", api_base=URL, api_key=KEY)
    return base64.b64decode(answer.data[0].b64_json)


run(
    {
        "text": lambda: draw("flux-dev"),
        "ultra": lambda: draw("flux-pro-1.1-ultra", "1024x1024"),
        "flux2": lambda: draw("flux-2-pro"),
        "kontext": edit,
        "size": lambda: draw("flux-dev", "100x512"),
        "key": lambda: draw("flux-dev"),
        "native": as_black_forest_labs,
    }
)
