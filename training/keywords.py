"""Which other words really name a thing.

Candidates, best first: our own table, the label behind a shorter name, the British label, WordNet's synonyms, what
people type between colons, emojibase's tags. A word is left out when it names a class ("animal"), another thing, a deed
rather than a thing, or adds nothing to the label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from training.wordnet import Nouns

MAXIMUM_KEYWORDS = 8
#: A tag of more things than this names their class; a word that more things claim names none of them.
MAXIMUM_TAGGED = 4
MAXIMUM_CLAIMED = 2
#: What a word for a face or an animal's face must hold, when it is more than one word.
FACES = frozenset({"face", "cat", "monkey", "head"})
#: Set artists' and Unicode's words for how something is drawn, not for what it is.
STIFF = re.compile(r"^(lower left|white sun|heavy|large|small|european) |\b(wo)?mans\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A thing and all that others call it."""

    key: str
    label: str
    name: str
    group: str
    tags: tuple[str, ...]
    typed: tuple[str, ...]
    british: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What is known of words: WordNet, our own keywords by label, words never to use, how many things bear a tag."""

    nouns: Nouns
    ours: Mapping[str, tuple[str, ...]]
    dropped: frozenset[str]
    tagged: Mapping[str, int]


def choose(things: Sequence[Named], words: Words) -> dict[str, tuple[str, ...]]:
    """Hex key -> keywords, best first."""
    wanted = {thing.key: list(dict.fromkeys(candidates(thing, words))) for thing in things}
    claimed = Counter(word for found in wanted.values() for word in found)
    taken = {thing.label for thing in things} | {thing.name for thing in things}
    return {
        thing.key: tuple(
            word
            for word in wanted[thing.key]
            if word != thing.name and word not in taken - {thing.label} and claimed[word] <= MAXIMUM_CLAIMED
        )[:MAXIMUM_KEYWORDS]
        for thing in things
    }


def candidates(thing: Named, words: Words) -> Iterator[str]:
    """Words that may name it, best first."""
    yield from words.ours.get(thing.label, ())
    yield thing.label
    if thing.group != "flags":  # a country has no synonyms
        yield from (word for word in _found(thing, words) if word not in words.dropped)


def _found(thing: Named, words: Words) -> Iterator[str]:
    yield thing.british
    for own in dict.fromkeys((thing.name, thing.label)):
        yield from words.nouns.synonyms(own, thing.group)
    yield from (code for code in thing.typed if names_it(code, thing, words.nouns))
    for tag in thing.tags:
        near = any(words.nouns.are_near(tag, own, thing.group) for own in (thing.name, thing.label))
        if near and words.tagged[tag] <= MAXIMUM_TAGGED:
            yield tag.lower()


def names_it(code: str, thing: Named, nouns: Nouns) -> bool:
    """Whether a short code is another name: "runner" for "person running", but neither "running" nor "mage man"."""
    said = re.findall(r"[a-z0-9]+", code)
    if not re.fullmatch(r"[a-z]{3,}( [a-z]+)*", code) or STIFF.search(code):
        return False
    own = set(re.findall(r"[a-z0-9]+", f"{thing.label} {thing.name}"))
    if set(said) <= own:
        return _reorders_a_deed(said, thing)
    if len(said) == 1:
        return nouns.can_be(code, thing.group)
    return thing.group != "smileys" or bool(FACES & set(said))


def _reorders_a_deed(said: Sequence[str], thing: Named) -> bool:
    """ "running man" for "man running" is English; "man blond haired" is not."""
    return said[0].endswith("ing") and len(said) == len(thing.label.split())
