"""Other ways to draw a picture: which comes next, and what tells them apart."""

from __future__ import annotations

import itertools

import pytest

from fluxserve.engine.means import USUAL, Means, Stage, more_exact, with_less_memory

ALL = [Means(alone=a, tiled=b, exact=c) for a, b, c in itertools.product((False, True), repeat=3)]


def test_each_way_has_a_fingerprint_of_its_own_and_the_usual_one_keeps_it() -> None:
    assert USUAL.fingerprint("0123456789abcdef") == "0123456789abcdef"
    words = {means.fingerprint("0123456789abcdef") for means in ALL}
    assert len(words) == len(ALL)
    assert {len(word) for word in words} == {16}
    assert not words & {means.fingerprint("fedcba9876543210") for means in ALL}


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("fills_up", [False, True])
def test_whatever_runs_out_of_memory_there_is_an_end_to_what_is_tried(stage: Stage, fills_up: bool) -> None:
    for begun in ALL:
        tried: list[Means] = [begun]
        while (means := with_less_memory(tried[-1], stage, fills_up=fills_up)) is not None:
            tried.append(means)
        assert len(set(tried)) == len(tried) <= 2


def test_a_pass_takes_less_memory_alone_and_a_decoder_in_tiles() -> None:
    assert with_less_memory(USUAL, Stage.PREDICT, fills_up=True) == Means(alone=True)
    assert with_less_memory(USUAL, Stage.PREDICT, fills_up=False) is None
    assert with_less_memory(Means(exact=True), Stage.DECODE, fills_up=False) == Means(tiled=True, exact=True)
    assert with_less_memory(USUAL, Stage.ENCODE, fills_up=True) is None


def test_a_bad_picture_is_drawn_once_more_in_float32_unless_it_was() -> None:
    assert more_exact(Means(tiled=True), "bfloat16") == Means(tiled=True, exact=True)
    assert more_exact(Means(exact=True), "bfloat16") is None
    assert more_exact(USUAL, "float32") is None
