"""From pictures to sprites and their records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from training.render import SIDE, files, load_sprites, main, read_records, render_set, sprite

pytest.importorskip("resvg_py", reason="needs the packages of training/requirements.txt")

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect {}/></svg>'


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
