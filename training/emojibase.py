"""emojibase's tables as they are: labels and tags in many languages, short codes, Unicode's own names, subgroups.

Knows the package's files and how labels are written plainly. Does not know which entries we use (`training.emoji`).
"""

from __future__ import annotations

import functools
import re

import msgspec

from training import packages

LANGUAGES = ("de", "fr", "es", "it", "pt", "nl", "zh", "ja", "ru", "pl", "uk")
#: The short codes to read; the others repeat them.
SHORTCODES = ("github", "joypixels", "iamcal", "emojibase")


class Entry(msgspec.Struct, frozen=True):
    """A row of `data.json`; `hexcode` is code points joined by hyphens."""

    label: str
    hexcode: str
    tags: tuple[str, ...] = ()
    group: int | None = None
    subgroup: int | None = None


def hexkey(hexcode: str) -> str:
    """Code points as every set can write them: upper case, without the variation selector."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def plain(label: str) -> str:
    """A label as people type it: lower case, straight apostrophes, no colons; "flag: France" is "flag of france"."""
    text = label.lower().replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    text = re.sub(r"^flag: ", "flag of ", text)
    text = re.sub(r"^(person|man|woman): bald$", r"bald \1", text)
    text = re.sub(r"^(person|man|woman): beard$", r"\1 with a beard", text)
    text = re.sub(r"^(person|man|woman): (\w+ hair)$", r"\1 with \2", text)
    return re.sub(r"\s+", " ", re.sub(r"\s*[:,]\s*", " ", text)).strip()


@functools.cache
def entries(language: str) -> tuple[Entry, ...]:
    """All rows in one language; skin tones are left out."""
    file = packages.EMOJIBASE.folder / language / "data.json"
    return msgspec.json.decode(file.read_bytes(), type=tuple[Entry, ...])


@functools.cache
def subgroups() -> dict[int, str]:
    """Number -> name: "animal-mammal", "food-fruit"."""
    file = packages.EMOJIBASE.folder / "meta" / "groups.json"
    table = msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, object]])
    return {int(number): str(name) for number, name in table["subgroups"].items()}


@functools.cache
def typed() -> dict[str, tuple[str, ...]]:
    """Hex key -> what people type between colons, as words."""
    found: dict[str, list[str]] = {}
    for preset in SHORTCODES:
        file = packages.EMOJIBASE.folder / "en" / "shortcodes" / f"{preset}.json"
        for hexcode, codes in msgspec.json.decode(file.read_bytes(), type=dict[str, str | list[str]]).items():
            listed = [codes] if isinstance(codes, str) else codes
            found.setdefault(hexkey(hexcode), []).extend(code.replace("_", " ") for code in listed)
    return {key: tuple(dict.fromkeys(codes)) for key, codes in found.items()}


@functools.cache
def unicode_names() -> dict[str, str]:
    """Hex key -> the character's name in Unicode, upper case."""
    file = packages.EMOJIBASE.folder / "meta" / "unicode-names.json"
    return {hexkey(code): name for code, name in msgspec.json.decode(file.read_bytes(), type=dict[str, str]).items()}


@functools.cache
def labels() -> dict[str, dict[str, str]]:
    """Hex key -> language -> label; "en-gb" is among the languages."""
    found: dict[str, dict[str, str]] = {}
    for language in (*LANGUAGES, "en-gb"):
        for entry in entries(language):
            found.setdefault(hexkey(entry.hexcode), {})[language] = plain(entry.label)
    return found
