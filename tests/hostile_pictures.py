"""Hostile pictures for tests: good files that chance has spoilt, and bombs.

A file is taken apart into its pieces (chunks of a PNG or WebP, segments of a JPEG), these are spoilt, moved and mixed
with those of other files, and checksums are made good again in half of the files, so that the damage gets further in.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from sample_pictures import file_of, picture

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
#: What headers are made to claim: nothing, the edges of what is allowed, the largest that there is room for.
_NUMBERS = (0, 1, 63, 64, 8192, 8193, 16383, 20_000, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1)
#: Where a piece keeps its sizes and kinds: offset, bytes, order.
_FIELDS: dict[bytes, tuple[tuple[int, int, str], ...]] = {
    b"IHDR": ((0, 4, ">"), (8, 4, ">"), (12, 4, ">"), (16, 1, ">"), (17, 1, ">"), (20, 1, ">")),
    b"IDAT": ((0, 4, ">"),),
    b"PLTE": ((0, 4, ">"),),
    b"VP8X": ((4, 4, "<"), (8, 1, "<"), (12, 3, "<"), (15, 3, "<")),
    b"VP8L": ((4, 4, "<"), (9, 4, "<")),
    b"VP8 ": ((4, 4, "<"), (14, 2, "<"), (16, 2, "<")),
    b"ALPH": ((4, 4, "<"), (8, 1, "<")),
    b"\xff\xc0": ((2, 2, ">"), (5, 2, ">"), (7, 2, ">"), (9, 1, ">"), (11, 1, ">"), (14, 1, ">")),
    b"\xff\xc2": ((2, 2, ">"), (5, 2, ">"), (7, 2, ">"), (9, 1, ">"), (11, 1, ">"), (14, 1, ">")),
    b"\xff\xc4": ((2, 2, ">"), (4, 1, ">")),
    b"\xff\xdb": ((2, 2, ">"), (4, 1, ">")),
    b"\xff\xda": ((2, 2, ">"), (4, 1, ">")),
}


def good_files() -> list[bytes]:
    """Small pictures of every kind that is read, with what comes along in such files."""
    noise = Image.effect_noise((96, 72), 80).convert("RGB")
    clear = picture(80, 64, mode="RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif, info = Image.Exif(), PngInfo()
    exif[0x0112] = 6
    info.add_text("comment", "words " * 40, zip=True)
    along = {"exif": exif, "icc_profile": profile}
    return [
        file_of(noise, "PNG", pnginfo=info, **along),
        file_of(clear, "PNG"),
        file_of(clear.quantize(16), "PNG", transparency=3),
        file_of(Image.new("I;16", (64, 64), 5000), "PNG"),
        file_of(noise.convert("1"), "PNG"),
        file_of(noise, "JPEG", **along),
        file_of(noise, "JPEG", progressive=True, subsampling=0),
        file_of(noise, "JPEG", restart_marker_blocks=2),
        file_of(noise.convert("CMYK"), "JPEG"),
        file_of(noise, "MPO", save_all=True, append_images=[picture(96, 72)]),
        file_of(noise, "WEBP", **along),
        file_of(noise, "WEBP", lossless=True),
        file_of(clear, "WEBP", quality=50),
        file_of(clear, "WEBP", save_all=True, append_images=[picture(80, 64)], duration=100),
    ]


def pieces(file: bytes) -> list[bytes]:
    """A good file in its pieces; joined they are the file."""
    at, size_of = _walk(file)
    found = [file[:at]]
    while at < len(file):
        found.append(file[at : at + size_of(at)])
        at += size_of(at)
    return found


def _walk(file: bytes) -> tuple[int, Callable[[int], int]]:
    """Where the first piece begins, and how long the one at a place is."""
    if file.startswith(_PNG):
        return 8, lambda at: 12 + int.from_bytes(file[at : at + 4], "big")
    if file.startswith(_JPEG):  # the scans, which no length stands before, are one piece with all that follows
        return 2, lambda at: len(file) if file[at + 1] == 0xDA else 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return 12, lambda at: 8 + (length := int.from_bytes(file[at + 4 : at + 8], "little")) + length % 2


def spoilt(rng: random.Random, files: Sequence[bytes]) -> bytes:
    """One of the good files, changed in one to three ways."""
    parts = pieces(rng.choice(files))
    for _ in range(rng.randint(1, 3)):
        rng.choice((_flip, _flip, _spoil_rows, _claim, _splice))(rng, parts, files)
    if rng.random() < 0.5:
        parts = _mended(parts)
    file = b"".join(parts)
    if rng.random() < 0.25:  # the end is missing, or something from the middle
        start = rng.randrange(1, len(file))
        file = file[:start] + (b"" if rng.random() < 0.5 else file[start + rng.randint(1, 400) :])
    return file


def _flip(rng: random.Random, parts: list[bytes], _: Sequence[bytes]) -> None:
    """Single bits of one piece, or whole bytes."""
    which = rng.choice(range(len(parts))[1:] or (0,))  # a signature that is spoilt ends it too soon
    parts[which] = _flipped(rng, parts[which])


def _flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        at = rng.randrange(min(len(changed), rng.choice((24, 10**6))))
        changed[at] ^= 1 << rng.randrange(8) if rng.random() < 0.7 else rng.randrange(256)
    return bytes(changed)


def _spoil_rows(rng: random.Random, parts: list[bytes], files: Sequence[bytes]) -> None:
    """What a chunk of a PNG has packed; what packs nothing is spoilt as it is."""
    packed = [which for which, part in enumerate(parts) if part[4:8] == b"IDAT"]
    if not packed:
        return _flip(rng, parts, files)
    which = rng.choice(packed)
    try:
        rows = zlib.decompress(parts[which][8:-4])
    except zlib.error:  # spoilt already
        return None
    rows = _flipped(rng, rows) + rng.choice((b"", bytes(rng.choice((1, 4096, 10**6)))))
    parts[which] = chunk(b"IDAT", zlib.compress(rows))
    return None


def _claim(rng: random.Random, parts: list[bytes], files: Sequence[bytes]) -> None:
    """A header says that there is more, or something else, than there is."""
    known = [(which, kind) for which, part in enumerate(parts) for kind in (part[4:8], part[:4], part[:2])]
    known = [(which, kind) for which, kind in known if kind in _FIELDS]
    if not known:
        return _flip(rng, parts, files)
    which, kind = rng.choice(known)
    offset, size, order = rng.choice(_FIELDS[kind])
    number = rng.choice(_NUMBERS) & (256**size - 1)
    parts[which] = (
        parts[which][:offset]
        + number.to_bytes(size, "big" if order == ">" else "little")
        + parts[which][offset + size :]
    )
    return None


def _splice(rng: random.Random, parts: list[bytes], files: Sequence[bytes]) -> None:
    """A piece of this or another file is put somewhere, often, or one is taken out."""
    if rng.random() < 0.3 and len(parts) > 1:
        parts.pop(rng.randrange(len(parts)))
        return
    given = rng.choice(parts if rng.random() < 0.5 else pieces(rng.choice(files)))
    at = rng.randint(1, len(parts))
    parts[at:at] = [given] * rng.choice((1, 1, 2, 50))


def _mended(parts: list[bytes]) -> list[bytes]:
    """Checksums of a PNG and the length of a WebP made good, so that a reader has no easy reason to stop."""
    if parts[0] == _PNG:
        return [part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4])) if len(part) >= 12 else part for part in parts]
    if parts[0][:4] == b"RIFF":
        return [b"RIFF" + struct.pack("<I", sum(map(len, parts)) - 8) + b"WEBP", *parts[1:]]
    return parts


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, rows: bytes = b"") -> bytes:
    """A PNG of 8 bits of RGB with these packed rows, and `more` chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return _PNG + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp(kind: bytes, data: bytes) -> bytes:
    """A WebP of one chunk."""
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def packing(kind: bytes, size: int) -> bytes:
    """A PNG with a text or a profile that unpacks to so many bytes."""
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    return png(64, 64, chunk(kind, head + zlib.compress(bytes(size))), rows=bytes(64 * 193))


