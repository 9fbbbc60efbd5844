"""The things that can be drawn: which emoji they are, what they are called, to which group they belong.

Puts emojibase, WordNet and our own table (`emoji.toml`) together. Knows nothing of pictures: `training.pictures` finds
a `Thing` for each of them, so that one thing has one label in every set.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from training import emojibase, keywords, wordnet
from training.emojibase import Entry, hexkey, plain

Group = Literal[
    "smileys",
    "people",
    "animals",
    "plants",
    "food",
    "places",
    "vehicles",
    "activities",
    "objects",
    "symbols",
    "flags",
]
#: emojibase's numbers of groups.
GROUPS: dict[int, Group] = {
    0: "smileys",
    1: "people",
    3: "animals",
    4: "food",
    5: "places",
    6: "activities",
    7: "objects",
    8: "symbols",
    9: "flags",
}
#: The first word of a subgroup that goes elsewhere than its group; not among the symbols, whose subgroups are signs.
SUBGROUPS: dict[str, Group] = {
    "plant": "plants",
    "transport": "vehicles",
    "heart": "symbols",
    "emotion": "symbols",
    "time": "objects",
    "hotel": "objects",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing that can be drawn. No two have the same label or name."""

    key: str  # its code points, see `emojibase.hexkey`
    label: str
    name: str
    group: Group
    keywords: tuple[str, ...]
    labels: dict[str, str]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`emoji.toml`."""

    dropped_subgroups: frozenset[str]
    kept_labels: frozenset[str]
    dropped_labels: frozenset[str]
    dropped_patterns: tuple[str, ...]
    dropped_keywords: frozenset[str]
    groups: dict[str, Group]
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    labels: dict[str, dict[str, str]]
    pictures: dict[str, dict[str, str]]


@functools.cache
def table() -> Table:
    """Our own table."""
    text = Path(__file__).with_name("emoji.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Table)


@functools.cache
def things() -> dict[str, Thing]:
    """Everything that can be drawn by hex key, in emojibase's order."""
    kept = [entry for entry in emojibase.entries("en") if is_thing(entry)]
    chosen = keywords.choose([_named(entry) for entry in kept], _words(kept))
    return {hexkey(entry.hexcode): _thing(entry, chosen[hexkey(entry.hexcode)]) for entry in kept}


def is_thing(entry: Entry) -> bool:
    """Whether a person would ask for it to be drawn and know it again."""
    label = plain(entry.label)
    if entry.subgroup is None or entry.group not in GROUPS:
        return False
    if label in table().kept_labels:
        return True
    if emojibase.subgroups()[entry.subgroup] in table().dropped_subgroups or label in table().dropped_labels:
        return False
    written = entry.label.replace("’", "'")
    return not any(re.search(pattern, written) for pattern in table().dropped_patterns)


def name_of(entry: Entry) -> str:
    """What a person would call it."""
    label = plain(entry.label)
    return table().names.get(label, label)


def group_of(entry: Entry) -> Group:
    """Our group: emojibase's, with plants, vehicles and signs of feeling apart."""
    group = GROUPS[entry.group or 0]
    start = emojibase.subgroups()[entry.subgroup or 0].split("-")[0]
    moved = SUBGROUPS.get(start, group) if group != "symbols" else group
    return table().groups.get(plain(entry.label), moved)


def known_names(known: Mapping[str, Thing]) -> dict[str, str]:
    """What any set may call a thing, letters and digits only -> its hex key; labels come before looser names."""
    official = {hexkey(entry.hexcode): entry.label for entry in emojibase.entries("en")}
    labels = [(word, key) for key, thing in known.items() for word in (thing.label, thing.name, official[key])]
    looser = [
        (word, key)
        for key, thing in known.items()
        for word in (emojibase.unicode_names().get(key, ""), *emojibase.typed().get(key, ()), *thing.keywords)
    ]
    found: dict[str, str] = {}
    for word, key in labels + looser:
        if glued(word):
            found.setdefault(glued(word), key)
    return found


def glued(name: str) -> str:
    """Letters and digits only: sets differ in hyphens, apostrophes and spaces."""
    return re.sub(r"[\W_]+", "", name.lower())


def _thing(entry: Entry, chosen: tuple[str, ...]) -> Thing:
    label, key = plain(entry.label), hexkey(entry.hexcode)
    translated = {language: text for language, text in emojibase.labels()[key].items() if language != "en-gb"}
    return Thing(
        key=key,
        label=label,
        name=name_of(entry),
        group=group_of(entry),
        keywords=chosen,
        labels=translated | table().labels.get(label, {}),
    )


def _named(entry: Entry) -> keywords.Named:
    key = hexkey(entry.hexcode)
    return keywords.Named(
        key=key,
        label=plain(entry.label),
        name=name_of(entry),
        group=group_of(entry),
        tags=entry.tags,
        typed=emojibase.typed().get(key, ()),
        british=emojibase.labels()[key].get("en-gb", plain(entry.label)),
    )


def _words(kept: Iterable[Entry]) -> keywords.Words:
    return keywords.Words(
        nouns=wordnet.nouns(),
        ours=table().keywords,
        dropped=table().dropped_keywords,
        tagged=Counter(tag for entry in kept for tag in set(entry.tags)),
    )
