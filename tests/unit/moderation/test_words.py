"""One spelling for all disguises, and no honest word lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.moderation.words import fold, readings, words_of


def read(text: str) -> set[str]:
    """Every word that a text may be read to hold."""
    words = words_of(text)
    written = {reading for word in words.written for reading in readings(word)}
    beside = {word for spelt in words.beside.values() for word in spelt}
    return written | beside | set(words.runs.values())


@pytest.mark.parametrize(
    "text",
    [
        "secret", "SECRET", "s\u00e9cr\u00eat", "ｓｅｃｒｅｔ", "𝓼𝓮𝓬𝓻𝓮𝓽", "se\u200bcr\u00adet",
        "s\u0336e\u0336cr\u0336et", "sеcrеt", "ѕесrет", "σεcret", "s3cr3t", "$ecret", "s€cr3t", "seeeecret",
        "s e c r e t",        "s.e.c.r.e.t", "s-e_c r*e t", "se-cret", "se.cr.et", "a s e c r e t", "sᴇᴄʀᴇᴛ",
    ],
)  # fmt: skip
def test_a_word_is_read_through_its_disguise(text: str) -> None:
    assert any(one.endswith("secret") for one in read(text)), read(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red apple", ["a", "red", "apple"]),
        ("what's up, doc?!", ["what", "s", "up", "doc"]),
        ("裸足の少女", ["裸", "足", "の", "少", "女"]),
        ("привет мир", ["привет", "мир"]),
        ("벌거벗은 임금님", ["벌거벗은", "임금님"]),
        ("R2D2 at 10:30", ["r2d2", "at", "10", "30"]),
        ("", []),
        (" \t\n", []),
        ("\u200b\u3164", []),
    ],
)
def test_honest_words_stay_as_they_are(text: str, words: list[str]) -> None:
    assert words_of(text).written == words
    for word in words:
        assert readings(word)[0] == word


def test_a_number_alone_stands_for_no_letters() -> None:
    assert readings("15") == ("15",)


def test_kana_keep_the_marks_that_make_other_letters_of_them() -> None:
    assert fold("ガ") != fold("カ")


@given(st.text(max_size=300))
def test_any_text_can_be_read_and_reading_it_folded_is_the_same(text: str) -> None:
    words = words_of(text)
    assert all(words.written)
    assert all(0 <= number < len(words.written) for number in (*words.beside, *words.runs))
    assert fold(fold(text)) == fold(text) or not text.isascii()
    for word in words.written:
        assert 1 <= len(readings(word)) <= 12
