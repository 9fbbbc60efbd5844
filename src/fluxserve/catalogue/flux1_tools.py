"""The tools of FLUX.1: Fill and Expand draw parts of a picture anew, Canny and Depth follow another one's structure."""

from __future__ import annotations

from fluxserve.catalogue import drafts
from fluxserve.catalogue import params as p
from fluxserve.catalogue.flux1 import COMMON, DEV
from fluxserve.catalogue.schema import EXAMPLE_PICTURE
from fluxserve.catalogue.spec import ModelSpec, Price

_STEPS = p.steps(50, minimum=15)
_REPAINT_GUIDANCE = p.guidance(60, maximum=100)
_CONTROL_GUIDANCE = p.guidance(30, maximum=100, minimum=1)
_MASK = p.picture(
    "mask",
    "What to draw anew is white, what to keep is black; as large as image. Needless where image has an alpha channel.",
)
_CONTROL_PICTURES = (
    p.picture("control_image", "The picture whose structure to follow; needed unless there is a preprocessed_image."),
    p.picture("preprocessed_image", "The structure itself, taken as it is instead of control_image."),
)
_PLAIN_REPAINT = "Weights that draw from prompts alone, mini among them, blend what they draw with what is kept."
_PLAIN_CONTROL = (
    "Weights that draw from prompts alone, mini among them, draw over control_image as image-to-image, edges and "
    "depths alike."
)


def _margin(side: str) -> p.Param:
    return p.Param(
        name=side,
        kind=p.Kind.INTEGER,
        help=f"Pixels to draw beyond the {side} edge; at least one side has some.",
        default=0,
        minimum=0,
        maximum=2048,
    )


def _threshold(end: str, default: int) -> p.Param:
    return p.Param(
        name=f"canny_{end}_threshold",
        kind=p.Kind.INTEGER,
        help=f"The {end} threshold of the edges that are found in control_image.",
        default=default,
        minimum=0,
        maximum=500,
    )


FILL = ModelSpec(
    name="flux-pro-1.0-fill",
    title="FLUX.1 Fill [pro]",
    help="Draws the masked part of a picture anew; the answer is as large as the picture.",
    params=(
        p.picture("image", "The picture, perhaps with what to draw anew as transparent.", required=True),
        _MASK,
        p.OPTIONAL_PROMPT,
        _STEPS,
        _REPAINT_GUIDANCE,
        *COMMON,
    ),
    draft=drafts.fill,
    price=Price(millicredits=5000),
    nearest_weights="FLUX.1-Fill-dev",
    network=DEV,
    steps=50,
    guidance=60,
    example={"image": EXAMPLE_PICTURE, "mask": EXAMPLE_PICTURE},
    plainly=_PLAIN_REPAINT,
)
EXPAND = ModelSpec(
    name="flux-pro-1.0-expand",
    title="FLUX.1 Expand [pro]",
    help="Draws what is beyond the edges of a picture, up to four megapixels in all.",
    params=(
        p.picture("image", "The picture to expand.", required=True),
        *map(_margin, ("top", "bottom", "left", "right")),
        p.OPTIONAL_PROMPT,
        _STEPS,
        _REPAINT_GUIDANCE,
        *COMMON,
    ),
    draft=drafts.expand,
    price=Price(millicredits=5000),
    nearest_weights="FLUX.1-Fill-dev",
    network=DEV,
    steps=50,
    guidance=60,
    example={"image": EXAMPLE_PICTURE, "left": 128, "right": 128},
    plainly=_PLAIN_REPAINT,
)
CANNY = ModelSpec(
    name="flux-pro-1.0-canny",
    title="FLUX.1 Canny [pro]",
    help="Draws a picture with the edges of another one, as large as that, with sides up to 1440.",
    params=(
        p.OPTIONAL_PROMPT,
        *_CONTROL_PICTURES,
        _threshold("low", 50),
        _threshold("high", 200),
        _STEPS,
        _CONTROL_GUIDANCE,
        *COMMON,
    ),
    draft=drafts.canny,
    price=Price(millicredits=5000, published=False),
    nearest_weights="FLUX.1-Canny-dev",
    network=DEV,
    steps=50,
    guidance=30,
    example={"control_image": EXAMPLE_PICTURE},
    plainly=_PLAIN_CONTROL,
)
DEPTH = ModelSpec(
    name="flux-pro-1.0-depth",
    title="FLUX.1 Depth [pro]",
    help="Draws a picture with the depths of another one, as large as that, with sides up to 1440.",
    params=(p.OPTIONAL_PROMPT, *_CONTROL_PICTURES, _STEPS, _CONTROL_GUIDANCE, *COMMON),
    draft=drafts.depth,
    price=Price(millicredits=5000, published=False),
    nearest_weights="FLUX.1-Depth-dev",
    network=DEV,
    steps=50,
    guidance=30,
    example={"control_image": EXAMPLE_PICTURE},
    plainly=_PLAIN_CONTROL,
    takes_depths=True,
)

MODELS = (FILL, EXPAND, CANNY, DEPTH)
