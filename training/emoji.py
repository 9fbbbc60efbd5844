"""What an emoji is called: labels, names, keywords, groups, and labels in other languages.

Reads emojibase's tables (CLDR's labels and keywords, the short codes that people type), WordNet and `emoji.toml`.
Knows nothing of pictures: `training.pictures` finds an `Emoji` for each of them, so that one thing has one label in
every set.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from training import packages
from training.wordnet import Nouns, nouns

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
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "zh", "ja", "ru", "pl", "uk")
#: The short codes to take keywords from; the others repeat them.
SHORTCODES = ("github", "joypixels", "iamcal", "emojibase")
MAXIMUM_KEYWORDS = 8
#: A tag of more emoji than this names a class ("animal", "face"), a word that more claim names none of them.
MAXIMUM_TAGGED = 4
MAXIMUM_CLAIMED = 2
#: emojibase's numbers of groups; subgroups starting with these words go elsewhere.
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
SIGNS = 8
FLAGS = 9
SUBGROUPS: dict[str, Group] = {
    "plant": "plants",
    "transport": "vehicles",
    "heart": "symbols",
    "emotion": "symbols",
    "time": "objects",
    "hotel": "objects",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Emoji:
    """One thing that can be drawn; `hexcode` is its code points without variation selectors, upper case."""

    hexcode: str
    label: str
    name: str
    group: Group
    keywords: tuple[str, ...]
    labels: dict[str, str]


class Entry(msgspec.Struct, frozen=True):
    """A row of emojibase's `data.json`."""

    label: str
    hexcode: str
    tags: tuple[str, ...] = ()
    group: int | None = None
    subgroup: int | None = None


