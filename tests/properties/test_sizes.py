"""Sizes: any aspect ratio the API accepts becomes a size the networks can draw."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.catalogue.params import MAX_RATIO, RATIO_PATTERN
from fluxserve.catalogue.sizes import ULTRA_AREA, Size, fit_area, parse_ratio, ultra_size

RATIOS = st.tuples(st.integers(1, 9999), st.integers(1, 9999)).filter(
    lambda ratio: 1 / MAX_RATIO <= ratio[0] / ratio[1] <= MAX_RATIO
)


@given(RATIOS)
def test_ultra_draws_about_four_megapixels_of_about_the_ratio_in_multiples_of_32(ratio: tuple[int, int]) -> None:
    width, height = ratio
    size = ultra_size(f"{width}:{height}")
    assert size.width % 32 == size.height % 32 == 0
    assert abs(size.area / ULTRA_AREA - 1) <= 0.032
    assert abs(size.ratio / (width / height) - 1) <= 0.02


def test_every_simple_ratio_is_as_near_as_promised() -> None:
    for width in range(1, 65):
        for height in range(1, 65):
            if 1 / MAX_RATIO <= width / height <= MAX_RATIO:
                size = ultra_size(f"{width}:{height}")
                assert abs(size.area / ULTRA_AREA - 1) <= 0.032, (width, height, size)
                assert abs(size.ratio / (width / height) - 1) <= 0.02, (width, height, size)


@given(RATIOS, st.integers(2, 5))
def test_a_ratio_is_the_same_in_any_terms(ratio: tuple[int, int], factor: int) -> None:
    width, height = ratio
    assert ultra_size(f"{width * factor}:{height * factor}") == ultra_size(f"{width}:{height}")


@given(RATIOS)
def test_a_transposed_ratio_is_drawn_transposed(ratio: tuple[int, int]) -> None:
    width, height = ratio
    upright, lying = ultra_size(f"{width}:{height}"), ultra_size(f"{height}:{width}")
    assert abs(math.log(upright.ratio * lying.ratio)) < 0.02
    assert abs(upright.area / lying.area - 1) < 0.05


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("21:9", "3136x1344"),
        ("16:9", "2752x1536"),
        ("3:2", "2496x1664"),
        ("4:3", "2368x1792"),
        ("1:1", "2048x2048"),
        ("3:4", "1792x2368"),
        ("9:21", "1344x3136"),
        ("7:3", "3136x1344"),
        ("32:18", "2752x1536"),
    ],
)
def test_common_ratios_are_drawn_as_the_hosted_api_draws_them(ratio: str, size: str) -> None:
    assert str(ultra_size(ratio)) == size


@given(st.from_regex(RATIO_PATTERN, fullmatch=True).filter(lambda text: not text.endswith("\n")))
def test_every_text_of_the_pattern_is_a_ratio(text: str) -> None:
    width, height = parse_ratio(text)
    assert f"{width}:{height}" == text


@pytest.mark.parametrize(
    "text", ["", "16", "16:", ":9", "0:1", "1:0", "16:9:1", "16/9", "-1:1", "1.5:1", "16:9 ", "01:1"]
)
def test_other_texts_do_not_match_the_pattern(text: str) -> None:
    assert re.search(RATIO_PATTERN, text) is None


@given(
    area=st.integers(64 * 64, 4096 * 4096),
    ratio=st.floats(1 / 16, 16),
    multiple=st.sampled_from([8, 16, 32, 64]),
)
def test_a_fitted_size_is_the_ideal_one_with_each_side_moved_to_a_neighbouring_multiple(
    area: int, ratio: float, multiple: int
) -> None:
    size = fit_area(area, ratio, multiple=multiple)
    assert size.width % multiple == size.height % multiple == 0
    assert size.width >= multiple
    assert size.height >= multiple
    assert abs(size.width - math.sqrt(area * ratio)) < multiple or size.width == multiple
    assert abs(size.height - math.sqrt(area / ratio)) < multiple or size.height == multiple


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([8, 32]))
def test_a_size_that_fits_already_stays(width: int, height: int, multiple: int) -> None:
    size = Size(width * multiple, height * multiple)
    fitted = fit_area(size.area, size.ratio, multiple=multiple)
    assert abs(math.log(fitted.ratio / size.ratio)) < 1e-9


def test_a_size_reads_as_people_say_it() -> None:
    assert str(Size(1024, 768)) == "1024x768"
    assert Size(1024, 768).megapixels == 0.79
    assert Size(2752, 1536).megapixels == 4.23
