"""Words and rules from data files: groups of terms by language, and which groups together mean what.

A term is words in a row; a star at its end stands for any ending of its last word, one at its beginning for any
beginning of a Korean word. The files go through the same folding as texts do. What stands inside a term of the group
`idiom` means something else, and counts for nothing.
What it does not know: how texts are scored.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec

from fluxserve.moderation.automaton import Automaton, Index
from fluxserve.moderation.words import fold, words_of

FOLDER = Path(__file__).parent / "lexicon"
RULES_FILE = "rules.toml"
#: Letters of a stem, at most.
LONGEST_STEM = 20
#: Letters by which most words are told apart from terms.
HEAD = 3
#: Shorter terms are not looked for inside runs of letters: each would be in some run of honest ones.
LEAST_IN_RUN = 4
#: Shorter terms are not looked for in two words; nor, where they have fewer of these, from behind: "arroz", "epic".
LEAST_APART, LEAST_BACKWARDS = 4, 6
#: A word of five letters, two of them doubled: shorter ones are not read without their doubled letters.
LEAST_DOUBLED = 7
IDIOM = "idiom"
_DOTLESS = "ı"
_LATIN = re.compile("[a-z]+")
_KOREAN = re.compile("[\uac00-\ud7a3 ]+")
#: Syllables of a Korean term that is looked for inside words without a star.
_LEAST_INSIDE = 3


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text has `score` where terms of every group in `all` stand `within` so many words (0: anywhere in the text).

    Where terms of a group in `unless` are in the text, it has `otherwise` instead.
    """

    all: tuple[str, ...]
    score: float
    within: int = 0
    unless: tuple[str, ...] = ()
    otherwise: float = 0.0


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`version` changes with every change that may change a score."""

    version: int
    categories: dict[str, tuple[Rule, ...]]


class _Language(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`groups`: name to terms. `ages`: words after a number of years, `aged`: before it; `young`: such under 18."""

    groups: dict[str, tuple[str, ...]]
    ages: tuple[str, ...] = ()
    aged: tuple[str, ...] = ()
    young: tuple[str, ...] = ()
    #: Syllables in Latin letters, beside Chinese characters, and the character that each is read as.
    sounds: dict[str, str] = {}


class _Terms(dict[str, tuple[str, ...]]):
    """Terms, and the groups that each is in."""

    def add(self, term: str, group: str) -> None:
        self[term] = tuple(dict.fromkeys((*self.get(term, ()), group)))


@dataclass(slots=True, eq=False)
class Node:
    """A step in a term: what may come next, and the groups of the terms that end here."""

    following: dict[str, Node] = field(default_factory=dict)
    stems: dict[str, Node] = field(default_factory=dict)
    groups: tuple[str, ...] = ()

    @property
    def is_end(self) -> bool:
        """No term goes on from here."""
        return not self.following and not self.stems


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How the words begin that may begin a term: with HEAD letters, or with a stem that has fewer."""

    whole: frozenset[str]
    short: frozenset[str]

    @classmethod
    def of(cls, root: Node) -> Heads:
        """Those of all terms."""
        short = frozenset(stem for stem in root.stems if len(stem) < HEAD)
        return cls(whole=frozenset(word[:HEAD] for word in (*root.following, *root.stems)), short=short)

    def may_begin(self, word: str) -> bool:
        """Whether a word, as it is written, may; most cannot."""
        return word[:HEAD] in self.whole or word[:2] in self.short or word[:1] in self.short


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Everything that is looked up: word by word from `root`, where a word begins as `heads` say; `unspaced` finds
    terms in scripts without spaces, `inside` Korean ones in longer words, `in_runs` those in letters that stood alone,
    whose words nobody parted, and `joined` has those that are one word, for two words that are one.
    """

    rules: Rules
    root: Node
    ages: frozenset[str]
    aged: frozenset[str]
    young: frozenset[str]
    in_runs: Automaton
    unspaced: Index
    inside: Index
    joined: Mapping[str, tuple[str, ...]]
    sounds: Mapping[str, str]
    heads: Heads
    languages: tuple[str, ...]


