"""Pixels to files and back: fit a drawn picture to the size asked for, encode it with the truth about its origin.

Needs Pillow only. The same pixels and mark always make the same bytes: no time, host or task is written into a file.
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
from fluxserve.engine.marks import PNG_XMP, Mark
from fluxserve.engine.native_sizes import MAX_CUT
from fluxserve.errors import InputDamaged

QUALITY, PREVIEW_QUALITY = 95, 80
#: Longest side of a preview, in pixels.
PREVIEW_SIDE = 256
#: An infinitely enlarged picture gets so much of its difference from a copy blurred by one drawn pixel on top.
_SHARPEN = 3.0
#: How pictures are scaled.
SCALED = Image.Resampling.LANCZOS
_EXIF_SOFTWARE = 0x0131


def encode(pixels: Pixels, output_format: OutputFormat, mark: Mark) -> bytes:
    """The picture as a file: JPEG (quality 95, full colour resolution), PNG or WebP (quality 95), marked as what it is.

    Whoever signs it later adds to the file and changes nothing of this.
    """
    image, file = to_image(pixels), BytesIO()
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4", exif=mark.exif, xmp=mark.xmp)
    elif output_format == "png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", mark.software)
        text.add_itxt(PNG_XMP, mark.xmp.decode())
        image.save(file, "PNG", pnginfo=text, exif=mark.exif)
    else:
        image.save(file, "WEBP", quality=QUALITY, exif=mark.exif, xmp=mark.xmp)
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
    return _fit(pixels, size, continues=cut_share(pixels.size, size) > MAX_CUT)


def unfit(pixels: Pixels, drawn: Size) -> Pixels:
    """The picture of size `drawn` that `fit` makes about this one of: what is drawn over it comes out in its place.

    Where `fit` will cut something off, the edges are continued; where it will continue them, they are cut off.
    """
    return _fit(pixels, drawn, continues=cut_share(pixels.size, drawn) <= MAX_CUT)


def fit_preview(preview: Pixels, asked: Size) -> Pixels:
    """The preview in the shape asked for: cut, or its edges continued, as `fit` does with the whole picture."""
    continues = cut_share(preview.size, asked) > MAX_CUT
    return _fit(preview, preview_size(asked, preview.size), continues=continues)


def _fit(pixels: Pixels, size: Size, *, continues: bool) -> Pixels:
    if pixels.size == size:
        return pixels
    image = to_image(pixels)
    if continues:
        image = _continued_to(image, size.ratio)
    box = _centre_box(image, size)
    fitted = image.resize((size.width, size.height), SCALED, box=box)
    scale = size.width / (box[2] - box[0])
    return from_image(fitted if scale <= 1 else _sharpened(fitted, image, box, scale))


def fit_reference(pixels: Pixels, area: int, multiple: int) -> Pixels:
    """A picture that networks look at: made smaller where it has more pixels than `area`, cut to multiples of a side.

    Equal to what diffusers' pipelines for FLUX.2 make of it. What is smaller than one multiple is filled up with black.
    """
    image = to_image(pixels)
    scale = math.sqrt(area / pixels.size.area)
    if scale < 1:
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    width, height = (max(multiple, side // multiple * multiple) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return from_image(image.crop((left, top, left + width, top + height)))


def sha256(pixels: Pixels) -> str:
    """Hex digest over the RGB bytes: equal pixels, whatever file they are later written to."""
    return hashlib.sha256(pixels.data).hexdigest()


def to_image(pixels: Pixels) -> Image.Image:
    """As a Pillow picture."""
    return Image.frombytes("RGB", (pixels.size.width, pixels.size.height), pixels.data)


def from_image(image: Image.Image) -> Pixels:
    """From a Pillow picture in RGB."""
    return Pixels(size=Size(image.width, image.height), data=image.tobytes())


def continue_edges(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """`image` with so many more pixels on each side: its outermost columns, then its outermost rows, repeated."""
    wide = Image.new("RGB", (left + image.width + right, image.height))
    wide.paste(image, (left, 0))
    for x, begin, width in ((0, 0, left), (image.width - 1, left + image.width, right)):
        if width:
            wide.paste(image.crop((x, 0, x + 1, image.height)).resize((width, image.height)), (begin, 0))
    whole = Image.new("RGB", (wide.width, top + wide.height + bottom))
    whole.paste(wide, (0, top))
    for y, begin, height in ((0, 0, top), (wide.height - 1, top + wide.height, bottom)):
        if height:
            whole.paste(wide.crop((0, y, wide.width, y + 1)).resize((wide.width, height)), (0, begin))
    return whole


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


def _continued_to(image: Image.Image, ratio: float) -> Image.Image:
    """`image` in the middle of a wider or taller picture of about `ratio`, its outermost rows or columns repeated."""
    w, h = image.size
    width, height = max(w, math.ceil(h * ratio)), max(h, math.ceil(w / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return continue_edges(image, left, top, width - w - left, height - h - top)
