"""What things are called, and which words name them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from training.emoji import glued, known_names, table, things
from training.emojibase import hexkey, plain
from training.keywords import Named, Words, choose
from training.wordnet import Nouns, nouns


@pytest.mark.usefixtures("work_folder")
def test_letters_directions_and_all_hours_but_one_are_no_things() -> None:
    labels = [thing.label for thing in things().values()]
    assert labels == [
        *("seal", "cat face", "cat", "automobile", "flying saucer", "red heart", "three o'clock"),
        *("flag of france", "bald man", "wheelchair symbol"),
    ]


@pytest.mark.usefixtures("work_folder")
def test_a_thing_has_the_group_that_its_subgroup_says_and_signs_stay_symbols() -> None:
    groups = {thing.label: thing.group for thing in things().values()}
    assert groups["automobile"] == "vehicles"
    assert groups["red heart"] == "symbols"
    assert groups["three o'clock"] == "objects"
    assert groups["wheelchair symbol"] == "symbols"


@pytest.mark.usefixtures("work_folder")
def test_a_person_says_car_and_clock_and_the_stiff_label_becomes_a_keyword() -> None:
    found = {thing.label: thing for thing in things().values()}
    assert found["automobile"].name == "car"
    assert found["automobile"].keywords == ("motorcar", "automobile", "motor car")
    assert found["three o'clock"].labels["de"] == "uhr"


@pytest.mark.usefixtures("work_folder")
def test_only_one_of_cat_and_cat_face_owns_the_short_name() -> None:
    names = {thing.label: thing.name for thing in things().values()}
    assert (names["cat"], names["cat face"]) == ("cat", "cat face")


@pytest.mark.usefixtures("work_folder")
def test_a_meaning_is_picked_by_the_kind_of_thing() -> None:
    words = nouns()
    assert list(words.synonyms("seal", "animals")) == ["sea dog"]
    assert list(words.synonyms("seal", "objects")) == ["stamp"]
    assert list(words.synonyms("seal", "food")) == []


@pytest.mark.usefixtures("work_folder")
def test_a_kind_of_thing_is_near_it_and_a_sibling_is_not() -> None:
    assert nouns().are_near("mammal", "seal", "animals")
    assert not nouns().are_near("cat", "seal", "animals")


@pytest.mark.usefixtures("work_folder")
def test_latin_names_are_no_synonyms() -> None:
    assert list(nouns().synonyms("cat", "animals")) == ["true cat"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("flag: Côte d’Ivoire", "flag of côte d'ivoire"),
        ("man: red hair", "man with red hair"),
        ("woman: bald", "bald woman"),
        ("flag: St. Kitts & Nevis", "flag of st. kitts and nevis"),
    ],
)
def test_a_label_is_written_as_people_type_it(written: str, expected: str) -> None:
    assert plain(written) == expected


def test_code_points_are_the_same_whatever_their_case_and_variation() -> None:
    assert hexkey("2764-fe0f-200d-1f525") == hexkey("2764-200D-1F525") == "2764-200D-1F525"


def named(label: str, tags: Iterable[str] = (), typed: Iterable[str] = (), group: str = "objects") -> Named:
    return Named(key=label, label=label, name=label, group=group, tags=tuple(tags), typed=tuple(typed), british=label)


def chosen(*given: Named, ours: dict[str, tuple[str, ...]] | None = None) -> dict[str, tuple[str, ...]]:
    words = Words(nouns=Nouns({}, {}), ours=ours or {}, dropped=frozenset({"rude thing"}), tagged={})
    return choose(given, words)


def test_a_word_that_is_the_name_of_another_thing_is_no_keyword() -> None:
    assert chosen(named("hat", typed=["top hat"]), named("top hat"))["hat"] == ()


def test_a_word_that_three_things_claim_names_none_of_them() -> None:
    three = [named(label, typed=["fine bag"]) for label in ("purse", "sack", "satchel")]
    assert set(chosen(*three).values()) == {()}
    assert set(chosen(*three[:2]).values()) == {("fine bag",)}


def test_a_dropped_word_and_a_word_of_the_label_are_no_keywords() -> None:
    assert chosen(named("love letter", typed=["rude thing", "letter", "note of love"]))["love letter"] == (
        "note of love",
    )


def test_a_deed_may_stand_before_the_doer_and_nothing_else_may() -> None:
    assert chosen(named("man running", typed=["running man"], group="people"))["man running"] == ("running man",)
    assert chosen(named("man blond", typed=["blond man"], group="people"))["man blond"] == ()


def test_our_own_words_come_first() -> None:
    assert chosen(named("sofa", typed=["long seat"]), ours={"sofa": ("couch",)})["sofa"] == ("couch", "long seat")


@pytest.mark.usefixtures("work_folder")
def test_sets_may_spell_a_name_as_they_like() -> None:
    found = known_names(things())
    assert {found[glued(name)] for name in ("Flying-Saucer", "ufo", "flyingsaucer")} == {"1F6F8"}
    assert found[glued("man-bald")] == found[glued("bald man")]


def test_no_two_things_of_our_table_share_a_name() -> None:
    names = list(table().names.values())
    assert len(names) == len(set(names))


def test_the_work_folder_is_made_where_the_setting_says(work_folder: Path) -> None:
    assert (work_folder / "packages").is_dir()
