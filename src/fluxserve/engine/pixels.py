"""Pixels to files: fit a drawn picture to the size asked for, check it, encode it with the truth about its origin.

Needs Pillow only. The same pixels always make the same bytes: no time, host or task is written into a file.
What it does not know: how a picture was drawn, where its file goes.
"""

from __future__ import annotations

import hashlib
from io import BytesIO

from PIL import Image, PngImagePlugin

from fluxserve.catalogue import OutputFormat, Size
from fluxserve.engine.base import Pixels
from fluxserve.errors import BadPicture

QUALITY = 95
#: Largest difference, in steps of 1/255, between the pixels of a picture that counts as one colour.
ONE_COLOUR = 2
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


def fit(pixels: Pixels, size: Size) -> Pixels:
    """The picture at exactly `size`: scaled (Lanczos) until it covers it, what sticks out cut off evenly."""
    if pixels.size == size:
        return pixels
    scale = max(size.width / pixels.size.width, size.height / pixels.size.height)
    width, height = size.width / scale, size.height / scale
    left, top = (pixels.size.width - width) / 2, (pixels.size.height - height) / 2
    # Rounding may put the box a hair outside the picture, which Pillow refuses.
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + width, float(pixels.size.width)),
        min(top + height, float(pixels.size.height)),
    )
    image = to_image(pixels).resize((size.width, size.height), Image.Resampling.LANCZOS, box=box)
    return from_image(image)


def refuse_one_colour(pixels: Pixels) -> None:
    """Raise BadPicture when all pixels are the same colour, or nearly."""
    extremes = to_image(pixels).getextrema()
    if all(isinstance(band, tuple) and band[1] - band[0] <= ONE_COLOUR for band in extremes):
        raise BadPicture("The picture came out in one colour.")


def sha256(pixels: Pixels) -> str:
    """Hex digest over the RGB bytes: equal pixels, whatever file they are later written to."""
    return hashlib.sha256(pixels.data).hexdigest()


def to_image(pixels: Pixels) -> Image.Image:
    """As a Pillow picture."""
    return Image.frombytes("RGB", (pixels.size.width, pixels.size.height), pixels.data)


def from_image(image: Image.Image) -> Pixels:
    """From a Pillow picture in RGB."""
    return Pixels(size=Size(image.width, image.height), data=image.tobytes())