def bombs() -> dict[str, tuple[bytes, str]]:
    """Small files that claim much, or unpack to much, by what they do; and how each is refused."""
    jpeg = file_of(picture(640, 480), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    frame = jpeg.index(b"\xff\xc2") + 5
    canvas = (16382).to_bytes(3, "little") * 2

    def sized(width: int, height: int) -> bytes:
        return jpeg[:frame] + struct.pack(">HH", height, width) + jpeg[frame + 4 :]

    return {
        "a PNG of 2.5 gigapixels": (png(50_000, 50_000), "50000x50000"),
        "a PNG of the largest size there is": (png(2**31 - 1, 2**31 - 1), "2147483647x2147483647"),
        "a PNG that is one pixel too wide": (png(8193, 64), "8193x64"),
        "a PNG of 20 megapixels and of nothing": (png(5000, 4000), "cut off"),
        "a PNG whose text unpacks to 64 MiB": (packing(b"zTXt", 2**26), "damaged"),
        "a PNG whose other text does": (packing(b"iTXt", 2**26), "damaged"),
        "a PNG whose profile does": (packing(b"iCCP", 2**26), "damaged"),
        "a PNG of a billion frames": (png(64, 64, chunk(b"acTL", struct.pack(">II", 10**9, 0))), "move"),
        "a JPEG of four gigapixels": (sized(65_535, 65_535), "65535x65535"),
        "a JPEG of 20 megapixels and of little": (sized(5000, 4000)[: frame + 200], "cut off"),
        "a JPEG of 5,000 scans": (jpeg[:-2] + 5000 * scan + jpeg[-2:], "too many scans"),
        "a lossless WebP of 268 megapixels": (
            webp(b"VP8L", b"\x2f" + struct.pack("<I", 16382 | 16382 << 14) + bytes(51)),
            "damaged",
        ),
        "a lossy one": (
            webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(100)),
            "damaged",
        ),
        "a canvas of as many": (webp(b"VP8X", bytes(4) + canvas), "damaged"),
        "a WebP that moves on such a canvas": (webp(b"VP8X", b"\2" + bytes(3) + canvas), "move"),
        "a GIF of four gigapixels": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(3) + b";", "no PNG"),
    }
