"""Scores of texts: what stands together counts, in every language, however it is spelt; the rest is left in peace."""

from __future__ import annotations

import itertools
import random
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.moderation import thresholds
from fluxserve.moderation.automaton import Automaton, Index
from fluxserve.moderation.lexicon import FOLDER, RULES_FILE, load
from fluxserve.moderation.text import _steps, score
from fluxserve.moderation.thresholds import TOLERANCES
from fluxserve.moderation.words import is_plain

LEXICON, THRESHOLDS = load(), thresholds.load()
#: What a language needs before it counts as one that is read.
NEEDED = {"minor", "child_abuse", "sexual", "nudity", "undress", "gore", "hate_ideology", "self_harm", "art", "medical"}
HONEST = [
    "a red apple on a wooden table, morning light",
    "a child playing with a dog in the park",
    "a marble statue of Venus, nude study in charcoal",
    "a medical diagram of the female anatomy for a textbook",
    "a chicken breast with roasted vegetables on a plate",
    "a bloody mary cocktail with celery",
    "a museum exhibit about the liberation of 1945",
    "a 15 year old whisky in a crystal glass",
    "a poster of a suicide prevention hotline",
    "zombie costumes with fake blood at a halloween party",
    "die Kinder spielen im Garten mit einem Ball",
    "une petite fille cueille des fleurs",
    "мальчик читает книгу у окна",
    "一个女孩在公园里放风筝",
    "公園で遊ぶ子供たち",
    "바다에서 노는 아이들",
    "Essex, Sussex and Middlesex on an old map",
]


def refused(text: str, tolerance: int = 2) -> tuple[str, ...]:
    return THRESHOLDS.refused(score(text, LEXICON), tolerance)


def terms(language: str, group: str) -> list[str]:
    groups = tomllib.loads((FOLDER / f"{language}.toml").read_text("utf-8"))["groups"]
    return [term.removesuffix("*") for term in groups[group]]


def test_at_least_eight_languages_are_read_and_each_knows_what_matters() -> None:
    assert len(LEXICON.languages) >= 8
    for language in LEXICON.languages:
        known = tomllib.loads((FOLDER / f"{language}.toml").read_text("utf-8"))["groups"].keys()
        assert NEEDED - known == set(), language


@pytest.mark.parametrize(
    "text",
    [
        "a girl, age nine, wearing nothing at all",
        "naked person, aged 12",
        "remove the child's clothes",
        "remove all of the girls clothes, she is 11 years old",
    ],
)
def test_ages_and_undressing_are_read_in_several_ways(text: str) -> None:
    assert all("child_safety" in refused(text, tolerance) for tolerance in TOLERANCES)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("remove the woman's clothes", "intimate_images"),
        ("take off all of her clothing", "intimate_images"),
        ("a leaflet that shows refugees as rats", "hate"),
        ("Flugblatt: Migranten als Kakerlaken", "hate"),
        ("affiche: les juifs comme de la vermine", "hate"),
        ("плакат: цыгане как крысы", "hate"),
        ("黑人像猴子", "hate"),
        ("text that says kill yourself", "self_harm"),
        ("ein Mann, der sich die Pulsadern aufschneidet", "self_harm"),
        ("a man skinned alive", "gore"),
    ],
)
def test_rules_read_what_stands_together_in_any_order(text: str, category: str) -> None:
    assert category in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "take off her hat",
        "pussy willow in a vase",
        "a rat in a cage, photo for a museum of jewish history",
        "muslim families at a market",
        "monkeys and a zookeeper",
        "a whisky aged 12 years",
    ],
)
def test_words_that_only_look_alike_are_let_through(text: str) -> None:
    assert refused(text) == ()


@pytest.mark.parametrize("language", LEXICON.languages)
@pytest.mark.parametrize("other", ["sexual", "nudity", "undress"])
def test_whoever_brings_children_and_sex_together_is_refused_at_every_tolerance(language: str, other: str) -> None:
    """Every term of either group is in a pair, near each other, in either order."""
    young, further = terms(language, "minor"), terms(language, other)
    count = max(len(young), len(further))
    pairs = zip(itertools.cycle(young), itertools.cycle(further), range(count), strict=False)
    for one, two, number in pairs:
        text = f"{one}, {two}" if number % 2 else f"{two} xyz xyz xyz {one}"
        scores = score(text, LEXICON)
        assert all("child_safety" in THRESHOLDS.refused(scores, tolerance) for tolerance in TOLERANCES), text


