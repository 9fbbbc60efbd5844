"""Renders the pictures to sprites: `training/render`.

One sprite is 256 x 256 px, four channels, colours multiplied by alpha; the picture is cut to what is visible and its
longer side fills the square. `sprites/SET.npy` holds a set's sprites, `sprites/SET.jsonl` their records, line by line.
A set is rendered again only when its pictures have changed.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from training import work
from training.pictures import DRAWING, SETS, Picture, pictures
from training.records import Record

SIDE = 256  # px
DRAWN = 512  # px: SVG is drawn larger and shrunk, so that a picture small in its box stays sharp
VISIBLE = 8  # of 255: fainter alpha is a shadow's rim, not the picture
MINIMUM_PIXELS = 30
MAXIMUM_RATIO = 6  # long thin pictures say nothing once they are small

Sprite = NDArray[np.uint8]


def load_sprites(sets: Collection[str] | None = None) -> tuple[Sprite, list[Record]]:
    """The rendered sprites (N, 256, 256, 4) and their records, in the order of `SETS`; by default all sets."""
    there = [name for name in SETS if _files(name)[0].is_file() and (sets is None or name in sets)]
    if missing := set(sets or ()) - set(there):
        raise FileNotFoundError(f"not rendered yet: {', '.join(sorted(missing))}; run training/render")
    arrays = [np.load(_files(name)[0], mmap_mode="r") for name in there]
    found = [record for name in there for record in read_records(_files(name)[1])]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays), found


def read_records(file: Path) -> list[Record]:
    """Records written one a line."""
    return [msgspec.json.decode(line, type=Record) for line in file.read_bytes().splitlines()]


def render_set(name: str, processes: int) -> int:
    """Renders one set unless its pictures are rendered already; gives the number of sprites."""
    wanted = pictures(name)
    array_file, records_file, stamp = _files(name)
    fingerprint = _fingerprint(wanted)
    if stamp.is_file() and stamp.read_text(encoding="utf-8").startswith(fingerprint):
        kept = [
            picture
            for picture, is_kept in zip(wanted, stamp.read_text(encoding="utf-8").split()[1], strict=True)
            if is_kept == "1"
        ]
        _write_records(kept, records_file)
        return len(kept)
    array_file.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        sprites = pool.map(sprite, [picture.source for picture in wanted], chunksize=16)
    np.save(array_file, np.stack([made for made in sprites if made is not None]))
    kept = [picture for picture, made in zip(wanted, sprites, strict=True) if made is not None]
    _write_records(kept, records_file)
    flags = "".join("0" if made is None else "1" for made in sprites)
    stamp.write_text(f"{fingerprint} {flags}", encoding="utf-8")
    return len(kept)


def sprite(source: str | Path) -> Sprite | None:
    """(256, 256, 4) premultiplied, centred; None for what is empty or too long and thin."""
    picture = _open(source)
    alpha = picture.getchannel("A").point([0] * VISIBLE + [255] * (256 - VISIBLE))
    box = alpha.getbbox()
    if box is None or alpha.histogram()[255] < MINIMUM_PIXELS:
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    if max(width, height) > MAXIMUM_RATIO * min(width, height):
        return None
    scale = SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Premultiplied before it is resized: else the colour of invisible pixels bleeds into the rim.
    small = picture.crop(box).convert("RGBa").resize(size, Image.Resampling.LANCZOS)
    square = np.zeros((SIDE, SIDE, 4), np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = np.asarray(small)
    return square


def _open(source: str | Path) -> Image.Image:
    if isinstance(source, Path):
        return Image.open(source).convert("RGBA")
    import resvg_py

    drawn = resvg_py.svg_to_bytes(svg_string=source, width=DRAWN, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def _files(name: str) -> tuple[Path, Path, Path]:
    folder = work.folder() / "sprites"
    return folder / f"{name}.npy", folder / f"{name}.jsonl", folder / f"{name}.stamp"


def _fingerprint(wanted: Sequence[Picture]) -> str:
    """Changes with the pictures, their order and how they are rendered, not with what they are called."""
    digest = hashlib.sha256(repr((SIDE, DRAWN, VISIBLE, MINIMUM_PIXELS, MAXIMUM_RATIO)).encode())
    for picture in wanted:
        text = picture.source.name if isinstance(picture.source, Path) else picture.source
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _write_records(kept: Sequence[Picture], file: Path) -> None:
    file.write_bytes(b"".join(msgspec.json.encode(picture.record) + b"\n" for picture in kept))


def report(names: Collection[str]) -> None:
    """Prints how many things there are, by set and by group."""
    found = [record for name in names for record in read_records(_files(name)[1])]
    for name in names:
        print(f"{name:12} {len({record.label for record in found if record.set == name}):5} labels")
    for group in sorted({record.group for record in found}):
        of_group = [record for record in found if record.group == group]
        drawn = {record.label for record in of_group if record.set in DRAWING}
        print(f"{group:12} {len({record.label for record in of_group}):5} labels, {len(drawn):5} for the generator")
    drawn = {record.label for record in found if record.set in DRAWING}
    print(f"in all       {len({record.label for record in found}):5} labels, {len(drawn):5} for the generator")


def main(
    sets: Annotated[str, typer.Option(help="The sets to render, with commas between them.")] = ",".join(SETS),
    processes: Annotated[int, typer.Option(help="How many processes render.")] = 2,
) -> None:
    """Render the fetched pictures to sprites."""
    names = sets.split(",")
    for name in names:
        print(f"{name:12} {render_set(name, processes):5} sprites", flush=True)
    report(names)


if __name__ == "__main__":
    typer.run(main)
