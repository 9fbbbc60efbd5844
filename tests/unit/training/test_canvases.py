"""The canvases that are trained: all that the finished checkpoint's card promises."""

from itertools import pairwise

import pytest

from fluxserve import mini
from fluxserve.engine.checkpoints import find
from training.canvases import LARGE, SMALL, TOKEN, canvases

AREAS = (SMALL, LARGE)


@pytest.mark.parametrize("area", AREAS)
def test_canvases_have_the_areas_side_as_their_shorter_one_from_tall_to_wide(area: int) -> None:
    square, *others = canvases(area)
    assert square == (area**0.5, area**0.5)
    assert len(set(others)) == len(others) >= 4
    assert all(side % TOKEN == 0 for canvas in others for side in canvas)
    assert all(min(canvas) == square[0] for canvas in others)
    assert all((max(canvas) - square[0]) % (2 * TOKEN) == 0 for canvas in others)
    assert {(width, height) for height, width in others} == set(others)
    ratios = [width / height for height, width in others]
    assert (ratios[0], ratios[-1]) == (1 / 2, 2)
    assert all(one < other for one, other in pairwise(ratios))


def test_mini_draws_at_the_canvases_it_was_trained_on() -> None:
    native = find(str(mini.folder())).native
    assert {(size.height, size.width) for size in native} == set(canvases(SMALL))
