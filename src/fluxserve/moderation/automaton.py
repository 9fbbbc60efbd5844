"""Finding every one of many texts in one, in a single pass over it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from operator import add


class Automaton:
    """Finds `terms` in texts (Aho and Corasick, 1975); what belongs to a term is told when it is found."""

    def __init__(self, terms: Mapping[str, tuple[str, ...]]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._told: list[tuple[str, ...]] = [()]
        self._back: list[int] = [0]
        for term, told in terms.items():
            self._add(term, told)
        self._link()

    def _add(self, term: str, told: tuple[str, ...]) -> None:
        state = 0
        for character in term:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._told.append(())
                self._back.append(0)
            state = self._next[state][character]
        self._told[state] = tuple(dict.fromkeys((*self._told[state], *told)))

    def _link(self) -> None:
        """Where to go on when a state has no way: the longest ending of it that begins a term too."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self._next[state].items():
                waiting.append(following)
                back = self._back[state]
                while back and character not in self._next[back]:
                    back = self._back[back]
                self._back[following] = self._next[back].get(character, 0)
                told = (*self._told[following], *self._told[self._back[following]])
                self._told[following] = tuple(dict.fromkeys(told))

    def find(self, text: Iterable[str]) -> list[tuple[int, tuple[str, ...]]]:
        """Where terms end in a text, character by character, and what belongs to those that do."""
        ways, back, told, state = self._next, self._back, self._told, 0
        found: list[tuple[int, tuple[str, ...]]] = []
        for place, character in enumerate(text):
            while state and character not in ways[state]:
                state = back[state]
            state = ways[state].get(character, 0)
            if told[state]:
                found.append((place, told[state]))
        return found


class Index:
    """The same for short terms in a script of many characters: most pairs of characters begin none."""

    def __init__(self, terms: Mapping[str, tuple[str, ...]]) -> None:
        #: By the first two characters of a term, or its only one: what may follow, and what belongs to it then.
        self._rests: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for term, told in terms.items():
            self._rests.setdefault(term[:2], []).append((term[2:], told))
        self._alone = {head: rests[0][1] for head, rests in self._rests.items() if len(head) == 1}

    def find(self, text: str) -> list[tuple[int, tuple[str, ...]]]:
        """Where terms end in a text, and what belongs to each."""
        alone, rests = self._alone, self._rests
        found = [(place, alone[one]) for place, one in enumerate(text) if one in alone]
        pairs = map(add, text, text[1:])
        for begin, further in [(place, rests[pair]) for place, pair in enumerate(pairs) if pair in rests]:
            for rest, told in further:
                if text.startswith(rest, begin + 2):
                    found.append((begin + 1 + len(rest), told))
        return found
