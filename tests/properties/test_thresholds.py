"""The table of thresholds: more tolerance never refuses more, and children are never less safe."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.moderation import thresholds
from fluxserve.moderation.lexicon import load
from fluxserve.moderation.thresholds import CHILD_SAFETY, FILE, MOST_WITH_PICTURES, TOLERANCES

TABLE = thresholds.load()
SCORES = st.dictionaries(st.sampled_from(sorted(TABLE.refuse_from)), st.floats(0, 1))
TOLERANCE = st.sampled_from(TOLERANCES)


@given(SCORES, TOLERANCE, TOLERANCE, st.booleans())
def test_more_tolerance_never_refuses_more(scores: dict[str, float], one: int, other: int, has_pictures: bool) -> None:
    low, high = sorted((one, other))
    refused = [set(TABLE.refused(scores, tolerance, has_pictures=has_pictures)) for tolerance in (low, high)]
    assert refused[1] <= refused[0]


@given(SCORES, TOLERANCE)
def test_no_tolerance_opens_what_endangers_children(scores: dict[str, float], tolerance: int) -> None:
    expected = scores.get(CHILD_SAFETY, 0.0) >= 0.3
    assert (CHILD_SAFETY in TABLE.refused(scores, tolerance)) is expected


@given(SCORES, TOLERANCE, st.sampled_from(sorted(TABLE.refuse_from)), st.floats(0, 1))
def test_a_higher_score_is_never_let_through_where_a_lower_one_is_refused(
    scores: dict[str, float], tolerance: int, category: str, more: float
) -> None:
    higher = scores | {category: max(more, scores.get(category, 0.0))}
    assert set(TABLE.refused(scores, tolerance)) <= set(TABLE.refused(higher, tolerance))


@given(SCORES, TOLERANCE)
def test_pictures_to_draw_from_make_it_stricter(scores: dict[str, float], tolerance: int) -> None:
    expected = TABLE.refused(scores, min(tolerance, MOST_WITH_PICTURES))
    assert TABLE.refused(scores, tolerance, has_pictures=True) == expected


@given(TOLERANCE, TOLERANCE, st.booleans(), st.booleans())
def test_of_pictures_too_more_tolerance_never_refuses_more(
    one: int, other: int, has_pictures: bool, names_minor: bool
) -> None:
    low, high = (
        TABLE.for_pictures(tolerance, has_pictures=has_pictures, names_minor=names_minor)
        for tolerance in sorted((one, other))
    )
    assert all(low[name] <= least for name, least in high.items())
    assert TABLE.for_pictures(one, has_pictures=has_pictures, names_minor=True)["sexual"] <= 0.3


def test_every_category_has_a_row_and_one_without_is_refused() -> None:
    assert load().rules.categories.keys() == TABLE.refuse_from.keys()
    assert TABLE.refused({"something new": 0.01}, 6) == ("something new",)


@pytest.mark.parametrize("tolerance", [-1, 7])
def test_other_tolerances_are_none(tolerance: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 6"):
        TABLE.refused({}, tolerance)


@pytest.mark.parametrize(
    ("row", "broken", "message"),
    [
        ("sexual = [0.15, 0.25,", "sexual = [0.35, 0.25,", "never fall"),
        ("sexual = [0.15, 0.25, ", "sexual = [0.15, ", "needs 7"),
        ("sexual = [0.15,", "sexual = [0.0,", "above 0"),
        ("child_safety = [0.30,", "child_safety = [0.20,", "one threshold for every tolerance"),
        ('"never", "never"]', '"always", "never"]', "Invalid enum"),
        ("sexual = [0.30, 0.35,", "sexual = [0.40, 0.35,", "never fall"),
        ("sexual = [0.30, 0.35,", "erotic = [0.30, 0.35,", "thresholds of sexual"),
    ],
)
def test_a_table_that_breaks_a_promise_is_refused(row: str, broken: str, message: str, tmp_path: Path) -> None:
    text = FILE.read_text("utf-8")
    assert row in text
    file = tmp_path / "thresholds.toml"
    file.write_text(text.replace(row, broken), "utf-8")
    with pytest.raises(ValueError, match=message):
        thresholds.load.__wrapped__(file)
