"""What is refused here: a prompt before anything is drawn for it, by what it asks for and what its caller tolerates.

What it does not know: how a text is scored, and what becomes of a refused task.
"""

from __future__ import annotations

import asyncio

from fluxserve.catalogue import Generation
from fluxserve.moderation import lexicon, thresholds
from fluxserve.moderation.text import score
from fluxserve.store.submissions import Refusal

#: Longer texts are read in a thread: whatever else the server does waits for no more than this takes.
_SHORT = 2000


class Moderation:
    """Judges requests by one table. `is_on` False: nothing is refused."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on
        self._lexicon = lexicon.load()
        self._thresholds = thresholds.load()

    @property
    def identity(self) -> str:
        """Changes with whatever may change what is refused."""
        return f"{self._lexicon.rules.version}.{self._thresholds.version}" if self.is_on else "off"

    async def judge_prompt(self, generation: Generation, *, has_pictures: bool) -> Refusal | None:
        """Why the prompt is refused; None: it is not. `has_pictures`: it is to be drawn from some."""
        if not self.is_on:
            return None
        if len(generation.prompt) <= _SHORT:
            scores = score(generation.prompt, self._lexicon)
        else:
            scores = await asyncio.to_thread(score, generation.prompt, self._lexicon)
        refused = self._thresholds.refused(scores, generation.safety_tolerance, has_pictures=has_pictures)
        return Refusal(categories=refused, about="prompt") if refused else None
