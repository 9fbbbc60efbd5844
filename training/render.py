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
from dataclasses import dataclass
from operator import attrgetter
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


class Stamp(msgspec.Struct, frozen=True):
    """What a set was rendered from, and which of its pictures became sprites."""

    fingerprint: str
    kept: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where a set's sprites are. `stamp` is written last: without it the others do not count."""

    array: Path
    records: Path
    stamp: Path


def load_sprites(sets: Collection[str] | None = None) -> tuple[Sprite, list[Record]]:
    """The rendered sprites (N, 256, 256, 4) and their records, in the order of `SETS`; by default all sets."""
    there = [name for name in SETS if files(name).stamp.is_file() and (sets is None or name in sets)]
    if missing := set(sets or ()) - set(there):
        raise FileNotFoundError(f"not rendered yet: {', '.join(sorted(missing))}; run training/render")
    arrays = [np.load(files(name).array, mmap_mode="r") for name in there]
    found = [record for name in there for record in read_records(files(name).records)]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays), found


def files(name: str) -> Files:
    """A set's files."""
    folder = work.folder() / "sprites"
    return Files(array=folder / f"{name}.npy", records=folder / f"{name}.jsonl", stamp=folder / f"{name}.json")


def read_records(file: Path) -> list[Record]:
    """Records written one a line."""
    return [msgspec.json.decode(line, type=Record) for line in file.read_bytes().splitlines()]


def render_set(name: str, processes: int) -> int:
    """Renders one set unless its pictures are rendered already; gives the number of sprites."""
    wanted, there = pictures(name), files(name)
    there.array.parent.mkdir(parents=True, exist_ok=True)
    stamp = Stamp(fingerprint=_fingerprint(wanted), kept=_kept(there, _fingerprint(wanted)))
    if not stamp.kept:
        there.stamp.unlink(missing_ok=True)
        stamp = msgspec.structs.replace(stamp, kept=_render(wanted, there.array, processes))
    records = [picture.record for picture, is_kept in zip(wanted, stamp.kept, strict=True) if is_kept]
    # Names and keywords may have changed although the pictures have not.
    _replace(there.records, b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    _replace(there.stamp, msgspec.json.encode(stamp))
    return len(records)


def _kept(there: Files, fingerprint: str) -> tuple[bool, ...]:
    """Which pictures are sprites already; nothing when they must be rendered."""
    if not there.stamp.is_file() or not there.array.is_file():
        return ()
    stamp = msgspec.json.decode(there.stamp.read_bytes(), type=Stamp)
    return stamp.kept if stamp.fingerprint == fingerprint else ()


def _render(wanted: Sequence[Picture], file: Path, processes: int) -> tuple[bool, ...]:
    sources = [picture.source for picture in wanted]
    if processes == 1:
        sprites = [sprite(source) for source in sources]
    else:
        # "spawn", for libraries that started threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            sprites = pool.map(sprite, sources, chunksize=16)
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as opened:
        np.save(opened, np.stack([made for made in sprites if made is not None]))
    new.replace(file)
    return tuple(made is not None for made in sprites)


def _replace(file: Path, content: bytes) -> None:
    """Writes beside and renames: whoever has the old file open, or mapped, keeps it whole."""
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(content)
    new.replace(file)


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


def _fingerprint(wanted: Sequence[Picture]) -> str:
    """Changes with the pictures, their order and how they are rendered, not with what they are called."""
    digest = hashlib.sha256(repr((SIDE, DRAWN, VISIBLE, MINIMUM_PIXELS, MAXIMUM_RATIO)).encode())
    for picture in wanted:
        content = picture.source.read_bytes() if isinstance(picture.source, Path) else picture.source.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def report(names: Collection[str]) -> None:
    """Prints how many things there are, by set and by group."""
    found = [record for name in names for record in read_records(files(name).records)]
    for title, key in (("set", attrgetter("set")), ("group", attrgetter("group")), ("all", lambda _: "sets")):
        for value in sorted({key(record) for record in found}):
            chosen = [record for record in found if key(record) == value]
            shown = {record.label for record in chosen if record.set in DRAWING}
            print(f"{title} {value:12} {len({record.label for record in chosen}):5} things, generator's {len(shown):5}")


def main(
    sets: Annotated[str, typer.Option(help="The sets to render, with commas between them.")] = ",".join(SETS),
    processes: Annotated[int, typer.Option(help="How many processes render.")] = 2,
) -> None:
    """Render the fetched pictures to sprites."""
    names = sets.split(",")
    if unknown := set(names) - set(SETS):
        raise typer.BadParameter(f"no such set: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}")
    for name in names:
        print(f"{name:12} {render_set(name, processes):5} sprites", flush=True)
    report(names)


if __name__ == "__main__":
    typer.run(main)
