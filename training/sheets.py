"""Seeded sheets of what mini draws, none of them picked: `training/sheets`.

What it does not know: how good the pictures are (evaluate.py).
"""

from __future__ import annotations

import itertools
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from torch import Tensor

from training.backdrops import COLOURS, GROUNDS, SKIES
from training.canvases import SMALL, SQUARE, canvases
from training.drawing import Artist, Wish, as_tensor, shrunk
from training.evaluate import PIPELINE
from training.exams import GUIDANCE, LANGUAGES, STEPS
from training.painter import contact_sheet
from training.pictures import DRAWING
from training.records import Record
from training.render import files, read_records
from training.vocabulary import Entry, Weighted, entries
from training.words import STYLE_ORDER, article, is_countable, plural, with_article

_COLUMNS = 8
_BATCH = 8
_QUALITY = 88
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_RELATIONS = ("{} and {}", "{} to the left of {}", "{} above {}", "{} on top of {}")


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of a sheet: what to draw, and what is written below it."""

    wish: Wish
    caption: str


class Sheets:
    """Which prompts each sheet shows; things are drawn by lot, by the seed."""

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        self._entries, self._records, self._seed = entries(records), records, seed
        self._by_name: Mapping[str, Callable[[], Iterator[Shown]]] = {
            "prompts": self._prompts,
            "backgrounds": self._backgrounds,
            "scenes": self._scenes,
            "styles": self._styles,
            "pairs": self._pairs,
            "counts": self._counts,
            "languages": self._languages,
            "settings": self._settings,
            "shapes": self._shapes,
            **{group: partial(self._things, group) for group in self._groups()},
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All sheets."""
        return tuple(self._by_name)

    def sheet(self, name: str) -> list[Shown]:
        """The pictures of one sheet, row by row."""
        return list(self._by_name[name]())

    def _groups(self) -> list[str]:
        return sorted({entry.group for entry in self._entries})

    def _things(self, group: str) -> Iterator[Shown]:
        of_group = [entry for entry in self._entries if entry.group == group]
        for entry in random.Random(f"{self._seed}/{group}").sample(of_group, min(4 * _COLUMNS, len(of_group))):
            yield self._one(with_article(entry.label))

    def _prompts(self) -> Iterator[Shown]:
        listed = tomllib.loads((Path(__file__).parent / "prompts.toml").read_text(encoding="utf-8"))
        for prompt in itertools.chain.from_iterable(listed.values()):
            yield self._one(prompt, size=(1024, 1024))

    def _backgrounds(self) -> Iterator[Shown]:
        for colour, entry in zip(COLOURS, self._lot("backgrounds"), strict=False):
            yield self._one(f"{with_article(entry.name)} on {article(colour)} {colour} background")

    def _scenes(self) -> Iterator[Shown]:
        lot = self._lot("scenes")
        for sky, ground in itertools.product(SKIES, (*GROUNDS, None)):
            yield self._one(" ".join(part for part in (with_article(next(lot).name), ground, sky) if part))

    def _styles(self) -> Iterator[Shown]:
        full = [entry for entry in self._entries if set(STYLE_ORDER) <= set(entry.sprites)]
        chosen = random.Random(f"{self._seed}/styles").sample(full, min(_COLUMNS, len(full)))
        for style, entry in itertools.product(STYLE_ORDER, chosen):
            yield self._one(f"{with_article(entry.name)}, {style} style")

    def _pairs(self) -> Iterator[Shown]:
        lot = self._lot("pairs")
        for words in _RELATIONS * _COLUMNS:
            yield self._one(words.format(with_article(next(lot).name), with_article(next(lot).name)))

    def _counts(self) -> Iterator[Shown]:
        lot = (entry for entry in self._lot("counts") if is_countable(entry.name))
        for number in _NUMBERS.values():
            for entry in itertools.islice(lot, _COLUMNS):
                yield self._one(f"{number} {plural(entry.name)}")

    def _languages(self) -> Iterator[Shown]:
        for language in LANGUAGES:
            spoken = self._spoken(language)
            yield from (self._one(label) for label in itertools.islice(spoken, _COLUMNS))

    def _spoken(self, language: str) -> Iterator[str]:
        """Labels in a language, where they mean this and nothing else, in an order of the seed."""
        rng = random.Random(f"{self._seed}/languages/{language}")
        for entry in rng.sample(self._entries, len(self._entries)):
            label = self._records[entry.sprites[entry.default_style][0]].labels.get(language)
            if label in entry.foreign:
                yield label

    def _settings(self) -> Iterator[Shown]:
        """One prompt and seed at falling steps (rows) and rising guidance (columns)."""
        for steps, guidance in itertools.product((28, 12, 8, 4), (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)):
            shown = self._one("a panda on a yellow background", steps=steps, guidance=guidance)
            yield msgspec.structs.replace(shown, caption=f"{steps} steps, guidance {guidance:g}")

    def _shapes(self) -> Iterator[Shown]:
        for height, width in canvases(SMALL):
            shown = self._one("a sailboat on water at sunset", size=(width, height))
            yield msgspec.structs.replace(shown, caption=f"{shown.caption}, {width} x {height}")

    def _lot(self, name: str) -> Iterator[Entry]:
        weighted, rng = Weighted(self._entries), random.Random(f"{self._seed}/{name}")
        return (weighted.draw(rng) for _ in itertools.count())

    def _one(
        self, prompt: str, size: tuple[int, int] = SQUARE, steps: int = STEPS, guidance: float = GUIDANCE
    ) -> Shown:
        wish = Wish(prompt=prompt, seed=self._seed, size=size, steps=steps, guidance=guidance)
        return Shown(wish=wish, caption=prompt)


def draw(artist: Artist, shown: Sequence[Shown]) -> Tensor:
    """(B, 3, 128, 128): the pictures, those that are not square with white around them."""
    found: list[Tensor] = []
    for _, group in itertools.groupby(shown, key=lambda one: (one.wish.size, one.wish.steps)):
        wishes = [one.wish for one in group]
        for first in range(0, len(wishes), _BATCH):
            found += [_cell(as_tensor(picture)) for picture in artist.draw(wishes[first : first + _BATCH])]
    return torch.stack(found)


def _cell(picture: Tensor) -> Tensor:
    height, width = picture.shape[1:]
    across, down = max(0, height - width), max(0, width - height)
    edges = (across // 2, across - across // 2, down // 2, down - down // 2)
    return shrunk(F.pad(picture[None], edges, value=1.0))[0]


def main(
    pipeline: Annotated[Path, typer.Option(help="The folder to draw with.")] = PIPELINE,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("docs/mini"),
    only: Annotated[str, typer.Option(help="Some sheets, with commas; by default all.")] = "",
    seed: Annotated[int, typer.Option(help="Of the things and of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Draw the sheets, one JPEG each."""
    records = [record for name in DRAWING for record in read_records(files(name).records)]
    sheets, artist = Sheets(records, seed), Artist(pipeline, device, threads)
    out.mkdir(parents=True, exist_ok=True)
    for name in only.split(",") if only else sheets.names:
        shown = sheets.sheet(name)
        sheet = contact_sheet(draw(artist, shown), [one.caption for one in shown], _COLUMNS)
        sheet.save(out / f"{name}.jpeg", quality=_QUALITY, optimize=True)
        print(f"{name}: {len(shown)} pictures", flush=True)


if __name__ == "__main__":
    typer.run(main)