@cache
def load(folder: Path = FOLDER) -> Lexicon:
    """Every file of a folder. Raises msgspec.ValidationError, or ValueError for a rule about a group without terms."""
    rules = msgspec.convert(tomllib.loads((folder / RULES_FILE).read_text("utf-8")), Rules)
    files = sorted(path for path in folder.glob("*.toml") if path.name != RULES_FILE)
    languages = {path.stem: msgspec.convert(tomllib.loads(path.read_text("utf-8")), _Language) for path in files}
    into = _Into()
    for language in languages.values():
        for group, terms in language.groups.items():
            for term in terms:
                into.add(term, group)
    _check(rules, {group for language in languages.values() for group in language.groups})
    return Lexicon(
        rules=rules,
        root=into.root,
        ages=frozenset(_folded(word for language in languages.values() for word in language.ages)),
        aged=frozenset(_folded(word for language in languages.values() for word in language.aged)),
        young=frozenset(_folded(word for language in languages.values() for word in language.young)),
        in_runs=Automaton(into.alone),
        unspaced=Index(into.unspaced),
        inside=Index(into.inside),
        joined=dict(into.joined),
        sounds={sound: read for language in languages.values() for sound, read in language.sounds.items()},
        heads=Heads.of(into.root),
        languages=tuple(languages),
    )


@dataclass(slots=True, eq=False)
class _Into:
    """Where the terms of all files are put."""

    root: Node = field(default_factory=Node)
    alone: _Terms = field(default_factory=_Terms)
    unspaced: _Terms = field(default_factory=_Terms)
    inside: _Terms = field(default_factory=_Terms)
    joined: _Terms = field(default_factory=_Terms)

    def add(self, term: str, group: str) -> None:
        """Everywhere where it may be looked for. Raises ValueError for a term that says nothing."""
        is_stem, is_inside = term.endswith("*"), term.startswith("*")
        read = words_of(term.strip("*"))
        words = read.written
        if not words:
            raise ValueError(f"A term of {group} has no word: {term!r}.")
        if is_stem and len(words[-1]) > LONGEST_STEM:
            raise ValueError(f"A stem of {group} is too long: {term!r}.")
        joined = "".join(words)
        if not read.spaced:
            self.unspaced.add(joined, f"{IDIOM}{len(joined)}" if group == IDIOM else group)
            return
        for spelt in {" ".join(words), " ".join(words).replace(_DOTLESS, "i")}:
            self._add_words(spelt.split(" "), group, is_stem=is_stem)
        if group == IDIOM:
            return
        if len(joined) >= LEAST_IN_RUN:
            self.alone.add(joined, group)
        if len(words) == 1 and len(joined) >= LEAST_APART:
            self.joined.add(joined, group)
            if _LATIN.fullmatch(joined) and len(joined) >= LEAST_BACKWARDS:
                self._add_words([joined[::-1]], group, is_stem=False)
        if _KOREAN.fullmatch(joined) and (is_inside or len(joined) >= _LEAST_INSIDE):
            self.inside.add(" ".join(words), group)

    def _add_words(self, words: list[str], group: str, *, is_stem: bool) -> None:
        node = self.root
        for word in words[:-1]:
            node = node.following.setdefault(word, Node())
        last = (node.stems if is_stem else node.following).setdefault(words[-1], Node())
        last.groups = tuple(dict.fromkeys((*last.groups, group)))


def _check(rules: Rules, groups: set[str]) -> None:
    for category, alternatives in rules.categories.items():
        for rule in alternatives:
            if unknown := {*rule.all, *rule.unless} - groups:
                raise ValueError(f"A rule of {category} names groups that have no terms: {', '.join(sorted(unknown))}.")
            if not 0 <= rule.otherwise <= rule.score <= 1:
                raise ValueError(f"A rule of {category} has scores that are not in order from 0 to 1.")


def _folded(words: Iterable[str]) -> list[str]:
    return [fold(word) for word in words]
