"""Scores of a text: which terms stand where, and which rules that fulfils.

What it does not know: which scores are refused.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add

from fluxserve.moderation.lexicon import IDIOM, LEAST_DOUBLED, LONGEST_STEM, Lexicon, Node, Rule
from fluxserve.moderation.words import is_plain, readings, squeezed, words_of

MINOR = "minor"
#: Of idioms in scripts without spaces, whose groups say how many characters they have.
_LENGTHS = {f"{IDIOM}{length}": length for length in range(1, 41)}
_ADULT = 18
#: Between a number and what says that it is one of years: "15 (!) years".
_AGE_REACH = 2
Places = dict[str, list[int]]
_NOTHING: tuple[tuple[str, ...], tuple[Node, ...]] = ((), ())


def score(text: str, lexicon: Lexicon) -> dict[str, float]:
    """By category, from 0 to 1, how much the text asks for it."""
    places = _Search(text, lexicon).places()
    return {
        category: max((_rule_score(rule, places) for rule in alternatives), default=0.0)
        for category, alternatives in lexicon.rules.categories.items()
    }


def names_minor(text: str, lexicon: Lexicon) -> bool:
    """Whether a minor is spoken of."""
    return MINOR in _Search(text, lexicon).places()


class _Search:
    """One text. What a word means is worked out once, however often it stands there."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self._words = words_of(text)
        self._lexicon = lexicon
        #: The groups of the terms that the word is by itself, and where those go on that it begins.
        self._beginnings: dict[str, tuple[tuple[str, ...], tuple[Node, ...]]] = {}
        self._ways: dict[tuple[Node, str], list[tuple[Node, bool]]] = {}

    def places(self) -> Places:
        """Group to the numbers of the words where a term of it begins, in order."""
        found: Places = {}
        #: Where idioms stand, each place with the end of its idiom; and terms of several words with their ends.
        hidden: dict[int, int] = {}
        longer: list[tuple[str, int, int]] = []
        words, begin, go_on = self._words, self._begin, self._go_on
        for number in words.spaced:
            groups, further = begin(words.written[number])
            for group in groups:
                if group == IDIOM:
                    hidden[number] = number + 1
                found.setdefault(group, []).append(number)
            for node in further:
                for group, end in go_on(node, number + 1):
                    if group == IDIOM:
                        hidden |= dict.fromkeys(range(number, end), end)
                    longer.append((group, number, end))
        for number, groups in (*self._unspaced(), *self._apart(), *self._inside()):
            for group in groups:
                if (length := _LENGTHS.get(group)) is not None:
                    hidden |= dict.fromkeys(range(number + 1 - length, number + 1), number + 1)
                found.setdefault(group, []).append(number)
        for number in self._young_places():
            found.setdefault(MINOR, []).append(number)
        for number, spelt in words.beside.items():
            for group in {group for word in spelt for group in begin(word)[0]}:
                found.setdefault(group, []).append(number)
        for number, run in words.runs.items():
            inside = {group for _, groups in self._lexicon.in_runs.find(run) for group in groups}
            for group in inside.union(begin(run)[0]):
                found.setdefault(group, []).append(number)
        if hidden:
            kept = {group: [number for number in numbers if number not in hidden] for group, numbers in found.items()}
            found = {group: numbers for group, numbers in kept.items() if numbers}
        for group, number, end in longer:  # one that goes on beyond an idiom is more than that
            if end > hidden.get(number, 0):
                found.setdefault(group, []).append(number)
        return {group: sorted(numbers) for group, numbers in found.items()}

    def _unspaced(self) -> list[tuple[int, tuple[str, ...]]]:
        """Terms of scripts without spaces. Latin syllables beside them are read as what they sound like."""
        written, spaced = self._words.written, self._words.spaced
        if len(spaced) == len(written):
            return []
        if not spaced:
            return self._lexicon.unspaced.find("".join(written))
        sounds = self._lexicon.sounds
        return self._lexicon.unspaced.find("".join([one if len(one) == 1 else sounds.get(one, " ") for one in written]))

    def _apart(self) -> list[tuple[int, tuple[str, ...]]]:
        """Terms that are written as two words."""
        joined, written = self._lexicon.joined, self._words.written
        if len(self._words.spaced) < len(written):
            written = [written[number] for number in self._words.spaced]
            places: Sequence[int] = self._words.spaced
        else:
            places = range(len(written))
        pairs = map(add, written, written[1:])
        return [(places[at], joined[pair]) for at, pair in enumerate(pairs) if pair in joined]

    def _inside(self) -> list[tuple[int, tuple[str, ...]]]:
        """Korean terms inside longer words."""
        if not self._words.is_korean:
            return []
        text = " ".join(self._words.written)
        ends = list(accumulate(len(word) + 1 for word in self._words.written))
        return [(bisect_right(ends, place), groups) for place, groups in self._lexicon.inside.find(text)]

    def _begin(self, word: str) -> tuple[tuple[str, ...], tuple[Node, ...]]:
        known = self._beginnings.get(word)
        if known is None:
            known = self._beginnings[word] = self._work_out(word)
        return known

    def _work_out(self, word: str) -> tuple[tuple[str, ...], tuple[Node, ...]]:
        heads, root = self._lexicon.heads, self._lexicon.root
        steps = _steps(root, word) if heads.may_begin(word) or not is_plain(word) else []
        if not steps and len(word) >= LEAST_DOUBLED:
            single = squeezed(word)
            if len(word) - len(single) > 1 and single in root.following:
                steps = [(root.following[single], True)]  # no stems: "goddess" is no beginning of anything
        if not steps:
            return _NOTHING
        groups = dict.fromkeys(group for node, _ in steps for group in node.groups)
        return tuple(groups), tuple(node for node, is_whole in steps if is_whole and not node.is_end)

    def _way(self, node: Node, word: str) -> list[tuple[Node, bool]]:
        known = self._ways.get((node, word))
        if known is None:
            known = self._ways[node, word] = _steps(node, word)
        return known

    def _go_on(self, node: Node, number: int) -> Sequence[tuple[str, int]]:
        """The groups of the terms that go on here, and where those end. Terms are short, so this takes bounded time."""
        if number == len(self._words.written) or not (ways := self._way(node, self._words.written[number])):
            return ()
        groups: list[tuple[str, int]] = []
        for following, is_whole in ways:
            groups += [(group, number + 1) for group in following.groups]
            if is_whole and not following.is_end:
                groups += self._go_on(following, number + 1)
        return groups

    def _young_places(self) -> Iterator[int]:
        """Where an age under eighteen begins: 15yo, 15 years, fifteen years, aged 15, age fifteen."""
        written, ages, aged = self._words.written, self._lexicon.ages, self._lexicon.aged
        young = self._lexicon.young
        likely = [word for word in set(written) if word in young or word[0].isdecimal()]
        numbers = {word: rest for word in likely if (rest := self._rest_of_age(word)) is not None}
        if numbers:
            for number, word in enumerate(written):
                if word in numbers:
                    rest = numbers[word]
                    after = [rest] if rest else written[number + 1 : number + 1 + _AGE_REACH]
                    if not ages.isdisjoint(after) or (number and written[number - 1] in aged):
                        yield number

    def _rest_of_age(self, word: str) -> str | None:
        """What stands behind a number under eighteen in a word; None: the word begins with none."""
        if word in self._lexicon.young:
            return ""
        rest = word.lstrip("0123456789")
        digits = word[: len(word) - len(rest)]
        return rest if 0 < len(digits) < 3 and 0 < int(digits) < _ADULT else None


