"""The canvases that mini learns: every size in multiples of 64 from 192 x 256 to 384 x 704 pixels and its shapes.

What it does not know: what is painted on them.
"""

from __future__ import annotations

import math
from functools import cache

#: Height, width in pixels.
Canvas = tuple[int, int]

SMALL, MEDIUM, LARGE = 256**2, 384**2, 512**2
_CELL = 64
_LEAST, _MOST = 192 * 256, 384 * 704
_WIDEST = 11 / 6  # and as much in height: a little more than 16:9


@cache
def canvases(area: int) -> tuple[Canvas, ...]:
    """Those that are nearer to `area` (SMALL, MEDIUM or LARGE) than to the others, the square of that area first."""
    return tuple(
        sorted((canvas for canvas in _all() if _nearest(canvas) == area), key=lambda canvas: _order(canvas, area))
    )


def _all() -> list[Canvas]:
    sides = range(_CELL, _MOST // _CELL + 1, _CELL)
    return [
        (height, width)
        for height in sides
        for width in sides
        if _LEAST <= height * width <= _MOST and max(height / width, width / height) <= _WIDEST
    ]


def _nearest(canvas: Canvas) -> int:
    return min((SMALL, MEDIUM, LARGE), key=lambda area: abs(math.log(canvas[0] * canvas[1] / area)))


def _order(canvas: Canvas, area: int) -> tuple[bool, float]:
    height, width = canvas
    return height * width != area or height != width, width / height
