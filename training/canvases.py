"""The canvases that mini learns: a shorter side of 512 or 1024 pixels, and shapes from 1:2 to 2:1.

Where tokens cut a thing into other pieces, it is learnt anew. So canvases of one area share the shorter side, and the
longer one is longer by pairs of tokens: what stands in the middle is cut as on the square.
What it does not know: what is painted on them.
"""

from __future__ import annotations

from functools import cache

#: Height, width in pixels.
Canvas = tuple[int, int]

#: Pixels of the canvas to a token of the network, one way.
TOKEN = 128
#: How many times smaller than the canvas its pictures are painted for the latents' code, one way.
SHRUNK = 4
SMALL, LARGE = 512**2, 1024**2
_SHORT = {SMALL: 4, LARGE: 8}  # tokens


@cache
def canvases(area: int) -> tuple[Canvas, ...]:
    """Those of the small area (SMALL) or the large one (LARGE), the square of that area first."""
    short = _SHORT[area]
    sides = [(short * TOKEN, long * TOKEN) for long in range(short, 2 * short + 1, 2)]
    found = {canvas for short, long in sides for canvas in ((short, long), (long, short))}
    return tuple(sorted(found, key=lambda canvas: _order(canvas, area)))


def _order(canvas: Canvas, area: int) -> tuple[bool, float, int]:
    height, width = canvas
    return height * width != area or height != width, width / height, height
