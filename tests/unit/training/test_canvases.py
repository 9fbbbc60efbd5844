"""The canvases that are trained: all that the finished checkpoint's card promises."""

from itertools import pairwise

import pytest

from training.canvases import LARGE, MEDIUM, SMALL, canvases

AREAS = (SMALL, MEDIUM, LARGE)


@pytest.mark.parametrize("area", AREAS)
def test_canvases_are_multiples_of_64_near_the_area_from_tall_to_wide(area: int) -> None:
    square, *others = canvases(area)
    assert square == (area**0.5, area**0.5)
    assert len(set(others)) == len(others) >= 8
    assert all(side % 64 == 0 for canvas in others for side in canvas)
    assert all(0.68 < height * width / area < 1.52 for height, width in others)
    assert {(width, height) for height, width in others} == set(others)
    ratios = [width / height for height, width in others]
    assert ratios[0] <= 3 / 5
    assert ratios[-1] >= 5 / 3
    assert all(one <= other for one, other in pairwise(ratios))
