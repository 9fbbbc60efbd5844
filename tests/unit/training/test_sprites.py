"""From packages to pictures, records and sprites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from training.emoji import things
from training.packages import PACKAGES, notices
from training.pictures import DRAWING, SETS, find_thing, pictures
from training.render import SIDE, files, load_sprites, main, read_records, render_set, sprite

pytest.importorskip("resvg_py", reason="needs the packages of training/requirements.txt")

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect {}/></svg>'


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


def test_a_picture_is_cut_to_what_is_visible_and_fills_the_square() -> None:
    made = sprite(SQUARE.format('x="4" y="20" width="4" height="2" fill="#fff"'))
    assert made is not None
    rows, columns = np.nonzero(made[..., 3] > 127)
    assert (columns.min(), columns.max()) == (0, SIDE - 1)
    assert (rows.min(), rows.max()) == (SIDE // 4, SIDE * 3 // 4 - 1)


def test_colours_are_multiplied_by_alpha() -> None:
    made = sprite(SQUARE.format('width="32" height="32" fill="#f00" fill-opacity=".5"'))
    assert made is not None
    assert made[128, 128].tolist() == pytest.approx([128, 0, 0, 128], abs=1)
    assert (made[..., :3] <= made[..., 3:]).all()


@pytest.mark.parametrize("shape", ['width="32" height="1"', 'width="32" height="32" fill-opacity=".01"', 'width="0"'])
def test_long_thin_faint_and_empty_pictures_make_no_sprite(shape: str) -> None:
    assert sprite(SQUARE.format(shape)) is None


@pytest.mark.usefixtures("work_folder")
def test_records_stand_line_by_line_beside_their_sprites() -> None:
    assert render_set("noto", processes=2) == 2
    sprites, found = load_sprites(["noto"])
    assert sprites.shape == (2, SIDE, SIDE, 4)
    assert [record.label for record in found] == ["seal", "cat"]


@pytest.mark.usefixtures("work_folder")
def test_sprites_of_several_sets_follow_each_other_in_a_fixed_order() -> None:
    for name in ("fluent3d", "noto"):
        render_set(name, processes=1)
    sprites, found = load_sprites({"fluent3d", "noto"})
    assert [record.set for record in found] == ["noto", "noto", "fluent3d", "fluent3d"]
    assert np.array_equal(sprites[2:], load_sprites(["fluent3d"])[0])


@pytest.mark.usefixtures("work_folder")
def test_a_set_is_rendered_once_and_its_records_are_written_anew() -> None:
    render_set("noto", processes=1)
    there = files("noto")
    rendered = there.array.stat().st_mtime_ns
    there.records.write_bytes(b"")
    assert render_set("noto", processes=1) == 2
    assert there.array.stat().st_mtime_ns == rendered
    assert [record.label for record in read_records(there.records)] == ["seal", "cat"]


def test_a_changed_picture_is_rendered_again(work_folder: Path) -> None:
    render_set("fluent3d", processes=1)
    before = load_sprites(["fluent3d"])[0].copy()
    assets = work_folder / "packages" / "lobehub-fluent-emoji-3d" / "assets"
    Image.new("RGBA", (32, 32), (0, 255, 0, 255)).save(assets / "1f431.webp", lossless=True)
    render_set("fluent3d", processes=1)
    after = load_sprites(["fluent3d"])[0]
    assert after[0, 128, 128].tolist() == [0, 255, 0, 255]
    assert np.array_equal(after[1], before[1])


@pytest.mark.usefixtures("work_folder")
def test_a_set_that_is_not_rendered_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="twemoji"):
        load_sprites(["twemoji"])
    with pytest.raises(typer.BadParameter, match="nosuchset"):
        main(sets="nosuchset")


def test_the_generator_learns_from_four_sets_and_the_notice_names_them_and_no_other() -> None:
    assert DRAWING == ("noto", "fluent3d", "twemoji", "streamline")
    said = notices().split("-" * 120)[0]
    for package in PACKAGES:
        assert (f"- {package.title}, Copyright (c) {package.holder}" in said) == (package.use != "judging")
    assert "Unicode, Inc." in said
    assert max(map(len, said.splitlines())) <= 120


def test_every_package_is_pinned_by_a_checksum_and_freely_licensed() -> None:
    for package in PACKAGES:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.license in {"Apache-2.0", "MIT", "CC-BY-4.0", "LicenseRef-WordNet"}