def _steps(node: Node, word: str) -> list[tuple[Node, bool]]:
    """The nodes that a word leads to; with True, those that it is read as whole."""
    found: list[tuple[Node, bool]] = []
    following, stems = node.following, node.stems
    for reading in readings(word):
        if reading in following:
            found.append((following[reading], True))
        if stems:
            for end in range(1, min(len(reading), LONGEST_STEM) + 1):
                if reading[:end] in stems:
                    found.append((stems[reading[:end]], False))  # noqa: PERF401 - most find nothing, and then it is faster
    return found


def _rule_score(rule: Rule, places: Mapping[str, Sequence[int]]) -> float:
    if not all(group in places for group in rule.all) or not _stand_together(rule, places):
        return 0.0
    return rule.otherwise if any(group in places for group in rule.unless) else rule.score


def _stand_together(rule: Rule, places: Mapping[str, Sequence[int]]) -> bool:
    """Whether some word of the rarest group has one of every other group near it."""
    rarest, *others = sorted((places[group] for group in rule.all), key=len)
    return not rule.within or any(all(_is_near(place, other, rule.within) for other in others) for place in rarest)


def _is_near(place: int, others: Sequence[int], within: int) -> bool:
    nearest = bisect_left(others, place - within)
    return nearest < len(others) and others[nearest] <= place + within
