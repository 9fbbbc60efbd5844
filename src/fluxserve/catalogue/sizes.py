"""Sizes: aspect ratios to pixels, and megapixels. Always (width, height), in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Ultra draws about four megapixels.
ULTRA_AREA = 2048 * 2048
#: The sizes the hosted ultra answers for common ratios; their transposes follow.
_ULTRA_SIZES = {(21, 9): (3136, 1344), (16, 9): (2752, 1536), (3, 2): (2496, 1664), (4, 3): (2368, 1792)}
#: The sizes of about a megapixel that Kontext learnt; their transposes follow.
_KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height

    @property
    def ratio(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def megapixels(self) -> float:
        """Millions of pixels, two decimals, as the published API counts `output_mp`."""
        return round(self.area / 1e6, 2)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_ratio(text: str) -> tuple[int, int]:
    """`"16:9"` -> (16, 9); the text was checked against RATIO_PATTERN before."""
    width, height = text.split(":")
    return int(width), int(height)


def cut_share(one: Size, other: Size) -> float:
    """The share that is cut off a picture of one size to give it the shape of the other; either way the same."""
    less, more = sorted((one.width * other.height, other.width * one.height))
    return 1 - less / more


def ultra_size(ratio: str) -> Size:
    """The size ultra draws for `ratio`: the hosted table where it has a row, else the area in multiples of 32."""
    width, height = parse_ratio(ratio)
    divisor = math.gcd(width, height)
    wide, tall = width // divisor, height // divisor
    for (known_wide, known_tall), pixels in _ULTRA_SIZES.items():
        known = math.gcd(known_wide, known_tall)
        if (wide, tall) == (known_wide // known, known_tall // known):
            return Size(*pixels)
        if (tall, wide) == (known_wide // known, known_tall // known):
            return Size(*reversed(pixels))
    return fit_area(ULTRA_AREA, wide / tall, multiple=32)


def kontext_size(ratio: float) -> Size:
    """The size that Kontext learnt whose shape is nearest to `ratio` (width over height)."""
    sizes = [Size(*sides) for one in _KONTEXT_SIZES for sides in (one, one[::-1])]
    return min(sizes, key=lambda size: abs(math.log(size.ratio / ratio)))


def rounded_down(size: Size, multiple: int) -> Size:
    """Each side cut down to a multiple of `multiple`."""
    return Size(size.width - size.width % multiple, size.height - size.height % multiple)


def shrunk(size: Size, most: int) -> Size:
    """The size itself, or the one of its shape whose longer side is `most`."""
    scale = min(1.0, most / max(size.width, size.height))
    return Size(round(size.width * scale), round(size.height * scale))


def fit_area(area: int, ratio: float, *, multiple: int) -> Size:
    """The size of about `area` pixels and about `ratio` (width over height) in multiples of `multiple`.

    Of the sizes whose sides are the rounded-down or rounded-up ideal sides, the one whose ratio is
    nearest (in log) is taken, and among equals the one of nearest area.
    """
    ideal_width = math.sqrt(area * ratio)
    ideal_height = math.sqrt(area / ratio)
    sides = [
        Size(width * multiple, height * multiple)
        for width in _around(ideal_width / multiple)
        for height in _around(ideal_height / multiple)
    ]
    return min(sides, key=lambda size: (abs(math.log(size.ratio / ratio)), abs(math.log(size.area / area))))


def _around(value: float) -> tuple[int, ...]:
    return tuple(sorted({max(1, math.floor(value)), max(1, math.ceil(value))}))
