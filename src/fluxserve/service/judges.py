"""Judges elsewhere are asked, all at once, by whoever makes calls; without an answer from each nothing is let through.

What it does not know: sockets, and which scores are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fluxserve.catalogue import OutputFormat
from fluxserve.delivery.outbound import Answer, Call
from fluxserve.errors import ModerationFailed, OutboundError
from fluxserve.moderation.judges import KINDS
from fluxserve.settings import Judge

logger = logging.getLogger(__name__)
#: Longer answers are none.
MAX_ANSWER = 2**20
_OK = 200
#: Makes a call to an address of the operator's. Raises OutboundError.
Ask = Callable[[Call], Awaitable[Answer]]


class Judges:
    """Those that the settings name; each has `timeout` seconds."""

    def __init__(self, judges: Sequence[Judge], *, timeout: float) -> None:
        self._judges = judges
        self._timeout = timeout
        #: Set once somebody can call.
        self.ask: Ask | None = None

    @property
    def identity(self) -> str:
        """Who they are, and what they are asked."""
        return " ".join(f"{judge.kind} {judge.url} {judge.model} {judge.asked_about}" for judge in self._judges)

    async def judge_text(self, text: str) -> Mapping[str, float]:
        """By category, the highest score that one of them gives a text. Raises ModerationFailed."""
        asked = [judge for judge in self._judges if judge.asked_about != "pictures"]
        return await self._highest([(one, KINDS[one.kind].about_text(text, one.model)) for one in asked])

    async def judge_picture(self, file: bytes, output_format: OutputFormat) -> Mapping[str, float]:
        """The same of a picture."""
        asked, media_type = [judge for judge in self._judges if judge.asked_about != "texts"], f"image/{output_format}"
        return await self._highest([(one, KINDS[one.kind].about_picture(file, media_type, one.model)) for one in asked])

    async def _highest(self, questions: Sequence[tuple[Judge, bytes]]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for scores in await asyncio.gather(*(self._answer(judge, body) for judge, body in questions)):
            for category, score in scores.items():
                found[category] = max(score, found.get(category, 0.0))
        return found

    async def _answer(self, judge: Judge, body: bytes) -> Mapping[str, float]:
        headers = [(b"content-type", b"application/json"), *judge.bearer]
        call = Call(
            method="POST", url=judge.url, limit=MAX_ANSWER, timeout=self._timeout, headers=headers, body=body,
            whole=True,
        )  # fmt: skip
        try:
            answer = await self.ask(call) if self.ask is not None else None
            if answer is not None and answer.status == _OK:
                return KINDS[judge.kind].read(answer.body)
            reason = "nobody calls it yet" if answer is None else f"it answers {answer.status}"
        except (OutboundError, ModerationFailed) as error:
            reason = error.message
        logger.warning("A judge does not judge", extra={"action": "judge_failed", "judge": judge.url, "reason": reason})
        raise ModerationFailed("A judge did not answer, and so nothing is delivered.")
