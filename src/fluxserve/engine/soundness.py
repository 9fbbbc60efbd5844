"""Whether numbers are a picture: all of them finite, and not one colour to the bit.

A plain picture is a picture. A white wall may come out as pure white once its numbers are rounded, so what is compared
is what the decoder said, before rounding: only a decoder that reads nothing says exactly the same for every pixel.
What it does not know: why a picture is bad, what is done about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxserve.errors import BadPicture

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(numbers: Tensor) -> None:
    """Raise BadPicture where one of `numbers` is infinite or none."""
    if not bool(numbers.isfinite().all()):
        raise BadPicture("The picture's numbers ran out of range.")


def check_picture(decoded: Tensor) -> None:
    """Raise BadPicture for decoded levels (1, channels, height, width) that are out of range or all the same."""
    check_finite(decoded)
    lowest, highest = decoded.amin(dim=(2, 3)), decoded.amax(dim=(2, 3))
    if lowest.equal(highest):
        raise BadPicture("The picture came out in one colour.")
