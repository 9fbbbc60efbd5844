"""huggingface_hub's provider of Black Forest Labs. Its host is fixed in the code, so that is set here."""

from __future__ import annotations

from io import BytesIO

from huggingface_hub import InferenceClient
from huggingface_hub.hf_api import InferenceProviderMapping
from huggingface_hub.inference._providers import PROVIDERS
from huggingface_hub.inference._providers import _common as common
from outcome import KEY, PROMPT, URL, run

PROVIDER = "black-forest-labs"
PROVIDERS[PROVIDER]["text-to-image"].base_url = URL


def draw(model: str, **fields: object) -> bytes:
    # Else the hub is asked what the provider calls the model.
    common.HARDCODED_MODEL_INFERENCE_MAPPING.setdefault(PROVIDER, {})[model] = InferenceProviderMapping(
        provider=PROVIDER, hf_model_id=model, providerId=model, status="live", task="text-to-image"
    )
    picture = InferenceClient(provider=PROVIDER, api_key=KEY).text_to_image(PROMPT, model=model, **fields)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


run(
    {
        "text": lambda: draw("flux-dev", width=512, height=512, num_inference_steps=4),
        "ultra": lambda: draw("flux-pro-1.1-ultra", extra_body={"aspect_ratio": "1:1"}),
        "flux2": lambda: draw("flux-2-pro", width=512, height=512),
        "size": lambda: draw("flux-dev", width=100, height=512),
        "key": lambda: draw("flux-dev"),
    }
)
