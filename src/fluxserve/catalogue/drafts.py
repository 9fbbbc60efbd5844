"""How each kind of model reads a request: from its fields and pictures to a size and a recipe. Pure.

Each raises FieldRefused where fields or pictures do not fit each other.
What it does not know: ranges and types of single fields, which were checked before; weights.
"""

from __future__ import annotations

from fluxserve.catalogue.params import MAX_AREA, MAX_SIDE, MIN_SIDE
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, TextToImage
from fluxserve.catalogue.sizes import Size, kontext_size, parse_ratio, rounded_down, shrunk, ultra_size
from fluxserve.catalogue.spec import Asked, Draft, InputPicture
from fluxserve.errors import FieldRefused

_SIDES = ("top", "bottom", "left", "right")
#: What FLUX.2 draws where nothing says how large.
_FLUX2_SIZE = Size(1024, 1024)
_FLUX2_MULTIPLE = 16


def by_sides(asked: Asked) -> Draft:
    """A picture of the prompt, `width` x `height`."""
    return Draft(size=Size(asked.whole("width"), asked.whole("height")), recipe=_text_to_image(asked))


def by_sides_or_image(asked: Asked) -> Draft:
    """The same; with an `image`, that one drawn over, in its own shape unless a side is given."""
    image = asked.pictures.get("image")
    if image is None:
        return by_sides(asked)
    if "image_prompt" in asked.pictures:
        raise FieldRefused("image_prompt", "pictures_disagree", "Send image or image_prompt, not both", "")
    given = not asked.given.isdisjoint({"width", "height"})
    size = Size(asked.whole("width"), asked.whole("height")) if given else _in_range(image)
    return Draft(size=size, recipe=ImageToImage(strength=asked.number("strength")))


def ultra(asked: Asked) -> Draft:
    """A picture of the prompt of about four megapixels, by `aspect_ratio`."""
    return Draft(size=ultra_size(str(asked.fields["aspect_ratio"])), recipe=_text_to_image(asked))


def _text_to_image(asked: Asked) -> TextToImage:
    usual = TextToImage()
    strength = asked.fields.get("image_prompt_strength") if "image_prompt" in asked.pictures else None
    return TextToImage(
        raw=asked.fields.get("raw", usual.raw) is True,
        interval=asked.number("interval") if "interval" in asked.fields else usual.interval,
        likeness=usual.likeness if strength is None else asked.number("image_prompt_strength"),
    )


def kontext(asked: Asked) -> Draft:
    """An edit of about a megapixel, by `aspect_ratio`, else of the shape of its first picture, else square."""
    first = _first(asked)
    ratio = 1.0 if first is None else first.size.ratio
    if asked.fields["aspect_ratio"] is not None:
        width, height = parse_ratio(str(asked.fields["aspect_ratio"]))
        ratio = width / height
    return Draft(size=kontext_size(ratio), recipe=Edit())


def flux2(asked: Asked) -> Draft:
    """An edit, `width` x `height`; a side that is not given is that of the first picture, else 1024."""
    first = _first(asked)
    usual = _FLUX2_SIZE if first is None else rounded_down(first.size, _FLUX2_MULTIPLE)
    width = asked.whole("width") or usual.width
    height = asked.whole("height") or usual.height
    if width * height > MAX_AREA:
        message = f"{width}x{height} is over the limit of {MAX_AREA} pixels (2048x2048): ask for smaller sides"
        name, side = ("width", width) if asked.whole("width") else ("height", height)
        raise FieldRefused(name, "size_too_large", message, side)
    return Draft(size=Size(width, height), recipe=Edit())


def _first(asked: Asked) -> InputPicture | None:
    """The first picture by the numbers of their fields."""
    return next(iter(asked.pictures[name] for name in asked.fields if name in asked.pictures), None)


def fill(asked: Asked) -> Draft:
    """`image` with what `mask` shows drawn anew, as large as it came."""
    size = asked.pictures["image"].size
    mask = asked.pictures.get("mask")
    if mask is None:
        raise FieldRefused("mask", "missing", "Field required, unless image has an alpha channel", "")
    if mask.size != size:
        message = f"Mask should be as large as image, {size}, not {mask.size}"
        raise FieldRefused("mask", "mask_size", message, str(mask.size))
    return Draft(size=size, recipe=Fill())


def expand(asked: Asked) -> Draft:
    """`image` and what is beyond its edges, drawn by the numbers of pixels on each side."""
    margins = {side: asked.whole(side) for side in _SIDES}
    widest = max(margins, key=lambda side: margins[side])
    if not margins[widest]:
        message = f"At least one of {', '.join(_SIDES)} should be greater than 0"
        raise FieldRefused(widest, "no_margin", message, 0)
    image = asked.pictures["image"].size
    size = Size(image.width + margins["left"] + margins["right"], image.height + margins["top"] + margins["bottom"])
    if size.area > MAX_AREA:
        message = f"The picture would be {size}, over the limit of {MAX_AREA} pixels (2048x2048): expand it by less"
        raise FieldRefused(widest, "size_too_large", message, margins[widest])
    return Draft(size=size, recipe=Fill(**margins))


def canny(asked: Asked) -> Draft:
    """A picture with the edges of the control picture, as large as that."""
    low, high = asked.number("canny_low_threshold"), asked.number("canny_high_threshold")
    if low > high:
        message = f"Should be at most canny_high_threshold, which is {high:g}"
        raise FieldRefused("canny_low_threshold", "thresholds_disagree", message, low)
    return Draft(size=_in_range(_control(asked)), recipe=Control(kind="canny", low=low, high=high))


def depth(asked: Asked) -> Draft:
    """A picture with the depths of the control picture, as large as that."""
    return Draft(size=_in_range(_control(asked)), recipe=Control(kind="depth"))


def _control(asked: Asked) -> InputPicture:
    """What was made ready for the network wins over what would have to be."""
    for name in ("preprocessed_image", "control_image"):
        if name in asked.pictures:
            return asked.pictures[name]
    raise FieldRefused("control_image", "missing", "Field required, or preprocessed_image instead", "")


def _in_range(picture: InputPicture) -> Size:
    """The picture's size, or the largest of its shape that FLUX.1 draws."""
    size = shrunk(picture.size, MAX_SIDE)
    if min(size.width, size.height) < MIN_SIDE:
        message = f"{picture.size} is too long for sides from {MIN_SIDE} to {MAX_SIDE}: crop the picture"
        raise FieldRefused(picture.name, "picture_shape", message, str(picture.size))
    return size
