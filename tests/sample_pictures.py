"""Small pictures for tests, as callers send them."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image


def picture(width: int = 64, height: int = 64, colour: str = "red", mode: str = "RGB") -> Image.Image:
    """One colour, but for its upper left quarter, which is blue."""
    made = Image.new("RGB", (width, height), colour)
    made.paste("blue", (0, 0, width // 2, height // 2))
    return made.convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file of this kind."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def text_of(file: bytes) -> str:
    """The file as base64."""
    return base64.b64encode(file).decode()


#: As small as FLUX.1 takes them.
PNG = text_of(file_of(picture(256, 256)))
