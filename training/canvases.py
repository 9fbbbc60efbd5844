"""The canvases that mini learns: a shorter side of 512 or 1024 pixels, and shapes from 1:2 to 2:1.

Where tokens cut a thing into other pieces, it is learnt anew. So canvases of one area share the shorter side, and the
longer one is longer by pairs of tokens: what stands in the middle is cut as on the square.
What it does not know: what is painted on them.
"""

from __future__ import annotations

import math
from functools import cache

#: Height, width in pixels.
Canvas = tuple[int, int]

#: Pixels of the canvas to a token of the network, one way.
TOKEN = 128
#: How many times smaller than the canvas its pictures are painted for the latents' code, one way.
SHRUNK = 4
SMALL, LARGE = 512**2, 1024**2
SQUARE: Canvas = (512, 512)


@cache
def canvases(area: int) -> tuple[Canvas, ...]:
    """Those of the small area (SMALL) or the large one (LARGE), the square of that area first, then by their shape."""
    short = math.isqrt(area)
    longer = range(short + 2 * TOKEN, 2 * short + 1, 2 * TOKEN)
    others = [canvas for long in longer for canvas in ((short, long), (long, short))]
    return ((short, short), *sorted(others, key=lambda canvas: canvas[1] / canvas[0]))
