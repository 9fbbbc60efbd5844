"""Native sizes: the sizes a checkpoint learnt, and which of them a picture of any size is best drawn at.

A drawn picture is fitted to the size asked for (see pixels.fit): scaled, a little cut off it, or, where that would
be too much, its edges continued.
What it does not know: checkpoints, files, pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

from fluxserve.catalogue import Size
from fluxserve.catalogue.sizes import cut_share

#: Largest share of a drawn picture that may be cut off to make it fit; beyond it the edges are continued.
MAX_CUT = 0.19
#: What a cut costs beside an enlargement: 1 % cut away is as bad as sides drawn 3 % too small.
_CUT_WEIGHT = 3.0

NativeSizes = tuple[Size, ...]


@lru_cache(maxsize=1024)
def nearest(native: NativeSizes, size: Size) -> Size:
    """The one to draw a picture of `size` at; there has to be one.

    Of those that fit without continued edges, the one that is cut and scaled least.
    """

    def loss(drawn: Size) -> tuple[bool, float]:
        cut = cut_share(drawn, size)
        scaled = abs(math.log(drawn.area / size.area)) / 2
        return cut > MAX_CUT, scaled - _CUT_WEIGHT * math.log(1 - cut)

    return min(native, key=loss)
