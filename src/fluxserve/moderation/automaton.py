"""Finding every one of many texts in one, in a single pass over it (Aho and Corasick, 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


class Automaton:
    """Finds `terms` in texts; what belongs to a term is told when it is found."""

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
