"""The canvases that are trained: all that the finished checkpoint's card promises."""

from itertools import pairwise

import pytest

from training.canvases import LARGE, SMALL, TOKEN, canvases

AREAS = (SMALL, LARGE)


@pytest.mark.parametrize("area", AREAS)
def test_canvases_are_whole_tokens_near_the_area_from_tall_to_wide(area: int) -> None:
    square, *others = canvases(area)
    assert square == (area**0.5, area**0.5)
    assert len(set(others)) == len(others) >= 11
    assert all(side % TOKEN == 0 for canvas in others for side in canvas)
    assert all(0.4 < height * width / area < 2 for height, width in others)
    assert {(width, height) for height, width in others} == set(others)
    ratios = [width / height for height, width in others]
    assert ratios[0] <= 4 / 7
    assert ratios[-1] >= 7 / 4
    assert all(one <= other for one, other in pairwise(ratios))


def test_no_canvas_is_of_both_areas() -> None:
    assert set(canvases(SMALL)).isdisjoint(canvases(LARGE))
