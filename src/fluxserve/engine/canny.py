"""Canny's edges, as OpenCV finds them with a 3 x 3 Sobel filter: what control networks were trained on.

Thresholds are of |dx| + |dy|, in whole levels of 0 to 255. Source: Canny 1986. There is no blur before.
What it does not know: networks, requests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fluxserve.engine.base import Pixels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Tangents of 22.5 and 67.5 degrees: between them an edge runs along a diagonal.
_FLAT, _STEEP = math.tan(math.pi / 8), math.tan(3 * math.pi / 8)
_NEIGHBOURS = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right)


def edges(picture: Pixels, low: float, high: float) -> Pixels:
    """White where there is an edge: a ridge over `high`, or over `low` and joined to such a one; else black."""
    import numpy as np

    levels = np.frombuffer(picture.data, dtype=np.uint8).reshape(picture.size.height, picture.size.width, 3)
    dx, dy = _gradients(levels.astype(np.int32))
    low, high = sorted((math.floor(low), math.floor(high)))
    size = np.abs(dx) + np.abs(dy)
    ridges = _ridges(dx, dy, size) & (size > low)
    found = _joined(ridges, ridges & (size > high))
    white = np.repeat(found[..., None], 3, axis=2).astype(np.uint8) * 255
    return Pixels(size=picture.size, data=white.tobytes())


def _gradients(levels: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(height, width) each: of the three colours' the one that is steepest there, and of equal ones the first."""
    import numpy as np

    wide = np.pad(levels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    smooth_across = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    dx, dy = smooth_down[:, 2:] - smooth_down[:, :-2], smooth_across[2:] - smooth_across[:-2]
    steepest = np.argmax(np.abs(dx) + np.abs(dy), axis=2)[..., None]
    return np.take_along_axis(dx, steepest, 2)[..., 0], np.take_along_axis(dy, steepest, 2)[..., 0]


def _ridges(dx: NDArray[np.int32], dy: NDArray[np.int32], size: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Where the gradient is larger than before and not smaller than behind, along its direction; none outside."""
    import numpy as np

    around = np.pad(size, 1)
    height, width = size.shape

    def beside(down: int, right: int) -> NDArray[np.int32]:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    across, along = np.abs(dx), np.abs(dy)
    flat, steep = along < _FLAT * across, along > _STEEP * across
    falls = (dx ^ dy) < 0
    before = np.select([flat, steep, falls], [beside(0, -1), beside(-1, 0), beside(-1, 1)], beside(-1, -1))
    behind = np.select([flat, steep, falls], [beside(0, 1), beside(1, 0), beside(1, -1)], beside(1, 1))
    upright = (size > before) & (size >= behind)
    diagonal = (size > before) & (size > behind)
    return np.where(flat | steep, upright, diagonal)


def _joined(ridges: NDArray[np.bool_], strong: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ridges that a way over neighbouring ridges joins to a strong one."""
    import numpy as np

    # One pixel after the other, each once: however a way winds, it takes no longer than its pixels.
    left, found = bytearray(np.pad(ridges & ~strong, 1).tobytes()), np.pad(strong, 1)
    width = found.shape[1]
    steps = [down * width + right for down, right in _NEIGHBOURS]
    reached = np.flatnonzero(found).tolist()
    joined = []
    while reached:
        place = reached.pop()
        for step in steps:
            if left[place + step]:
                left[place + step] = 0
                joined.append(place + step)
                reached.append(place + step)
    found.flat[joined] = True
    return found[1:-1, 1:-1]
