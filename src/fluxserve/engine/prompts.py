"""Prompts that were read before: an exact cache of what the text encoders made of them, within a budget of bytes.

Encoding is a function of the text alone, so what is kept is, bit by bit, what encoding again would give.
What it does not know: networks, trajectories.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fluxserve.engine.trajectory import Conditioning


class PromptCache:
    """The prompts used last, of one checkpoint; used from one thread. A `budget` of 0 bytes keeps nothing."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held = 0
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def get(self, prompt: str, encode: Callable[[str], Conditioning]) -> Conditioning:
        """What `encode` makes of exactly this text; never to be changed in place."""
        kept = self._kept.get(prompt)
        if kept is not None:
            self._kept.move_to_end(prompt)
            return kept
        made = encode(prompt)
        self._kept[prompt] = made
        self._held += made.byte_count
        while self._held > self._budget:
            _, dropped = self._kept.popitem(last=False)
            self._held -= dropped.byte_count
        return made
