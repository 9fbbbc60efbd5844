"""WordNet's nouns: which words name the same thing.

Reads the plain files of the database (index.noun, data.noun; their format is described in WordNet's wndb(5)). Picks a
word's meaning by the kind of thing it should be, so that a "seal" among animals is no sealing wax.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training import packages

#: WordNet's files of lexicographers by group: 05 animal, 06 artifact, 08 body, 13 food, 15 location, 17 object,
#: 18 person, 19 phenomenon, 20 plant, 27 substance.
KINDS: dict[str, frozenset[str]] = {
    "animals": frozenset({"05"}),
    "plants": frozenset({"20"}),
    "food": frozenset({"13", "20"}),
    "vehicles": frozenset({"06"}),
    "places": frozenset({"06", "15", "17", "19"}),
    "objects": frozenset({"06", "08", "17", "27"}),
    "activities": frozenset({"06"}),
    "people": frozenset({"08", "18"}),
    "smileys": frozenset({"18"}),
}
MAXIMUM_WORDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One synset: its kind (number of the lexicographers' file), its words, its direct hypernyms."""

    kind: str
    words: tuple[str, ...]
    above: frozenset[str]


class Nouns:
    """Meanings by offset, and for each word its meanings, commonest first."""

    def __init__(self, meanings: Mapping[str, Meaning], senses: Mapping[str, tuple[str, ...]]) -> None:
        self._meanings = meanings
        self._senses = senses

    def synonyms(self, word: str, group: str) -> Iterator[str]:
        """Other plain words that mean the same thing first of all; Latin and proper names are left out."""
        chosen = self._meaning(word, group)
        for other in self._meanings[chosen].words if chosen else ():
            is_plain = other != word and other == other.lower() and len(other.split()) <= MAXIMUM_WORDS
            if is_plain and self._of(other)[0] == chosen:
                yield other

    def can_be(self, word: str, group: str) -> bool:
        """Whether the word can mean something of the right kind; of groups without a kind anything goes."""
        return group not in KINDS or self._meaning(word, group) is not None

    def are_near(self, word: str, other: str, group: str) -> bool:
        """Whether both can mean the same thing, or one of them is a kind of the other."""
        first, second = self._meaning(word, group), self._meaning(other, group)
        if not first or not second:
            return False
        return first == second or first in self._meanings[second].above or second in self._meanings[first].above

    def _meaning(self, word: str, group: str) -> str | None:
        """The commonest meaning of the right kind."""
        kinds = KINDS.get(group, frozenset())
        return next((sense for sense in self._of(word) if self._meanings[sense].kind in kinds), None)

    def _of(self, word: str) -> tuple[str, ...]:
        return self._senses.get(word.lower().replace(" ", "_"), ())


@functools.cache
def nouns() -> Nouns:
    """The nouns of the fetched package."""
    folder = packages.WORDNET.folder / "dict"
    with (folder / "data.noun").open(encoding="utf-8") as data, (folder / "index.noun").open(encoding="utf-8") as index:
        meanings = dict(parse_meaning(line) for line in data if not line.startswith(" "))
        senses = dict(parse_senses(line) for line in index if not line.startswith(" "))
    return Nouns(meanings, senses)


def parse_meaning(line: str) -> tuple[str, Meaning]:
    """`offset file type count (word id)* count (pointer offset type fields)* | gloss`; count in hexadecimal."""
    fields = line.split("|")[0].split()
    count = int(fields[3], 16)
    pointers = fields[5 + 2 * count :]
    words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
    above = frozenset(pointers[at + 1] for at in range(0, len(pointers) - 3, 4) if pointers[at] == "@")
    return fields[0], Meaning(kind=fields[1], words=words, above=above)


def parse_senses(line: str) -> tuple[str, tuple[str, ...]]:
    """`word type senses pointers (pointer)* senses tagged (offset)*`."""
    fields = line.split()
    return fields[0], tuple(fields[-int(fields[2]) :])
