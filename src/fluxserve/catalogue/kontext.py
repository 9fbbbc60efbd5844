"""FLUX.1 Kontext: edits of pictures by words, at about a megapixel."""

from __future__ import annotations

from dataclasses import replace

from fluxserve.catalogue import drafts
from fluxserve.catalogue import params as p
from fluxserve.catalogue.flux1 import COMMON, DEV
from fluxserve.catalogue.spec import ModelSpec, Price

_RATIO = replace(
    p.ASPECT_RATIO, help=f"{p.ASPECT_RATIO.help} Unset: that of input_image, or 1:1 without one.", default=None
)
_PARAMS = (
    replace(p.PROMPT, help="What to change, or without a picture what to draw."),
    *p.input_pictures(4, p.MIN_SIDE),
    _RATIO,
    *(replace(param, default="png") if param is p.OUTPUT_FORMAT else param for param in COMMON),
)
PLAINLY = (
    "Weights that draw from prompts alone, mini among them, draw edits as image-to-image over the first picture and "
    "leave others out."
)

KONTEXT_PRO = ModelSpec(
    name="flux-kontext-pro",
    title="FLUX.1 Kontext [pro]",
    help="Edits up to four pictures by words, or draws from words alone.",
    params=_PARAMS,
    draft=drafts.kontext,
    price=Price(millicredits=4000),
    nearest_weights="FLUX.1-Kontext-dev",
    network=DEV,
    steps=28,
    guidance=2.5,
    example={"aspect_ratio": "16:9"},
    plainly=PLAINLY,
)
KONTEXT_MAX = replace(
    KONTEXT_PRO,
    name="flux-kontext-max",
    title="FLUX.1 Kontext [max]",
    help="The same fields, for the best of edits.",
    price=Price(millicredits=8000),
    steps=50,
)
KONTEXT_DEV = replace(
    KONTEXT_PRO,
    name="flux-kontext-dev",
    title="FLUX.1 Kontext [dev]",
    help="Extension: the open model, with its steps and guidance.",
    params=(*_PARAMS, p.steps(28), p.guidance(2.5, minimum=1)),
    price=Price(millicredits=2500, published=False),
)

MODELS = (KONTEXT_PRO, KONTEXT_MAX, KONTEXT_DEV)
