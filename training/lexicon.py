"""The words that prompts are made of: how much each counts, and what it means in English.

Words come from captions, from everything the records call their pictures, and from common English nouns that no
picture shows. A foreign word means the English words that it stands beside in translated labels.
What it does not know: tokens, networks, pictures.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training import wordnet
from training.records import Record

#: How much a word counts for each time it stands in a label or name, a keyword, or is common.
_LABEL, _KEYWORD, _COMMON = 100, 20, 25
_FOREIGN = 36  # how much the words of a translated label count together
#: WordNet's files of nouns one can draw: animal, artifact, body, food, object, person, phenomenon, plant, shape.
_DRAWABLE = frozenset({"05", "06", "08", "13", "17", "18", "19", "20", "25"})
_FREQUENT = 4000  # words of any kind that free prompts are likely to hold
_TRACE = 0.2
_WORD = re.compile(r"[^\W_]+")

#: A word's meaning: English words and how much each is meant; the shares add up to one.
Meaning = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Each word with how much it counts, and what each means; words without a known meaning are in `counts` only."""

    counts: Counter[str]
    meanings: Mapping[str, Meaning]


def words(text: str) -> list[str]:
    """The words of a text in lower case; everything that is no letter or digit separates."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def lexicon(records: Sequence[Record], captions: Iterable[str], common: Iterable[str]) -> Lexicon:
    """Gather all words; `common` are English words that count although nothing shows them."""
    counts: Counter[str] = Counter(word for caption in captions for word in words(caption))
    english: set[str] = set()
    foreign: set[str] = set()
    for record in {record.label: record for record in records}.values():
        for text, weight in _english(record):
            counts.update(dict.fromkeys(words(text), weight))
            english.update(words(text))
        for label in record.labels.values():
            counts.update(dict.fromkeys(words(label), -(-_FOREIGN // len(words(label)))))
            foreign.update(words(label))
    for word in common:
        counts[word] += _COMMON
        english.add(word)
    english |= counts.keys() - foreign  # the captions' own words
    return Lexicon(counts=counts, meanings=_meanings(english, _translations(records)))


def common_words(nouns: Path, vocabulary: Path) -> list[str]:
    """English words that prompts are likely to hold, most frequent first.

    `nouns` is the folder of WordNet's database, `vocabulary` a BERT vocabulary (a word a line, by frequency): its
    first words are all taken, then those whose first sense is a thing one can draw.
    """
    frequent = [word for word in vocabulary.read_text("utf-8").split("\n") if re.fullmatch("[a-z]+", word)]
    drawable = _drawable(nouns)
    return frequent[:_FREQUENT] + [word for word in frequent[_FREQUENT:] if word in drawable]


def align(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], rounds: int = 10) -> dict[str, dict[str, float]]:
    """What each foreign word means, from (foreign words, English words) of the same label.

    Expectation maximisation of translation model 1 (Brown et al., "The Mathematics of Statistical Machine
    Translation", 1993), without its empty word: shares[foreign][english] add up to one for each foreign word.
    """
    kept = [(foreign, english) for foreign, english in pairs if foreign and english]
    shares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(lambda: 1.0))
    for _ in range(rounds):
        found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for foreign, english in kept:
            for theirs in foreign:
                total = sum(shares[theirs][ours] for ours in english)
                for ours in english:
                    found[theirs][ours] += shares[theirs][ours] / total
        shares = {theirs: _shares(meant) for theirs, meant in found.items()}
    return {theirs: _shares(_without_traces(meant)) for theirs, meant in shares.items()}


def _english(record: Record) -> Iterator[tuple[str, int]]:
    """What English calls it, each with how much a word in it counts."""
    for text in sorted({record.label, record.name}):
        yield text, _LABEL
    for text in record.keywords:
        yield text, _KEYWORD


def _translations(records: Iterable[Record]) -> dict[str, list[dict[str, float]]]:
    """What each foreign word means in each of the languages that have it."""
    by_label = {record.label: record for record in records}
    pairs: dict[str, list[tuple[list[str], list[str]]]] = defaultdict(list)
    for record in by_label.values():
        for language, label in record.labels.items():
            for text in sorted({record.label, record.name}):
                pairs[language].append((words(label), words(text)))
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _, of_language in sorted(pairs.items()):
        for word, meant in align(of_language).items():
            found[word].append(meant)
    return found


def _meanings(english: Iterable[str], translations: Mapping[str, Sequence[Meaning]]) -> dict[str, Meaning]:
    """An English word means itself; one that is also foreign ("chat") means both, in equal parts."""
    meanings: dict[str, Meaning] = {word: {word: 1.0} for word in sorted(english)}
    for word, by_language in translations.items():
        total: dict[str, float] = defaultdict(float)
        for meant in by_language:
            for ours, share in meant.items():
                total[ours] += share / len(by_language)
        if word in meanings:
            total[word] += 1.0
        meanings[word] = _shares(_without_traces(total))
    return meanings


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    """Made to add up to one."""
    total = math.fsum(amounts.values())
    return {word: amount / total for word, amount in amounts.items()}


def _without_traces(amounts: Mapping[str, float]) -> dict[str, float]:
    """Without what is meant far less than the most meant."""
    least = _TRACE * max(amounts.values())
    return {word: amount for word, amount in amounts.items() if amount >= least}


def _drawable(folder: Path) -> set[str]:
    """Nouns of one word, no proper names, whose first sense is in one of the drawable files."""
    meanings = dict(wordnet.parse_meaning(line) for line in _lines(folder / "data.noun"))
    firsts = {word: meanings[senses[0]] for word, senses in map(wordnet.parse_senses, _lines(folder / "index.noun"))}
    # A proper name is spelt with a capital in its meaning, and without in the index.
    return {word for word, first in firsts.items() if first.kind in _DRAWABLE and word in first.words}


def _lines(path: Path) -> Iterator[str]:
    """The lines after the licence, which is indented."""
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith(" "))
