"""Which size a picture is drawn at: the bounds are those of a checkpoint trained on 256 to 512 pixels, 9:16 to 16:9."""

import pytest

from fluxserve.catalogue import Size
from fluxserve.catalogue.sizes import cut_share, parse_ratio, ultra_size
from fluxserve.engine.native_sizes import MAX_CUT, NativeSizes

WIDE = NativeSizes(least_area=256**2, most_area=512**2, ratios=("9:16", "16:9"), multiple=64)
SQUARES = NativeSizes(least_area=128**2, most_area=128**2, ratios=("1:1", "1:1"), multiple=32)
#: Every size that width and height of a request may name.
SIDES = range(256, 1441, 32)
EVERY_SIZE = [Size(width, height) for width in SIDES for height in SIDES]


def is_learnt_shape(size: Size) -> bool:
    return 9 / 16 <= size.ratio <= 16 / 9


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        (Size(256, 256), Size(256, 256)),
        (Size(512, 512), Size(512, 512)),
        (Size(1024, 1024), Size(512, 512)),
        (Size(1440, 1440), Size(512, 512)),
        (Size(320, 256), Size(320, 256)),
        (Size(1024, 768), Size(576, 448)),
        (Size(768, 1024), Size(448, 576)),
        (Size(640, 480), Size(576, 448)),
        (Size(1440, 960), Size(576, 384)),
        (Size(960, 1440), Size(384, 576)),
        (Size(1344, 768), Size(640, 384)),
        (Size(768, 1344), Size(384, 640)),
        (Size(1216, 832), Size(576, 384)),
        (Size(1152, 896), Size(576, 448)),
        (Size(288, 256), Size(384, 320)),
    ],
)
def test_a_common_size_is_drawn_large_and_at_most_a_sixteenth_of_it_is_cut(size: Size, drawn: Size) -> None:
    assert WIDE.nearest(size) == drawn
    assert cut_share(drawn, size) <= 1 / 16


@pytest.mark.parametrize("ratio", ["1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "5:4", "4:5"])
def test_no_edge_of_ultras_common_ratios_is_continued(ratio: str) -> None:
    size = ultra_size(ratio)
    assert cut_share(WIDE.nearest(size), size) <= MAX_CUT


def test_no_edge_of_any_size_in_a_learnt_shape_is_continued_and_none_is_drawn_much_smaller_than_it_could_be() -> None:
    for size in filter(is_learnt_shape, EVERY_SIZE):
        drawn = WIDE.nearest(size)
        assert cut_share(drawn, size) <= MAX_CUT, size
        assert drawn.area >= 0.6 * min(size.area, WIDE.most_area), size


@pytest.mark.parametrize("size", [Size(1344, 576), Size(3136, 1344), Size(1440, 256), Size(1024, 256)])
def test_a_wider_shape_than_any_that_was_learnt_is_drawn_wide(size: Size) -> None:
    assert WIDE.nearest(size) == Size(640, 384)
    assert WIDE.nearest(Size(size.height, size.width)) == Size(384, 640)


def test_whatever_is_asked_for_a_learnt_size_is_drawn() -> None:
    for native in (WIDE, SQUARES):
        narrowest, widest = (width / height for width, height in map(parse_ratio, native.ratios or ()))
        for size in EVERY_SIZE:
            drawn = native.nearest(size)
            assert drawn.width % native.multiple == drawn.height % native.multiple == 0
            assert native.least_area <= drawn.area <= native.most_area
            assert narrowest <= drawn.ratio <= widest


def test_a_size_that_was_learnt_is_drawn_as_it_is() -> None:
    assert len(WIDE.all()) == 29
    assert all(WIDE.nearest(size) == size for size in WIDE.all())


def test_without_ratios_every_shape_is_learnt() -> None:
    native = NativeSizes(least_area=0, most_area=512**2, ratios=None, multiple=16)
    for size in (Size(256, 1024), Size(512, 512), Size(960, 256), Size(256, 256)):
        assert native.nearest(size) == size
    assert cut_share(native.nearest(Size(1440, 256)), Size(1440, 256)) < 0.03


def test_bounds_that_contradict_each_other_leave_no_size() -> None:
    for native in (
        NativeSizes(least_area=512**2, most_area=256**2, ratios=None, multiple=64),
        NativeSizes(least_area=0, most_area=512**2, ratios=("16:9", "9:16"), multiple=64),
        NativeSizes(least_area=0, most_area=63**2, ratios=None, multiple=64),
    ):
        assert native.all() == ()
