"""The FLUX.1 family as the published API serves it: what draws from a prompt."""

from __future__ import annotations

from fluxserve.catalogue import drafts
from fluxserve.catalogue import params as p
from fluxserve.catalogue.network import Network
from fluxserve.catalogue.spec import ModelSpec, Price

#: What every FLUX.1 model has.
COMMON = (
    p.SEED,
    p.SAFETY_TOLERANCE,
    p.OUTPUT_FORMAT,
    p.PROMPT_UPSAMPLING,
    p.FINETUNE_ID,
    p.FINETUNE_STRENGTH,
    p.WEBHOOK_URL,
    p.WEBHOOK_SECRET,
    p.USER,
)
_COMMON = (p.IMAGE_PROMPT, *COMMON)

#: GFLOP that reading a prompt takes for each token that it is filled up to, by T5-XXL's encoder (google/t5-v1_1-xxl):
#: 2 FLOP for each of the 24 (4 * 4096^2 + 3 * 4096 * 10240) weights of its layers.
_T5_GFLOP = 9.26
#: TFLOP of CLIP-L's text encoder (openai/clip-vit-large-patch14): 12 layers of 12 * 768^2 weights, over 77 tokens.
_CLIP_TFLOP = 0.0131


def _network(text_tokens: int) -> Network:
    """19 double and 38 single blocks: a token passes the weights of one stream in the first, as many in the others."""
    reading = text_tokens * _T5_GFLOP / 1000 + _CLIP_TFLOP
    return Network(width=3072, layers=57, weights=12, text_tokens=text_tokens, reading=reading)


#: What [dev] and all that was made from it draw with.
DEV = _network(512)
_SCHNELL = _network(256)

_IMAGE = p.picture("image", "Extension: a picture to draw over. Without width and height its shape is kept.")
_STRENGTH = p.Param(
    name="strength",
    kind=p.Kind.NUMBER,
    help="Extension: how much of image is drawn anew: at 0 it is only encoded and decoded, 1 leaves nothing of it.",
    default=0.75,
    minimum=0,
    maximum=1,
    needs="image",
)

FLUX_PRO_11 = ModelSpec(
    name="flux-pro-1.1",
    title="FLUX 1.1 [pro]",
    help="Strong prompt adherence at up to 1440x1440.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(28), p.guidance(), *_COMMON),
    draft=drafts.by_sides,
    price=Price(millicredits=4000),
    nearest_weights="FLUX.1-dev",
    network=DEV,
    steps=28,
)
FLUX_PRO = ModelSpec(
    name="flux-pro",
    title="FLUX.1 [pro]",
    help="The first pro model.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(40), p.guidance(), p.INTERVAL, *_COMMON),
    draft=drafts.by_sides,
    price=Price(millicredits=5000),
    nearest_weights="FLUX.1-dev",
    network=DEV,
    steps=40,
)
FLUX_DEV = ModelSpec(
    name="flux-dev",
    title="FLUX.1 [dev]",
    help="The open, guidance-distilled model.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(28), p.guidance(), _IMAGE, _STRENGTH, *_COMMON),
    draft=drafts.by_sides_or_image,
    price=Price(millicredits=2500),
    nearest_weights="FLUX.1-dev",
    network=DEV,
    steps=28,
)
FLUX_SCHNELL = ModelSpec(
    name="flux-schnell",
    title="FLUX.1 [schnell]",
    help="The fastest model: one to four steps, at most twelve.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(4, maximum=12), *_COMMON),
    draft=drafts.by_sides,
    price=Price(millicredits=300, published=False),
    nearest_weights="FLUX.1-schnell",
    network=_SCHNELL,
    steps=4,
)
FLUX_PRO_11_ULTRA = ModelSpec(
    name="flux-pro-1.1-ultra",
    title="FLUX 1.1 [pro] Ultra",
    help="About four megapixels, by aspect ratio.",
    params=(p.PROMPT, p.ASPECT_RATIO, p.RAW, p.IMAGE_PROMPT_STRENGTH, *_COMMON),
    draft=drafts.ultra,
    price=Price(millicredits=6000),
    nearest_weights="FLUX.1-dev",
    network=DEV,
    steps=28,
    example={"aspect_ratio": "16:9"},
)
FLUX_KREA_DEV = ModelSpec(
    name="flux-krea-dev",
    title="FLUX.1 Krea [dev]",
    help="Extension: the open model with the look of photographs.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(28), p.guidance(4.5), *_COMMON),
    draft=drafts.by_sides,
    price=Price(millicredits=2500, published=False),
    nearest_weights="FLUX.1-Krea-dev",
    network=DEV,
    steps=28,
)

MODELS = (FLUX_PRO_11, FLUX_PRO, FLUX_DEV, FLUX_SCHNELL, FLUX_PRO_11_ULTRA, FLUX_KREA_DEV)
