"""What there are pictures of: labels, their weights, their sprites by style, and every way to name them.

One phrase means one thing: a name or keyword that several labels claim goes to the one with most right to it.
It also decides which combinations are held out of training. What it does not know: captions, places, pixels.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

import msgspec

from training.records import Record
from training.words import GROUP_WEIGHTS, STYLE_ORDER, lists

_HELD_OUT_OF = 10  # one combination in ten
_MAIN_LANGUAGES = frozenset({"de", "fr", "es", "it", "pt", "nl"})  # said three times as often as the others
_KEYWORDS = 4  # how many of a label's keywords are used at most


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One label: its names, those in `foreign` as often as they weigh, and its sprites (indices) for each style."""

    label: str
    group: str
    weight: float
    name: str
    keywords: tuple[str, ...]
    foreign: tuple[str, ...]
    sprites: dict[str, tuple[int, ...]]

    @property
    def default_style(self) -> str:
        return next(iter(self.sprites))


class Weighted:
    """Labels drawn by their weights; with `is_even` by the roots of them, so that rare ones come up more often."""

    def __init__(self, entries: Sequence[Entry], *, is_even: bool = False) -> None:
        self._entries = entries
        self._sums = list(accumulate(entry.weight ** (0.5 if is_even else 1.0) for entry in entries))

    def __len__(self) -> int:
        return len(self._entries)

    def draw(self, rng: random.Random) -> Entry:
        return self._entries[bisect.bisect(self._sums, rng.random() * self._sums[-1])]


@lru_cache(maxsize=1 << 18)
def is_held_out(*parts: str) -> bool:
    """Whether training never shows this combination; the same answer on every machine, for every order of `parts`."""
    digest = hashlib.blake2b("\n".join(sorted(parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT_OF == 0


def entries(records: Sequence[Record]) -> list[Entry]:
    """The vocabulary of `records`, in the order of the labels' first record."""
    grouped: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        grouped.setdefault(record.label, []).append(index)
    firsts = {label: records[indices[0]] for label, indices in grouped.items()}
    owners = _owners(firsts)
    return [_entry(records, indices, owners) for indices in grouped.values()]


def weight(label: str, group: str) -> float:
    """How often a label is shown beside the others."""
    return GROUP_WEIGHTS.get(group, 1.0) * (2.0 if label in lists().common else 1.0)


def _entry(records: Sequence[Record], indices: list[int], owners: dict[str, str]) -> Entry:
    first = records[indices[0]]
    label = first.label

    def own(phrases: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(phrase for phrase in phrases if owners.get(phrase.lower()) == label))

    return Entry(
        label=label,
        group=first.group,
        weight=weight(label, first.group),
        name=first.name if own([first.name]) else label,
        keywords=own(_keywords(first)),
        foreign=tuple(
            phrase
            for language, phrase in first.labels.items()
            for _ in range(3 if language in _MAIN_LANGUAGES else 1)
            if owners.get(phrase.lower()) == label
        ),
        sprites=_by_style(records, indices),
    )


def _keywords(record: Record) -> tuple[str, ...]:
    """Everyday names first, then the data's own, without what nobody should say."""
    known, unsaid = {record.label, record.name}, lists().unsaid
    own = [keyword for keyword in record.keywords if keyword not in known | unsaid][:_KEYWORDS]
    return tuple(dict.fromkeys((*lists().aliases.get(record.label, ()), *own)))


def _owners(firsts: dict[str, Record]) -> dict[str, str]:
    """Phrase in lower case -> what it means: labels, then names, keywords of one label, foreign labels."""
    owners = {label: label for label in firsts}
    ranked = sorted(firsts.values(), key=lambda record: -weight(record.label, record.group))
    for record in ranked:
        owners.setdefault(record.name, record.label)
    claims: dict[str, list[str]] = {}
    for record in ranked:
        for keyword in _keywords(record):
            claims.setdefault(keyword, []).append(record.label)
    for keyword, claimants in claims.items():
        aliased = [label for label in claimants if keyword in lists().aliases.get(label, ())]
        if aliased or len(claimants) == 1:
            owners.setdefault(keyword, (aliased or claimants)[0])
    for record in ranked:
        for foreign in record.labels.values():
            owners.setdefault(foreign.lower(), record.label)
    return owners


def _by_style(records: Sequence[Record], indices: list[int]) -> dict[str, tuple[int, ...]]:
    """Style -> sprites, the style that a bare caption shows first."""
    found: dict[str, tuple[int, ...]] = {}
    for index in indices:
        style = records[index].style
        found[style] = (*found.get(style, ()), index)
    order = [
        *(style for style in STYLE_ORDER if style in found),
        *(style for style in found if style not in STYLE_ORDER),
    ]
    return {style: found[style] for style in order}
