"""Pixels to files and back: fit a drawn picture to the size asked for, encode it with the truth about its origin.

Needs Pillow only. The same pixels always make the same bytes: no time, host or task is written into a file.
What it does not know: how a picture was drawn, where its file goes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from io import BytesIO

from PIL import Image, ImageChops, ImageFilter, PngImagePlugin

from fluxserve.catalogue import InputPicture, OutputFormat, Size
from fluxserve.catalogue.sizes import cut_share
from fluxserve.engine.base import Pixels
from fluxserve.engine.native_sizes import MAX_CUT
from fluxserve.errors import InputDamaged

QUALITY, PREVIEW_QUALITY = 95, 80
#: Longest side of a preview, in pixels.
PREVIEW_SIDE = 256
#: An infinitely enlarged picture gets so much of its difference from a copy blurred by one drawn pixel on top.
_SHARPEN = 3.0
_EXIF_MODEL = 0x0110
_EXIF_SOFTWARE = 0x0131


def encode(pixels: Pixels, output_format: OutputFormat, drawn_by: str) -> bytes:
    """The picture as a file: JPEG (quality 95, full colour resolution), PNG or WebP (quality 95).

    `drawn_by` names the weights; it is written into the file's metadata beside the words "AI generated".
    """
    image, file = to_image(pixels), BytesIO()
    software = f"AI generated;txt2img;{drawn_by}"
    exif = Image.Exif()
    exif[_EXIF_MODEL] = drawn_by
    exif[_EXIF_SOFTWARE] = software
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4", exif=exif)
    elif output_format == "png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", software)
        image.save(file, "PNG", pnginfo=text, exif=exif)
    else:
        image.save(file, "WEBP", quality=QUALITY, exif=exif)
    return file.getvalue()


def decode(file: bytes, picture: InputPicture) -> Pixels:
    """The pixels of an input picture out of its PNG; raises InputDamaged where they are not those of `picture`."""
    try:
        with Image.open(BytesIO(file), formats=("PNG",)) as image:
            size = Size(image.width, image.height)
            pixels = from_image(image) if size == picture.size and image.mode == "RGB" else None
    except Exception:  # noqa: BLE001 - whatever Pillow stumbles over, the file is not what was written
        pixels = None
    if pixels is None or sha256(pixels) != picture.sha256:
        raise InputDamaged("An input picture of this task was damaged: send the request again.")
    return pixels


def encode_preview(preview: Pixels) -> bytes:
    """A preview as a small JPEG, which says of itself that it is AI generated."""
    file, exif = BytesIO(), Image.Exif()
    exif[_EXIF_SOFTWARE] = "AI generated;preview"
    to_image(preview).save(file, "JPEG", quality=PREVIEW_QUALITY, exif=exif)
    return file.getvalue()


def preview_size(asked: Size, available: Size) -> Size:
    """The size of a preview: the shape that was asked for, within PREVIEW_SIDE and what there is to show."""
    longest = min(PREVIEW_SIDE, max(available.width, available.height))
    scale = longest / max(asked.width, asked.height)
    return Size(max(1, round(asked.width * scale)), max(1, round(asked.height * scale)))


def fit(pixels: Pixels, size: Size) -> Pixels:
    """The picture at exactly `size`, never distorted: scaled (Lanczos) until it covers it, what sticks out cut off.

    An enlarged picture is sharpened again (docs/decisions/007). Where more than `MAX_CUT` of the picture would be cut,
    its edges are continued outwards to the ratio first.
    """
    return _fit(pixels, size, cut_share(pixels.size, size))


def fit_preview(preview: Pixels, asked: Size) -> Pixels:
    """The preview in the shape asked for: cut, or its edges continued, as `fit` does with the whole picture."""
    return _fit(preview, preview_size(asked, preview.size), cut_share(preview.size, asked))


def _fit(pixels: Pixels, size: Size, cut: float) -> Pixels:
    if pixels.size == size:
        return pixels
    image = to_image(pixels)
    if cut > MAX_CUT:
        image = _continue_edges(image, size.ratio)
    box = _centre_box(image, size)
    fitted = image.resize((size.width, size.height), Image.Resampling.LANCZOS, box=box)
    scale = size.width / (box[2] - box[0])
    return from_image(fitted if scale <= 1 else _sharpened(fitted, image, box, scale))


def sha256(pixels: Pixels) -> str:
    """Hex digest over the RGB bytes: equal pixels, whatever file they are later written to."""
    return hashlib.sha256(pixels.data).hexdigest()


def to_image(pixels: Pixels) -> Image.Image:
    """As a Pillow picture."""
    return Image.frombytes("RGB", (pixels.size.width, pixels.size.height), pixels.data)


def from_image(image: Image.Image) -> Pixels:
    """From a Pillow picture in RGB."""
    return Pixels(size=Size(image.width, image.height), data=image.tobytes())


def _centre_box(image: Image.Image, size: Size) -> tuple[float, float, float, float]:
    """The largest part (left, top, right, bottom) around the middle of `image` that has the ratio of `size`."""
    width = min(float(image.width), image.height * size.ratio)
    height = min(float(image.height), image.width / size.ratio)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    # Rounding may put the box a hair outside the picture, which Pillow refuses.
    return left, top, min(left + width, image.width), min(top + height, image.height)


def _sharpened(
    enlarged: Image.Image, image: Image.Image, box: tuple[float, float, float, float], scale: float
) -> Image.Image:
    """Steeper edges without halos: no pixel leaves the range of the 3 x 3 pixels of `image` that it came from.

    The mask's blurred copy is `image` blurred by one of its pixels and then enlarged: blurring the large one gives the
    same and takes five times as long.
    """
    share = _SHARPEN * (1 - 1 / scale)
    soft = image.filter(ImageFilter.GaussianBlur(1)).resize(enlarged.size, Image.Resampling.LANCZOS, box=box)
    sharp = Image.blend(soft, enlarged, 1 + share)
    darkest, brightest = (
        _of_neighbours(image, pick).resize(enlarged.size, Image.Resampling.BILINEAR, box=box)
        for pick in (ImageChops.darker, ImageChops.lighter)
    )
    return ImageChops.darker(ImageChops.lighter(sharp, darkest), brightest)


def _of_neighbours(image: Image.Image, pick: Callable[[Image.Image, Image.Image], Image.Image]) -> Image.Image:
    """Each pixel is what `pick` makes of its 3 x 3 neighbours, first along rows, then along columns."""
    w, h = image.size
    rows = pick(pick(image, _moved(image, (0, 0, w - 1, h), (1, 0))), _moved(image, (1, 0, w, h), (0, 0)))
    return pick(pick(rows, _moved(rows, (0, 0, w, h - 1), (0, 1))), _moved(rows, (0, 1, w, h), (0, 0)))


def _moved(image: Image.Image, part: tuple[int, int, int, int], to: tuple[int, int]) -> Image.Image:
    """`image` with `part` of it moved by a pixel."""
    moved = image.copy()
    moved.paste(image.crop(part), to)
    return moved


def _continue_edges(image: Image.Image, ratio: float) -> Image.Image:
    """`image` in the middle of a wider or taller picture of about `ratio`, its outermost rows or columns repeated."""
    w, h = image.size
    width, height = max(w, math.ceil(h * ratio)), max(h, math.ceil(w / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    whole = Image.new("RGB", (width, height))
    whole.paste(image, (left, top))
    margins = {
        (0, 0, 1, h): (0, 0, left, height),
        (w - 1, 0, w, h): (left + w, 0, width, height),
        (0, 0, w, 1): (0, 0, width, top),
        (0, h - 1, w, h): (0, top + h, width, height),
    }
    for edge, margin in margins.items():
        size = (margin[2] - margin[0], margin[3] - margin[1])
        if all(size):
            whole.paste(image.crop(edge).resize(size), margin)
    return whole
