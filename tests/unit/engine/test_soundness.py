"""Which numbers are a picture."""

from __future__ import annotations

import pytest
import torch

from fluxserve.engine.soundness import check_finite, check_picture
from fluxserve.errors import BadPicture


def flat(level: float) -> torch.Tensor:
    """A picture that is the same everywhere."""
    return torch.full((1, 3, 64, 64), level)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_spoils_a_picture(number: float) -> None:
    levels = torch.rand(1, 3, 8, 8)
    check_picture(levels)
    levels[0, 1, 2, 3] = number
    with pytest.raises(BadPicture):
        check_finite(levels)
    with pytest.raises(BadPicture):
        check_picture(levels)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.3, 7.0])
def test_a_picture_whose_pixels_are_all_the_same_to_the_bit_is_refused(level: float) -> None:
    with pytest.raises(BadPicture):
        check_picture(flat(level))
    colours = flat(level) * torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1, 1)
    with pytest.raises(BadPicture):
        check_picture(colours)


def test_a_white_wall_is_a_picture_even_where_all_of_it_is_rounded_to_the_same_white() -> None:
    wall = flat(1.5)
    wall[0, 0, 5, 5] += 1e-6
    check_picture(wall)