class House(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`emoji.toml`."""

    dropped_subgroups: frozenset[str]
    kept_labels: frozenset[str]
    dropped_labels: frozenset[str]
    dropped_patterns: tuple[str, ...]
    groups: dict[str, Group]
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    labels: dict[str, dict[str, str]]
    pictures: dict[str, dict[str, str]]


def hexkey(hexcode: str) -> str:
    """Code points as every set can write them: upper case, without the variation selector."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def plain(label: str) -> str:
    """A label as people type it: lower case, straight apostrophes, no colons; "flag: France" is "flag of france"."""
    text = label.lower().replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    text = re.sub(r"^flag: ", "flag of ", text)
    return re.sub(r"\s+", " ", re.sub(r"\s*[:,]\s*", " ", text)).strip()


@functools.cache
def house() -> House:
    """Our own table."""
    text = Path(__file__).with_name("emoji.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), House)


@functools.cache
def emoji() -> dict[str, Emoji]:
    """Everything drawable by hex key, in emojibase's order."""
    subgroups = _subgroups()
    kept = [entry for entry in entries("en") if is_thing(entry, subgroups)]
    translated = _translations()
    chosen = keywords(kept, nouns())
    return {
        hexkey(entry.hexcode): Emoji(
            hexcode=hexkey(entry.hexcode),
            label=plain(entry.label),
            name=name_of(entry),
            group=group_of(entry, subgroups),
            keywords=chosen[entry.hexcode],
            labels=translated[entry.hexcode] | house().labels.get(plain(entry.label), {}),
        )
        for entry in kept
    }


def entries(language: str) -> list[Entry]:
    """emojibase's rows in one language; skin tones are left out."""
    file = packages.EMOJIBASE.folder / language / "data.json"
    return msgspec.json.decode(file.read_bytes(), type=list[Entry])


def is_thing(entry: Entry, subgroups: Mapping[int, str]) -> bool:
    """Whether a person would ask for it to be drawn and know it again."""
    label = plain(entry.label)
    if entry.subgroup is None or entry.group not in GROUPS:
        return False
    if label in house().kept_labels:
        return True
    if subgroups[entry.subgroup] in house().dropped_subgroups or label in house().dropped_labels:
        return False
    raw = entry.label.replace("’", "'")
    return not any(re.search(pattern, raw) for pattern in house().dropped_patterns)


def name_of(entry: Entry) -> str:
    """What a person would call it."""
    label = plain(entry.label)
    return house().names.get(label, label)


def group_of(entry: Entry, subgroups: Mapping[int, str]) -> Group:
    """Our group: emojibase's, with plants, vehicles and signs of feeling apart."""
    special = house().groups.get(plain(entry.label))
    subgroup = subgroups[entry.subgroup or 0]
    moved = SUBGROUPS.get(subgroup.split("-")[0]) if entry.group != SIGNS else None
    return special or moved or GROUPS[entry.group or 0]


def keywords(kept: Sequence[Entry], words: Nouns) -> dict[str, tuple[str, ...]]:
    """Hexcode -> other words that really name the thing, best first; a word that names another thing is left out."""
    codes = _shortcodes()
    british = {entry.hexcode: plain(entry.label) for entry in entries("en-gb")}
    tagged = Counter(tag for entry in kept for tag in set(entry.tags))
    wanted = {entry.hexcode: list(_candidates(entry, codes, british, tagged, words)) for entry in kept}
    claimed = Counter(word for found in wanted.values() for word in set(found))
    taken = {plain(entry.label) for entry in kept} | {name_of(entry) for entry in kept}
    return {
        entry.hexcode: tuple(
            word
            for word in dict.fromkeys(wanted[entry.hexcode])
            if _owns(entry, word, taken) and claimed[word] <= MAXIMUM_CLAIMED
        )[:MAXIMUM_KEYWORDS]
        for entry in kept
    }


def _owns(entry: Entry, word: str, taken: set[str]) -> bool:
    label, name = plain(entry.label), name_of(entry)
    return word not in taken if label == name else word not in taken - {label} and word != name


def _candidates(
    entry: Entry,
    codes: Mapping[str, Sequence[str]],
    british: Mapping[str, str],
    tagged: Mapping[str, int],
    words: Nouns,
) -> Iterator[str]:
    """Words that may name it, best first: ours, the label behind a shorter name, British, WordNet's, typed, tagged."""
    label, name = plain(entry.label), name_of(entry)
    yield from house().keywords.get(label, ())
    if name != label:
        yield label
    if entry.group == FLAGS:  # a flag has a country, not synonyms
        return
    yield british.get(entry.hexcode, label)
    group = group_of(entry, _subgroups())
    yield from words.synonyms(name, group)
    yield from words.synonyms(label, group)
    yield from (code for code in codes.get(entry.hexcode, ()) if re.fullmatch(r"[a-z]{3,}( [a-z]+)*", code))
    for tag in entry.tags:
        if tagged[tag] <= MAXIMUM_TAGGED and (words.are_near(tag, name, group) or words.are_near(tag, label, group)):
            yield tag.lower()


@functools.cache
def _subgroups() -> dict[int, str]:
    table = msgspec.json.decode((packages.EMOJIBASE.folder / "meta" / "groups.json").read_bytes())
    return {int(number): name for number, name in table["subgroups"].items()}


@functools.cache
def _shortcodes() -> dict[str, tuple[str, ...]]:
    """Hexcode -> what people type between colons, as words."""
    found: dict[str, list[str]] = {}
    for preset in SHORTCODES:
        file = packages.EMOJIBASE.folder / "en" / "shortcodes" / f"{preset}.json"
        for hexcode, codes in msgspec.json.decode(file.read_bytes(), type=dict[str, str | list[str]]).items():
            typed = [codes] if isinstance(codes, str) else codes
            found.setdefault(hexcode, []).extend(code.replace("_", " ") for code in typed)
    return {hexcode: tuple(dict.fromkeys(codes)) for hexcode, codes in found.items()}


def _translations() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {entry.hexcode: {} for entry in entries("en")}
    for language in LANGUAGES:
        for entry in entries(language):
            found[entry.hexcode][language] = plain(entry.label)
    return found


def known_names(things: Iterable[Emoji]) -> dict[str, str]:
    """What any set may call a thing, letters and digits only -> its hex key; labels come before looser names."""
    found: dict[str, str] = {}
    official = _unicode_names()
    things = list(things)
    for thing in things:
        for name in (thing.label, thing.name):
            found.setdefault(glued(name), thing.hexcode)
    for thing in things:
        for name in (official.get(thing.hexcode, ""), *_shortcodes().get(thing.hexcode, ()), *thing.keywords):
            found.setdefault(glued(name), thing.hexcode)
    found.pop("", None)
    return found


def glued(name: str) -> str:
    """Letters and digits only: sets differ in hyphens, apostrophes and spaces."""
    return re.sub(r"[\W_]+", "", name.lower())


def _unicode_names() -> dict[str, str]:
    file = packages.EMOJIBASE.folder / "meta" / "unicode-names.json"
    table = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    return {hexkey(hexcode): name for hexcode, name in table.items()}
