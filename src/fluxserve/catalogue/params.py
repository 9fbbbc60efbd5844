"""What a request may carry: one `Param` per field, as data.

The request schema, the OpenAPI document, the docs table and the form are made from these values.
What it does not know: HTTP, pydantic, or what a value is used for after it was resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from fluxserve.errors import JsonValue

#: Widest and tallest aspect ratio the published API draws: 21:9 and its transpose.
MAX_RATIO = 21 / 9
RATIO_PATTERN = r"^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$"
#: A host must be there: a name or an IPv6 address in brackets, perhaps between a user and a port.
URL_PATTERN = r"^https?://([^\s/?#@\\]*@)?(\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]\\]+)(:[0-9]{0,5})?([/?#][^\s]*)?$"
#: How the text of a picture begins that is no base64 but its URL.
PICTURE_URL_PATTERN = r"^[Hh][Tt][Tt][Pp][Ss]?://"
MAX_SEED = 2**64 - 1
#: Sides that FLUX.1 draws, and the smallest of a picture that it is given.
MIN_SIDE, MAX_SIDE = 256, 1440
#: Largest picture in pixels: four megapixels. Input pictures over it are shrunk.
MAX_AREA = 2048 * 2048
#: Largest file of an input picture, in bytes; as base64, in a data URI, it takes a third more and a little.
MAX_FILE = 20_000_000
MAX_PICTURE_TEXT = 4 * -(-MAX_FILE // 3) + 256
#: The field of a mask, which may also come as the alpha channel of another picture, and of that other one.
MASK, MASKED = "mask", "image"


class Kind(StrEnum):
    """The JSON type of a field and how strictly it is read."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    CHOICE = "choice"
    RATIO = "ratio"
    URL = "url"
    IMAGE = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One field of a request. Bounds are inclusive. `needs`: the field without which it changes nothing.

    A picture of more than `max_area` pixels is shrunk to so many; one with a side under `min_side` is refused.
    `auto` is a number that means unset, though it is out of the bounds.
    """

    name: str
    kind: Kind
    help: str
    default: JsonValue = None
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    max_length: int | None = None
    max_area: int | None = None
    min_side: int | None = None
    auto: int | None = None
    choices: tuple[str, ...] = ()
    needs: str | None = None


PROMPT = Param(
    name="prompt",
    kind=Kind.TEXT,
    help="What to draw.",
    required=True,
    max_length=10_000,
)
OPTIONAL_PROMPT = replace(PROMPT, required=False, default="")
WIDTH = Param(
    name="width",
    kind=Kind.INTEGER,
    help="Width of the picture in pixels, a multiple of 32.",
    default=1024,
    minimum=MIN_SIDE,
    maximum=MAX_SIDE,
    multiple_of=32,
)
HEIGHT = Param(
    name="height",
    kind=Kind.INTEGER,
    help="Height of the picture in pixels, a multiple of 32.",
    default=768,
    minimum=MIN_SIDE,
    maximum=MAX_SIDE,
    multiple_of=32,
)
ASPECT_RATIO = Param(
    name="aspect_ratio",
    kind=Kind.RATIO,
    help="Width to height as W:H, anything between 21:9 and 9:21.",
    default="16:9",
)
SEED = Param(
    name="seed",
    kind=Kind.INTEGER,
    help="The same seed draws the same picture; drawn at random when unset.",
    minimum=0,
    maximum=MAX_SEED,
)
OUTPUT_FORMAT = Param(
    name="output_format",
    kind=Kind.CHOICE,
    help="File format of the picture.",
    default="jpeg",
    choices=("jpeg", "png", "webp"),
)
RAW = Param(
    name="raw",
    kind=Kind.FLAG,
    help="Less processed, more candid pictures.",
    default=False,
)
INTERVAL = Param(
    name="interval",
    kind=Kind.NUMBER,
    help="Guidance interval: higher varies more and follows the prompt less.",
    default=2.0,
    minimum=1,
    maximum=4,
)
PROMPT_UPSAMPLING = Param(
    name="prompt_upsampling",
    kind=Kind.FLAG,
    help="Let a language model enrich the prompt first, where one is set up (`prompt_upsampler`).",
    default=False,
)
SAFETY_TOLERANCE = Param(
    name="safety_tolerance",
    kind=Kind.INTEGER,
    help="Moderation: 0 is strictest, 6 most permissive.",
    default=2,
    minimum=0,
    maximum=6,
)
IMAGE_PROMPT_STRENGTH = Param(
    name="image_prompt_strength",
    kind=Kind.NUMBER,
    help="How close to image_prompt, 0 to 1.",
    default=0.1,
    minimum=0,
    maximum=1,
    needs="image_prompt",
)
FINETUNE_ID = Param(
    name="finetune_id",
    kind=Kind.TEXT,
    help="Extension: the fine-tune to draw with, a LoRA file of this server's folder for them by its name.",
    max_length=256,
)
FINETUNE_STRENGTH = Param(
    name="finetune_strength",
    kind=Kind.NUMBER,
    help="Extension: how much of the fine-tune, 1 as it was made.",
    default=1.0,
    minimum=0,
    maximum=2,
    needs="finetune_id",
)
WEBHOOK_URL = Param(
    name="webhook_url",
    kind=Kind.URL,
    help="Where to POST the result when the task ends.",
    max_length=2083,
)
WEBHOOK_SECRET = Param(
    name="webhook_secret",
    kind=Kind.TEXT,
    help="Secret that signs the webhook.",
    max_length=1024,
)
USER = Param(
    name="user",
    kind=Kind.TEXT,
    help="Your own opaque name for the end user; not used for drawing.",
    max_length=256,
)


def steps(default: int, maximum: int = 50, minimum: int = 1) -> Param:
    """The `steps` field of a model whose default is `default`."""
    return Param(
        name="steps",
        kind=Kind.INTEGER,
        help="Number of denoising steps.",
        default=default,
        minimum=minimum,
        maximum=maximum,
    )


def guidance(default: float = 3.5, maximum: float = 5.0, minimum: float = 1.5) -> Param:
    """The `guidance` field of a model whose default is `default`."""
    return Param(
        name="guidance",
        kind=Kind.NUMBER,
        help="Distilled guidance: higher follows the prompt more closely.",
        default=default,
        minimum=minimum,
        maximum=maximum,
    )


def picture(name: str, about: str, *, required: bool = False, min_side: int = MIN_SIDE) -> Param:
    """A field that holds a picture; `about` says what it is for."""
    return Param(
        name=name,
        kind=Kind.IMAGE,
        help=f"{about} PNG, JPEG or WebP, as base64, bare or in a data URI, or by its http or https URL; sides from "
        f"{min_side} pixels.",
        required=required,
        max_area=MAX_AREA,
        min_side=min_side,
    )


def input_pictures(count: int, min_side: int) -> tuple[Param, ...]:
    """`input_image`, `input_image_2` and so on."""
    first = picture("input_image", "The picture to edit.", min_side=min_side)
    more = (
        picture(
            f"input_image_{number}", f'Another picture, which the prompt may call "image {number}".', min_side=min_side
        )
        for number in range(2, count + 1)
    )
    return first, *more


IMAGE_PROMPT = picture("image_prompt", "A picture to draw in the likeness of.")
