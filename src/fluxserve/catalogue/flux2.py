"""The FLUX.2 family as the published API serves it: one model for prompts and edits, priced by the megapixel."""

from __future__ import annotations

from dataclasses import replace

from fluxserve.catalogue import drafts
from fluxserve.catalogue import params as p
from fluxserve.catalogue.kontext import PLAINLY
from fluxserve.catalogue.network import Network
from fluxserve.catalogue.spec import ModelSpec, Price

_TEXT_TOKENS = 512
_MIN_SIDE, _MAX_SIDE = 64, 8192
#: Of a block's weights, in units of width^2: 4 of the attention, 9 of a gated MLP that is three times as wide.
_WEIGHTS = 13


def _network(width: int, layers: int, reader: float) -> Network:
    """`reader`: billions of weights in the layers of the language model that reads the prompt, 2 FLOP each a token."""
    reading = _TEXT_TOKENS * 2 * reader / 1000
    return Network(width=width, layers=layers, weights=_WEIGHTS, text_tokens=_TEXT_TOKENS, reading=reading)


#: 8 double and 48 single blocks, read by Mistral Small 3.2; 5 and 20, by Qwen3 4B; 8 and 24, by Qwen3 8B.
_DEV = _network(6144, 56, 22.2)
_KLEIN_4B = _network(3072, 25, 3.63)
_KLEIN_9B = _network(4096, 32, 6.95)


def _side(name: str) -> p.Param:
    return p.Param(
        name=name,
        kind=p.Kind.INTEGER,
        help=f"{name.capitalize()} of the picture in pixels, a multiple of 16, up to four megapixels in all. "
        "0: that of input_image, rounded down, or 1024 without one.",
        default=0,
        auto=0,
        minimum=_MIN_SIDE,
        maximum=_MAX_SIDE,
        multiple_of=16,
    )


_SIDES = (_side("width"), _side("height"))
_PROMPT = replace(p.PROMPT, help="What to draw, or what to change in the pictures.")
_COMMON = (
    p.SEED,
    replace(p.SAFETY_TOLERANCE, help="Moderation: 0 is strictest, 5 most permissive.", maximum=5),
    p.OUTPUT_FORMAT,
    p.FINETUNE_ID,
    p.FINETUNE_STRENGTH,
    p.WEBHOOK_URL,
    p.WEBHOOK_SECRET,
    p.USER,
)
_NO_UPSAMPLING = p.Param(
    name="disable_pup",
    kind=p.Kind.FLAG,
    help="Draw the prompt as it stands; else a language model enriches it first, where one is set up.",
    default=False,
)


FLUX2_PRO = ModelSpec(
    name="flux-2-pro",
    title="FLUX.2 [pro]",
    help="What FLUX.2 is for most; edits up to eight pictures.",
    params=(_PROMPT, *p.input_pictures(8, _MIN_SIDE), *_SIDES, _NO_UPSAMPLING, *_COMMON),
    draft=drafts.flux2,
    price=Price(millicredits=3000, further=1500),
    nearest_weights="FLUX.2-dev",
    network=_DEV,
    steps=28,
    guidance=4.0,
    plainly=PLAINLY,
)
FLUX2_PRO_PREVIEW = replace(
    FLUX2_PRO, name="flux-2-pro-preview", title="FLUX.2 [pro] preview", help="The newest of FLUX.2 [pro]."
)
FLUX2_MAX = replace(
    FLUX2_PRO,
    name="flux-2-max",
    title="FLUX.2 [max]",
    help="The best of FLUX.2; edits up to eight pictures.",
    price=Price(millicredits=7000, further=3000),
    steps=50,
)
FLUX2_FLEX = replace(
    FLUX2_PRO,
    name="flux-2-flex",
    title="FLUX.2 [flex]",
    help="FLUX.2 with steps and guidance; edits up to eight pictures.",
    params=(
        *(_PROMPT, *p.input_pictures(8, _MIN_SIDE), *_SIDES, p.steps(50), p.guidance(5.0, maximum=10)),
        *(replace(p.PROMPT_UPSAMPLING, default=True), *_COMMON),
    ),
    price=Price(millicredits=5000, further=5000),
    steps=50,
    guidance=5.0,
)
FLUX2_DEV = replace(
    FLUX2_PRO,
    name="flux-2-dev",
    title="FLUX.2 [dev]",
    help="Extension: the open model, with its steps and guidance; edits up to eight pictures.",
    params=(_PROMPT, *p.input_pictures(8, _MIN_SIDE), *_SIDES, p.steps(28), p.guidance(4.0, maximum=10), *_COMMON),
    price=Price(millicredits=1200, further=600, published=False),
)
FLUX2_KLEIN_4B = ModelSpec(
    name="flux-2-klein-4b",
    title="FLUX.2 [klein] 4B",
    help="The fastest of FLUX.2: four steps; edits up to four pictures.",
    params=(_PROMPT, *p.input_pictures(4, _MIN_SIDE), *_SIDES, *_COMMON),
    draft=drafts.flux2,
    price=Price(millicredits=1400, further=100),
    nearest_weights="FLUX.2-klein-4B",
    network=_KLEIN_4B,
    steps=4,
    guidance=1.0,
    plainly=PLAINLY,
)
FLUX2_KLEIN_9B = replace(
    FLUX2_KLEIN_4B,
    name="flux-2-klein-9b",
    title="FLUX.2 [klein] 9B",
    help="Four steps of a larger network; edits up to four pictures.",
    price=Price(millicredits=1500, further=200),
    nearest_weights="FLUX.2-klein-9B",
    network=_KLEIN_9B,
)
FLUX2_KLEIN_9B_PREVIEW = replace(
    FLUX2_KLEIN_9B,
    name="flux-2-klein-9b-preview",
    title="FLUX.2 [klein] 9B preview",
    help="The newest of FLUX.2 [klein] 9B.",
)

MODELS = (
    FLUX2_MAX,
    FLUX2_PRO,
    FLUX2_PRO_PREVIEW,
    FLUX2_FLEX,
    FLUX2_KLEIN_4B,
    FLUX2_KLEIN_9B,
    FLUX2_KLEIN_9B_PREVIEW,
    FLUX2_DEV,
)
