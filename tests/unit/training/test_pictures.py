"""Which picture shows which thing, and whom we thank for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.emoji import things
from training.packages import PACKAGES, Use, notices
from training.pictures import DRAWING, SETS, find_thing, pictures

ROOT = Path(__file__).parents[3]


def labels(name: str) -> list[str]:
    return [picture.record.label for picture in pictures(name)]


@pytest.mark.usefixtures("work_folder")
def test_a_set_that_tells_code_points_is_matched_by_them_and_hidden_pictures_are_left_out() -> None:
    assert labels("noto") == ["seal", "cat", "automobile", "flying saucer"]


@pytest.mark.usefixtures("work_folder")
def test_a_folder_of_files_is_matched_by_file_name_and_letters_are_left_out() -> None:
    assert labels("fluent3d") == ["cat face", "red heart"]


@pytest.mark.usefixtures("work_folder")
def test_glued_names_are_found_and_our_table_tells_the_face_from_the_whole_cat() -> None:
    assert labels("fxemoji") == ["cat face", "cat", "flying saucer"]


@pytest.mark.usefixtures("work_folder")
@pytest.mark.parametrize("name", ["seal-2", "flag-for-france", "flag-for-flag-france", "france", "cat-face"])
def test_numbers_of_twins_and_ways_to_write_flags_do_not_hide_a_thing(name: str) -> None:
    assert find_thing(name) is not None


@pytest.mark.usefixtures("work_folder")
def test_an_unknown_name_is_no_thing() -> None:
    assert find_thing("chart-of-nothing") is None


@pytest.mark.usefixtures("work_folder")
def test_a_thing_has_the_same_label_in_every_set() -> None:
    for name in ("noto", "fluent3d", "fxemoji"):
        for picture in pictures(name):
            assert picture.record.label in {thing.label for thing in things().values()}
            assert (picture.record.set, picture.record.style) == (name, SETS[name].style)


def test_the_generator_learns_from_four_sets_and_the_notice_names_them_and_no_other() -> None:
    assert DRAWING == ("noto", "fluent3d", "twemoji", "streamline")
    said = notices("drawing").split("-" * 120)[0]
    for package in PACKAGES:
        assert (f"- {package.title}, Copyright (c) {package.holder}" in said) == (package.use != "judging")
    assert "Unicode, Inc." in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize(
    ("file", "uses"),
    [
        ("NOTICE", ("drawing",)),
        ("src/fluxserve/mini/NOTICE", ("drawing",)),
        ("training/judges/NOTICE", ("drawing", "judging")),
    ],
)
def test_the_notices_beside_the_weights_are_whole(file: str, uses: tuple[Use, ...]) -> None:
    assert notices(*uses) in (ROOT / file).read_text(encoding="utf-8")


def test_every_package_is_pinned_by_a_checksum_and_freely_licensed() -> None:
    for package in PACKAGES:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.license in {"Apache-2.0", "MIT", "CC-BY-4.0", "LicenseRef-WordNet"}
