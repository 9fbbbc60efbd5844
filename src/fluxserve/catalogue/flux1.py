"""The FLUX.1 family as the published API serves it."""

from __future__ import annotations

from fluxserve.catalogue import params as p
from fluxserve.catalogue.network import Network
from fluxserve.catalogue.spec import ModelSpec, Price

_COMMON = (
    p.SEED,
    p.SAFETY_TOLERANCE,
    p.OUTPUT_FORMAT,
    p.PROMPT_UPSAMPLING,
    p.IMAGE_PROMPT,
    p.WEBHOOK_URL,
    p.WEBHOOK_SECRET,
    p.USER,
)

#: 19 double and 38 single blocks: a token passes the weights of one stream in the first, and as many in the others.
_DEV = Network(width=3072, layers=57, text_tokens=512)
_SCHNELL = Network(width=3072, layers=57, text_tokens=256)

FLUX_PRO_11 = ModelSpec(
    name="flux-pro-1.1",
    title="FLUX 1.1 [pro]",
    help="Strong prompt adherence at up to 1440x1440.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(28), p.GUIDANCE, *_COMMON),
    price=Price(millicredits=4000),
    nearest_weights="FLUX.1-dev",
    network=_DEV,
    steps=28,
)
FLUX_PRO = ModelSpec(
    name="flux-pro",
    title="FLUX.1 [pro]",
    help="The first pro model.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(40), p.GUIDANCE, p.INTERVAL, *_COMMON),
    price=Price(millicredits=5000),
    nearest_weights="FLUX.1-dev",
    network=_DEV,
    steps=40,
)
FLUX_DEV = ModelSpec(
    name="flux-dev",
    title="FLUX.1 [dev]",
    help="The open, guidance-distilled model.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(28), p.GUIDANCE, *_COMMON),
    price=Price(millicredits=2500),
    nearest_weights="FLUX.1-dev",
    network=_DEV,
    steps=28,
)
FLUX_SCHNELL = ModelSpec(
    name="flux-schnell",
    title="FLUX.1 [schnell]",
    help="The fastest model: one to four steps, at most twelve.",
    params=(p.PROMPT, p.WIDTH, p.HEIGHT, p.steps(4, maximum=12), *_COMMON),
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
    price=Price(millicredits=6000),
    nearest_weights="FLUX.1-dev",
    network=_DEV,
    steps=28,
)

MODELS = (FLUX_PRO_11, FLUX_PRO, FLUX_DEV, FLUX_SCHNELL, FLUX_PRO_11_ULTRA)
