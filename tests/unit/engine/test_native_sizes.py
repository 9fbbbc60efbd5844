"""Which size a picture is drawn at: the sizes are those of a checkpoint trained on 512 pixels, 1:2 to 2:1."""

import pytest

from fluxserve.catalogue import Size
from fluxserve.catalogue.sizes import cut_share, ultra_size
from fluxserve.engine.native_sizes import MAX_CUT, nearest

SQUARE = Size(512, 512)
WIDE = (SQUARE, *(Size(*sides) for long in (768, 1024) for sides in ((long, 512), (512, long))))
#: Every size that width and height of a request may name.
SIDES = range(256, 1441, 32)
EVERY_SIZE = [Size(width, height) for width in SIDES for height in SIDES]


def is_learnt_shape(size: Size) -> bool:
    return 1 / 2 <= size.ratio <= 2


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        (Size(256, 256), SQUARE),
        (Size(512, 512), SQUARE),
        (Size(1440, 1440), SQUARE),
        (Size(1152, 1024), SQUARE),
        (Size(1024, 768), Size(768, 512)),
        (Size(768, 1024), Size(512, 768)),
        (Size(640, 480), Size(768, 512)),
        (Size(640, 512), Size(768, 512)),
        (Size(1440, 960), Size(768, 512)),
        (Size(960, 1440), Size(512, 768)),
        (Size(1216, 832), Size(768, 512)),
        (Size(1280, 720), Size(1024, 512)),
        (Size(1344, 768), Size(1024, 512)),
        (Size(768, 1344), Size(512, 1024)),
        (Size(1344, 576), Size(1024, 512)),
    ],
)
def test_no_edge_of_a_common_size_is_continued(size: Size, drawn: Size) -> None:
    assert nearest(WIDE, size) == drawn
    assert cut_share(drawn, size) <= MAX_CUT


@pytest.mark.parametrize("ratio", ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "21:9", "9:21", "5:4", "4:5"])
def test_no_edge_of_ultras_common_ratios_is_continued(ratio: str) -> None:
    size = ultra_size(ratio)
    assert cut_share(nearest(WIDE, size), size) <= MAX_CUT


def test_no_edge_of_any_size_in_a_learnt_shape_is_continued() -> None:
    for size in filter(is_learnt_shape, EVERY_SIZE):
        assert cut_share(nearest(WIDE, size), size) <= MAX_CUT, size


@pytest.mark.parametrize("size", [Size(3136, 1344), Size(1440, 256), Size(1024, 256)])
def test_a_wider_shape_than_any_that_was_learnt_is_drawn_wide(size: Size) -> None:
    assert nearest(WIDE, size) == Size(1024, 512)
    assert nearest(WIDE, Size(size.height, size.width)) == Size(512, 1024)


def test_the_larger_of_two_sizes_of_one_shape_is_drawn_where_a_large_one_is_asked_for() -> None:
    native = (SQUARE, Size(1024, 1024))
    assert nearest(native, Size(1440, 1440)) == Size(1024, 1024)
    assert nearest(native, Size(600, 600)) == SQUARE


def test_whatever_is_asked_for_a_learnt_size_is_drawn_and_a_learnt_one_as_it_is() -> None:
    assert all(nearest(WIDE, size) in WIDE for size in EVERY_SIZE)
    assert all(nearest((SQUARE,), size) == SQUARE for size in EVERY_SIZE)
    assert all(nearest(WIDE, size) == size for size in WIDE)
