"""What is refused here: prompts before anything is drawn for them, pictures before anybody sees them.

By what they ask for or show, and what their caller tolerates. A picture whose scores are not all there is not let
through.
What it does not know: how a text or a picture is scored, and what becomes of a refused task.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Literal

from fluxserve.catalogue import Generation
from fluxserve.errors import ModerationFailed, ModerationUnavailable
from fluxserve.moderation import lexicon, thresholds
from fluxserve.moderation.text import names_minor, score
from fluxserve.moderation.thresholds import CHILD_SAFETY, SEXUAL
from fluxserve.service.judges import Judges
from fluxserve.store.submissions import Refusal

#: Longer texts are read in a thread: whatever else the server does waits for no more than this takes.
_SHORT = 2000


class Moderation:
    """Judges requests by one table. `is_on` False: nothing is refused."""

    def __init__(self, *, is_on: bool, judges: Judges | None = None) -> None:
        """`judges`: those elsewhere, whose scores count beside our own."""
        self.is_on = is_on
        self.judges = judges or Judges((), timeout=0.0)
        self._lexicon = lexicon.load()
        self._thresholds = thresholds.load()

    @property
    def identity(self) -> str:
        """Changes with whatever may change what is refused."""
        versions = f"{self._lexicon.rules.version}.{self._thresholds.version}"
        return f"{versions} {self.judges.identity}" if self.is_on else "off"

    async def judge_prompt(self, generation: Generation, *, has_pictures: bool) -> Refusal | None:
        """Why the prompt is refused; None: it is not. `has_pictures`: it is to be drawn from some.

        Raises ModerationUnavailable.
        """
        if not self.is_on:
            return None
        if len(generation.prompt) <= _SHORT:
            scores = score(generation.prompt, self._lexicon)
        else:
            scores = await asyncio.to_thread(score, generation.prompt, self._lexicon)
        tolerance = generation.safety_tolerance
        refused = self._thresholds.refused(scores, tolerance, has_pictures=has_pictures)
        if not refused:
            try:
                found = await self.judges.judge_text(generation.prompt)
            except ModerationFailed:
                raise ModerationUnavailable("The prompt cannot be judged at the moment. Try again later.") from None
            refused = self._thresholds.refused(found, tolerance, has_pictures=has_pictures)
        return Refusal(categories=refused, about="prompt") if refused else None

    def refuse_from(self, generation: Generation) -> dict[str, float] | None:
        """By category, from which score on a picture of this task is refused; None: none is."""
        if not self.is_on:
            return None
        return self._thresholds.for_pictures(
            generation.safety_tolerance,
            has_pictures=bool(generation.pictures),
            names_minor=names_minor(generation.prompt, self._lexicon),
        )

    def judge_scores(
        self,
        generation: Generation,
        scores: Mapping[str, float] | None,
        about: Literal["input_picture", "picture"] = "picture",
    ) -> Refusal | None:
        """Why a picture with these scores is refused; None: it is not. Raises ModerationFailed where one is missing."""
        refuse_from = self.refuse_from(generation)
        if refuse_from is None:
            return None
        known = scores or {}
        if not all(0.0 <= known.get(name, math.nan) <= 1.0 for name in refuse_from):
            raise ModerationFailed("The picture was not looked at, and so is not delivered.")
        refused = tuple(name for name, least in refuse_from.items() if known[name] >= least)
        if SEXUAL in refused and names_minor(generation.prompt, self._lexicon):
            refused = (CHILD_SAFETY, *refused)
        return Refusal(categories=refused, about=about) if refused else None

    async def judge_picture(
        self, generation: Generation, picture: bytes, scores: Mapping[str, float] | None
    ) -> Refusal | None:
        """Why a drawn picture is refused, by its scores or by judges elsewhere. Raises ModerationFailed."""
        refusal = self.judge_scores(generation, scores)
        if refusal is not None or not self.is_on:
            return refusal
        found = await self.judges.judge_picture(picture, generation.output_format)
        refused = self._thresholds.refused(found, generation.safety_tolerance, has_pictures=bool(generation.pictures))
        return Refusal(categories=refused, about="picture") if refused else None
