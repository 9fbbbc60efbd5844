"""The picture sets: where each keeps its pictures, and which thing each picture shows.

Knows the two layouts that the packages have (an iconify table of SVG bodies; a folder of WebP files named by code
point). Some sets tell the code points of each picture, the others only a name, which is looked up among everything that
things are called. Pictures of nothing we know (skin tones, buttons, a set's own inventions) are left out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from training import packages
from training.emoji import Thing, glued, known_names, table, things
from training.emojibase import hexkey
from training.packages import Package
from training.records import Record

#: A set's own numbering of twins: `birthday-cake-2`.
TWIN = re.compile(r"-\d$")
FLAG = re.compile(r"^flag-for-(flag-)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A record and its picture: the text of an SVG, or the file of a raster."""

    record: Record
    source: str | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSet:
    """One artist's set: one style, one licence. `named_by` is the package that knows its pictures' code points."""

    style: str
    package: Package
    named_by: Package | None = None


SETS: dict[str, PictureSet] = {
    "noto": PictureSet(style="glossy", package=packages.NOTO, named_by=packages.NOTO),
    "fluent3d": PictureSet(style="3d", package=packages.FLUENT_3D),
    "twemoji": PictureSet(style="flat", package=packages.TWEMOJI, named_by=packages.TWEMOJI),
    "streamline": PictureSet(style="outlined", package=packages.STREAMLINE),
    "fluent": PictureSet(style="gradient", package=packages.FLUENT, named_by=packages.FLUENT_FLAT),
    "fluentflat": PictureSet(style="simple flat", package=packages.FLUENT_FLAT, named_by=packages.FLUENT_FLAT),
    "notov1": PictureSet(style="blob", package=packages.NOTO_V1),
    "fxemoji": PictureSet(style="cartoon", package=packages.FXEMOJI),
    "emojione": PictureSet(style="classic", package=packages.EMOJIONE),
}
#: The sets that the generator learns from. It never sees the others: they train the strict judge.
DRAWING = tuple(name for name, chosen in SETS.items() if chosen.package.use == "drawing")


class Icon(msgspec.Struct, frozen=True):
    """One picture of an iconify table; what it does not say, the table says for all."""

    body: str
    left: float = 0
    top: float = 0
    width: float | None = None
    height: float | None = None
    hidden: bool = False


class IconTable(msgspec.Struct, frozen=True):
    """`icons.json` of an iconify package."""

    icons: dict[str, Icon]
    width: float = 16
    height: float = 16

    def svg(self, icon: Icon) -> str:
        """The picture as a document of its own."""
        width, height = icon.width or self.width, icon.height or self.height
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.left} {icon.top} {width} {height}" width="{width}" height="{height}">{icon.body}</svg>'
        )


def pictures(name: str) -> list[Picture]:
    """The set's pictures in the order of `training.emoji.things`, one for each thing."""
    found: dict[str, str | Path] = {}
    for thing, source in _sources(name):
        found.setdefault(thing.key, source)
    return [Picture(record=_record(thing, name), source=found[key]) for key, thing in things().items() if key in found]


def _record(thing: Thing, name: str) -> Record:
    chosen = SETS[name]
    return Record(
        label=thing.label,
        name=thing.name,
        style=chosen.style,
        set=name,
        license=chosen.package.license,
        group=thing.group,
        keywords=thing.keywords,
        labels=thing.labels,
    )


def _sources(name: str) -> Iterator[tuple[Thing, str | Path]]:
    chosen = SETS[name]
    folder = chosen.package.folder
    if (folder / "icons.json").is_file():
        yield from _icons(folder, _by_code_points(chosen.named_by) if chosen.named_by else _by_name(name))
        return
    for file in sorted((folder / "assets").glob("*.webp")):
        if thing := things().get(hexkey(file.stem)):
            yield thing, file


def _icons(folder: Path, find: Callable[[str], Thing | None]) -> Iterator[tuple[Thing, str]]:
    icons = msgspec.json.decode((folder / "icons.json").read_bytes(), type=IconTable)
    for name, icon in icons.icons.items():
        if not icon.hidden and (thing := find(name)):
            yield thing, icons.svg(icon)


def _by_code_points(package: Package) -> Callable[[str], Thing | None]:
    named = msgspec.json.decode((package.folder / "chars.json").read_bytes(), type=dict[str, str])
    found = {name: hexkey(code_points) for code_points, name in named.items()}
    return lambda name: things().get(found.get(name, ""))


def _by_name(chosen: str) -> Callable[[str], Thing | None]:
    own = table().pictures.get(chosen, {})
    return lambda name: find_thing(own.get(name, name))


def find_thing(name: str) -> Thing | None:
    """The thing called `name`, however it is spelt: `flyingsaucer`, `birthday-cake-2`, `flag-for-france`."""
    found = known()
    bare = FLAG.sub("flag of ", TWIN.sub("", name))
    key = next((found[word] for word in _spellings(bare) if word in found), None)
    return things().get(key or "")


def _spellings(name: str) -> Iterator[str]:
    yield glued(name)
    yield glued(name).removesuffix("face")
    yield glued(f"{name} face")
    yield glued(f"flag of {name}")


@functools.cache
def known() -> dict[str, str]:
    """What any set may call a thing -> its hex key."""
    return known_names(things())
