"""What training on another machine needs, in one file of some 30 MB: `training/pack` writes it, `unpack` reads it.

Sprites as lossy WebP, their records, the tokenizers and started text encoders (in half precision), the latents' code.
That machine needs no package of pictures and no network.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.lib.format import open_memmap
from PIL import Image
from safetensors.torch import load_file, save_file

from training import work
from training.render import SIDE, Sprite, files, load_sprites
from training.stream import GENERATOR_SETS

PACKED = Path(__file__).parent / "packed" / "training.zip"
_LATENTS = "latents.safetensors"


def pack(out: Path, quality: int) -> None:
    """Write the work folder's sprites, text side and code into the file `out`."""
    folder = work.folder()
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for name in GENERATOR_SETS:
            sprites, _ = load_sprites([name])
            for index, sprite in enumerate(sprites):
                _add(archive, _picture(name, index), encoded(sprite, quality), zipfile.ZIP_STORED)
            for file in (files(name).records, files(name).stamp):
                _add(archive, f"sprites/{file.name}", file.read_bytes())
        for file in sorted(path for path in (folder / "text").rglob("*") if path.is_file()):
            content = _in_halves(file) if file.suffix == ".safetensors" else file.read_bytes()
            _add(archive, str(file.relative_to(folder)), content)
        _add(archive, _LATENTS, (folder / _LATENTS).read_bytes())
    unfinished.replace(out)


def unpack(archive: Path, processes: int | None = None) -> None:
    """Fill the work folder from the file `archive`, unless that was done; then the file need not be there any more."""
    folder = work.folder()
    done = folder / "unpacked"
    if done.is_file() and not archive.is_file():
        return
    content = hashlib.sha256(archive.read_bytes()).hexdigest()
    if done.is_file() and done.read_text("utf-8") == content:
        return
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        for name in names:
            if not name.endswith(".webp"):
                opened.extract(name, folder)
    counts = {name: sum(entry.startswith(f"sprites/{name}/") for entry in names) for name in GENERATOR_SETS}
    for name, count in counts.items():
        open_memmap(files(name).array, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 4)).flush()
    parts = [
        (name, range(first, min(first + 64, count))) for name, count in counts.items() for first in range(0, count, 64)
    ]
    if processes == 1:
        for name, indices in parts:
            _unpack_part(archive, name, indices)
    else:
        with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn")) as pool:
            list(pool.map(_unpack_part, [archive] * len(parts), *zip(*parts, strict=True)))
    done.write_text(content, "utf-8")


def encoded(sprite: Sprite, quality: int) -> bytes:
    """A premultiplied sprite as a lossy WebP."""
    opened = io.BytesIO()
    straight = Image.frombytes("RGBa", (SIDE, SIDE), sprite.tobytes()).convert("RGBA")
    straight.save(opened, "WEBP", quality=quality, alpha_quality=quality, method=4)
    return opened.getvalue()


def decoded(content: bytes) -> Sprite:
    """The premultiplied sprite, nearly."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA").convert("RGBa"))


def _unpack_part(archive: Path, name: str, indices: Sequence[int]) -> None:
    sprites = np.load(files(name).array, mmap_mode="r+")
    with zipfile.ZipFile(archive) as opened:
        for index in indices:
            sprites[index] = decoded(opened.read(_picture(name, index)))


def _picture(name: str, index: int) -> str:
    return f"sprites/{name}/{index:05}.webp"


def _add(archive: zipfile.ZipFile, name: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> None:
    """With no date, so that the same work folder gives the same file."""
    archive.writestr(zipfile.ZipInfo(name), content, kind, 9)


def _in_halves(file: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        halved = Path(folder) / file.name
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, halved, {"format": "pt"})
        return halved.read_bytes()


def command(
    out: Annotated[Path, typer.Option(help="The file to write.")] = PACKED,
    quality: Annotated[int, typer.Option(help="Of the sprites' WebP, 0 to 100.")] = 40,
) -> None:
    """Pack what training on another machine needs into one file."""
    pack(out, quality)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(command)
