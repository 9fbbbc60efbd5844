"""Files that callers send as pictures, to plain pixels: what there is to see, and nothing else that came with it.

Run in a process of its own (see `decoder`), for the files are anybody's. What leaves is RGB of 8 bits, upright, in sRGB
as far as the file says what it is in. An alpha channel becomes a mask where one is wanted, else white shines through.
What it does not know: requests, tasks, models.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import zlib
from contextlib import suppress
from io import BytesIO

from PIL import Image, ImageChops, ImageCms, PngImagePlugin, UnidentifiedImageError

from fluxserve.catalogue.params import MAX_FILE
from fluxserve.delivery.decoding import Decoded, File, Unreadable

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_AREA = 20_000_000
MAX_SIDE = 8192
MIN_SIDE = 64
#: Bytes of a PNG's texts, unpacked: of each, and of all together. Nobody reads them.
_MAX_TEXT = 2**18
#: What a scan of a JPEG begins with. Each goes over the whole picture; an encoder writes about ten, a bomb thousands.
_SCAN = b"\xff\xda"
_MAX_SCANS = 100
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = frozenset({5, 6, 7, 8})
#: Fast, and for photographs as small as any.
_COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}


def decode(text: bytes, *, max_area: int | None, with_mask: bool) -> Decoded:
    """The picture in a text of base64, perhaps in a data URI. Raises Unreadable.

    One of more than `max_area` pixels is shrunk to so many. `with_mask`: an alpha channel is a mask.
    """
    return decode_file(file_of(text), max_area=max_area, with_mask=with_mask)


def decode_file(file: bytes, *, max_area: int | None, with_mask: bool) -> Decoded:
    """The same of the file itself."""
    try:
        return _decode(file, max_area, with_mask=with_mask)
    except (Unreadable, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever a library stumbles over, it is the file's fault
        raise Unreadable("This picture is damaged or cut off") from None


def measure_file(file: bytes, *, max_area: int | None, with_mask: bool) -> Decoded:
    """How large `decode_file` would make it, by its header: without pixels. Raises Unreadable.

    `with_mask`: a file that could hold an alpha channel is taken to have a mask.
    """
    try:
        image = _opened(file)
        width, height = _fitted(*image.size, max_area)
        if _orientation_of(image) in _SWAPPED:
            width, height = height, width
        has_alpha = image.has_transparency_data and image.mode != "I;16"
    except (Unreadable, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever a library stumbles over, it is the file's fault
        raise Unreadable("This picture is damaged or cut off") from None
    measured = File(width=width, height=height, sha256="", png=b"")
    return Decoded(picture=measured, mask=measured if with_mask and has_alpha else None)


def _decode(file: bytes, max_area: int | None, *, with_mask: bool) -> Decoded:
    image = _upright(_read(file))
    alpha = _alpha_of(image)
    if alpha is None:
        return Decoded(picture=_written(_shrunk(_to_rgb(image), max_area)))
    colours = _to_rgb(image.convert("RGBA"))
    if with_mask:
        mask = _shrunk(ImageChops.invert(alpha), max_area)
        return Decoded(picture=_written(_shrunk(colours, max_area)), mask=_written(mask.convert("RGB")))
    white = Image.new("RGB", image.size, "white")
    white.paste(colours, mask=alpha)
    return Decoded(picture=_written(_shrunk(white, max_area)))


def file_of(text: bytes) -> bytes:
    """The file in a text of base64, perhaps in a data URI. Raises Unreadable."""
    if text[:5].lower() == b"data:":
        head, comma, text = text.partition(b",")
        if not (comma and head.lower().endswith(b";base64")):
            raise Unreadable("A data URI of a picture should be data:image/png;base64, and then base64")
    packed = text.translate(None, b" \t\r\n").rstrip(b"=")
    try:
        file = binascii.a2b_base64(packed + b"=" * (-len(packed) % 4), strict_mode=True)
    except binascii.Error:
        raise Unreadable("This is not base64") from None
    return file


def _read(file: bytes) -> Image.Image:
    """The one picture in the file, unpacked."""
    image = _opened(file)
    image.load()
    return image


def _opened(file: bytes) -> Image.Image:
    """The one picture in the file, still packed; whatever can be known without unpacking it is judged."""
    if len(file) > MAX_FILE:
        raise Unreadable(f"A picture's file should be at most {MAX_FILE // 10**6} MB")
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT
    Image.MAX_IMAGE_PIXELS = None  # the sizes are judged here
    if _is_moving_webp(file):
        raise Unreadable("A picture should not move")
    try:
        image = Image.open(BytesIO(file), formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable("This is no PNG, JPEG or WebP, or it is damaged") from None
    _check_size(*image.size)
    # Phones append a second picture to a JPEG (MPO), where the first is the one that was taken.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Unreadable("A picture should not move")
    if image.format in ("JPEG", "MPO") and file.count(_SCAN) > _MAX_SCANS:
        raise Unreadable("This JPEG has too many scans: save it again as a usual one")
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_AREA or max(width, height) > MAX_SIDE:
        raise Unreadable(
            f"A picture should have at most {MAX_AREA // 10**6} megapixels and {MAX_SIDE} pixels a side; "
            f"this one is {width}x{height}"
        )
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"A picture should have at least {MIN_SIDE} pixels a side; this one is {width}x{height}")


def _is_moving_webp(file: bytes) -> bool:
    """By the header: the library makes room for every frame of it as soon as it looks."""
    return file[:4] == b"RIFF" and file[8:16] == b"WEBPVP8X" and len(file) > 20 and bool(file[20] & 2)


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held."""
    turn = _UPRIGHT.get(_orientation_of(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _orientation_of(image: Image.Image) -> int:
    with suppress(Exception):  # EXIF that nobody can read says nothing
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _alpha_of(image: Image.Image) -> Image.Image | None:
    """The alpha channel, unless nothing shines through."""
    if not (image.has_transparency_data and image.mode != "I;16"):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = image.convert("I").tobytes()
        return Image.frombytes("L", image.size, grey[1::4]).convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        with suppress(Exception):  # a profile that is damaged or of another kind: its numbers are taken as they are
            return _in_srgb(image, ImageCms.ImageCmsProfile(BytesIO(profile)))
    return image.convert("RGB")


def _in_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    if "srgb" in ImageCms.getProfileDescription(profile).lower():
        return image.convert("RGB")  # not a bit is to change
    plain = image.convert("RGB") if image.mode == "RGBA" else image
    converted = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # noqa: S101 - for the type checker; it was not asked to change the picture itself
    return converted


def _shrunk(image: Image.Image, max_area: int | None) -> Image.Image:
    size = _fitted(*image.size, max_area)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _fitted(width: int, height: int, max_area: int | None) -> tuple[int, int]:
    area = width * height
    if max_area is None or area <= max_area:
        return width, height
    scale = math.sqrt(max_area / area)
    return max(1, int(width * scale)), max(1, int(height * scale))


def _written(image: Image.Image) -> File:
    plain = Image.frombytes("RGB", image.size, data := image.tobytes())
    file = BytesIO()
    plain.save(file, "PNG", **_COMPRESSION)
    return File(width=image.width, height=image.height, sha256=hashlib.sha256(data).hexdigest(), png=file.getvalue())
