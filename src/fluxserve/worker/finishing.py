"""What surrounds the drawing: input pictures are unpacked and judged, drawn ones judged and encoded, beside the steps.

A picture that is refused goes no further than here, whatever it is.
What it does not know: the engine, the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fluxserve.engine import pixels
from fluxserve.engine.base import Finished, Pixels
from fluxserve.engine.marks import mark_of
from fluxserve.errors import DrawingFailed, InputDamaged, ModerationFailed
from fluxserve.worker import protocol as p
from fluxserve.worker.holding import Holding
from fluxserve.worker.judging import Judging

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Finishing:
    """One thread to encode in, and one to judge in."""

    def __init__(self, judging: Judging) -> None:
        self.judging = judging
        #: Files of pictures say what was asked for.
        self.tells_prompts = False
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="fluxserve-encoder")

    async def unpack(self, holding: Holding) -> Mapping[str, Pixels] | p.Failed | p.Withheld:
        """The input pictures of a claim, or how it ends without being drawn."""
        refuse_from = holding.assignment.refuse_from
        try:
            pictures = await self._beside(holding.unpacked)
            if refuse_from is not None:
                verdict = await self.judging.look(pictures.values(), refuse_from)
                if verdict.is_refused:
                    return holding.withheld(verdict.scores, "input_picture")
        except (InputDamaged, ModerationFailed) as error:
            return holding.failed(error)
        return pictures

    async def finish(self, holding: Holding, drawn: Finished) -> p.Outcome:
        """The outcome of a drawn picture."""
        generation, refuse_from = holding.assignment.generation, holding.assignment.refuse_from
        scores: Mapping[str, float] | None = None
        try:
            if refuse_from is not None:
                verdict = await self.judging.look((drawn.pixels,), refuse_from)
                if verdict.is_refused:
                    return holding.withheld(verdict.scores, "picture")
                scores = verdict.scores
            mark = mark_of(generation, drawn.drawn_by, tells_prompt=self.tells_prompts)
            picture = await self._beside(lambda: pixels.encode(drawn.pixels, generation.output_format, mark))
        except ModerationFailed as error:
            return holding.failed(error)
        except Exception:  # whatever it is, it is this one task's and must end it
            logger.exception("A picture could not be encoded", extra={"action": "encoding_failed"})
            return holding.failed(DrawingFailed("The picture could not be encoded."))
        return holding.finished(drawn, picture, scores)

    async def preview(self, holding: Holding, preview: Pixels) -> bytes | None:
        """A preview as a file; None: nobody may see it."""
        refuse_from = holding.assignment.refuse_from
        try:
            if refuse_from is not None and (await self.judging.look((preview,), refuse_from)).is_refused:
                return None
        except ModerationFailed:
            return None
        return await self._beside(lambda: pixels.encode_preview(preview))

    async def _beside(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoding, call)