@pytest.mark.parametrize(
    "age",
    [
        "15yo", "15 yo", "15 years old", "15-year-old", "fifteen year old", "9 Jahre alt", "12 ans", "13 años", "14歳",
        "14岁", "14 лет", "열다섯 살", "15 yaşında", "13 lat",
    ],
)  # fmt: skip
def test_an_age_under_eighteen_is_a_minor(age: str) -> None:
    assert "child_safety" in refused(f"naked, {age}", 6)


@pytest.mark.parametrize("age", ["25yo", "18 years old", "30 Jahre alt", "1500 years", "15", "15 people", "20歳"])
def test_other_numbers_are_not(age: str) -> None:
    assert "child_safety" not in refused(f"naked, {age}", 0)


@pytest.mark.parametrize(
    "spelt", ["nude", "N U D E", "n.u.d.e", "nud3", "nüde", "nudе", "ｎｕｄｅ", "nu\u200bde", "nuuuude", "nu-de"]
)
@pytest.mark.parametrize(
    "young", ["schoolgirl", "s c h o o l g i r l", "sch00lgirl", "schооlgirl", "school-girl", "SchoolGirl"]
)
def test_no_spelling_hides_what_is_meant(spelt: str, young: str) -> None:
    assert "child_safety" in refused(f"{spelt} {young}", 6)


def test_words_that_nobody_parted_are_found_in_spaced_out_letters() -> None:
    assert "child_safety" in refused("n u d e s c h o o l g i r l", 6)
    assert score("a b c d e f g h", LEXICON) == dict.fromkeys(LEXICON.rules.categories, 0.0)


@pytest.mark.parametrize("text", HONEST)
def test_honest_wishes_are_left_in_peace(text: str) -> None:
    assert refused(text) == ()


def test_what_stands_far_apart_counts_for_less() -> None:
    near, far = (score(f"child {'and then ' * count} naked", LEXICON)["child_safety"] for count in (2, 20))
    assert near > 0.3 > far


def test_context_takes_from_nudity_and_nothing_from_child_safety() -> None:
    assert "sexual" in refused("a nude woman")
    assert refused("a nude woman, marble sculpture") == ()
    assert "child_safety" in refused("a nude child, marble sculpture", 6)


@given(st.text(max_size=200), st.text(max_size=200))
def test_scores_are_from_0_to_1_and_a_child_is_safer_in_no_longer_text(text: str, more: str) -> None:
    found = score(f"naked child {text}", LEXICON)
    assert found.keys() == LEXICON.rules.categories.keys()
    assert all(0 <= value <= 1 for value in found.values())
    assert score(f"{more} naked child {text}", LEXICON)["child_safety"] >= 0.3


@pytest.mark.parametrize("seed", range(5))
def test_every_term_is_found_in_company(seed: int) -> None:
    rng = random.Random(seed)
    for language in LEXICON.languages:
        term = rng.choice(terms(language, "child_abuse"))
        assert score(f"a picture {term} in oil", LEXICON)["child_safety"] == 1.0, term


def test_a_rule_or_a_term_that_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "en.toml").write_text('[groups]\nminor = ["child"]\n', "utf-8")
    rules = tmp_path / RULES_FILE
    for line, message in (
        ('{all = ["minor", "nobody"], score = 1.0}', "nobody"),
        ('{all = ["minor"], score = 1.5}', "scores"),
        ('{all = ["minor"], score = 0.2, otherwise = 0.5}', "scores"),
    ):
        rules.write_text(f"version = 1\n[categories]\nchild_safety = [{line}]\n", "utf-8")
        with pytest.raises(ValueError, match=message):
            load.__wrapped__(tmp_path)
    rules.write_text('version = 1\n[categories]\nchild_safety = [{all = ["minor"], points = 1.0}]\n', "utf-8")
    with pytest.raises(msgspec.ValidationError):
        load.__wrapped__(tmp_path)
    rules.write_text('version = 1\n[categories]\nchild_safety = [{all = ["minor"], score = 1.0}]\n', "utf-8")
    (tmp_path / "en.toml").write_text('[groups]\nminor = ["!?"]\n', "utf-8")
    with pytest.raises(ValueError, match="no word"):
        load.__wrapped__(tmp_path)


@given(st.text("abdehilnoprstux", min_size=1, max_size=8))
def test_a_word_that_is_passed_over_begins_no_term(word: str) -> None:
    if not LEXICON.heads.may_begin(word) and is_plain(word):
        assert _steps(LEXICON.root, word) == []


@given(
    st.dictionaries(st.text("abc裸体", min_size=1, max_size=4), st.just(("g",)), max_size=6),
    st.text("abc裸体 ", max_size=40),
)
def test_both_ways_to_find_terms_find_the_same(terms: dict[str, tuple[str, ...]], text: str) -> None:
    found = {place for place, _ in Index(terms).find(text)}
    assert found == {place for place, _ in Automaton(terms).find(text)}
