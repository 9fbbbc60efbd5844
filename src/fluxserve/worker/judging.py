"""Pictures are looked at before anybody gets them, in a thread beside the steps; where that goes wrong, nobody does.

What it does not know: tasks, categories.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fluxserve.engine.base import Pixels
from fluxserve.errors import ModerationFailed
from fluxserve.moderation.pictures import Classifier

logger = logging.getLogger(__name__)
_FAILED = "The picture could not be looked at, and so is not delivered."


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was seen, by category the highest score of all pictures."""

    scores: Mapping[str, float]
    is_refused: bool


class Judging:
    """Judges by `classifier`, each picture within `timeout` seconds; None: it judges none."""

    def __init__(self, classifier: Classifier | None, timeout: float) -> None:
        self._classifier = classifier
        self._timeout = timeout
        self._thread = _thread()
        #: A look never came back: this process is no good for more.
        self.is_stuck = False

    @property
    def identity(self) -> str:
        """What judges; empty: nothing does."""
        return self._classifier.identity if self._classifier is not None else ""

    async def open(self) -> None:
        """Ready to look at pictures. Raises ClassifierMissing."""
        if self._classifier is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._classifier.warm)

    async def look(self, pictures: Iterable[Pixels], refuse_from: Mapping[str, float]) -> Verdict:
        """At all of these; they are refused where one has a score of `refuse_from`. Raises ModerationFailed."""
        scores = dict.fromkeys(refuse_from, 0.0)
        for picture in pictures:
            seen = await self._score(picture)
            scores = {category: max(score, _sound(seen, category)) for category, score in scores.items()}
        is_refused = any(scores[category] >= least for category, least in refuse_from.items())
        return Verdict(scores=scores, is_refused=is_refused)

    async def _score(self, picture: Pixels) -> Mapping[str, float]:
        if self._classifier is None:
            raise ModerationFailed(_FAILED)
        looking = asyncio.get_running_loop().run_in_executor(
            self._thread, self._classifier.score, picture.size, picture.data
        )
        try:
            return await asyncio.wait_for(looking, self._timeout)
        except TimeoutError:
            logger.warning("A look at a picture takes too long", extra={"action": "moderation_timeout"})
            self._thread, self.is_stuck = _thread(), True
        except Exception:  # whatever it is, nothing is let through
            logger.exception("A picture could not be looked at", extra={"action": "moderation_failed"})
        raise ModerationFailed(_FAILED)


def _sound(scores: Mapping[str, float], category: str) -> float:
    """A score as it has to be. Raises ModerationFailed."""
    score = scores.get(category, math.nan)
    if not 0.0 <= score <= 1.0:
        raise ModerationFailed(_FAILED)
    return score


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="fluxserve-judge")
