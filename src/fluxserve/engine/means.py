"""Means: other ways to draw a picture where the usual one failed, and which of them comes next.

Each may change last bits, so a picture that was drawn by one has a fingerprint of its own: it answers no equal
request, and is not written down on its way. What changes no bit (stepping alone, moving idle networks off the device)
is tried first and is none of these.
What it does not know: networks, tensors, why something failed.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from enum import StrEnum

from fluxserve.errors import EngineError

logger = logging.getLogger(__name__)
_LENGTH = 16


class Stage(StrEnum):
    """What a picture goes through; each has its own networks."""

    ENCODE = "encode"
    PREDICT = "predict"
    DECODE = "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """`alone`: one picture in a pass that is else filled up to more; `tiled`: decoded in tiles; `exact`: in float32."""

    alone: bool = False
    tiled: bool = False
    exact: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """What is not as usual."""
        named = {"one picture in a pass": self.alone, "decoded in tiles": self.tiled, "float32": self.exact}
        return tuple(word for word, is_so in named.items() if is_so)

    @property
    def is_usual(self) -> bool:
        """Nothing is different."""
        return not self.words

    def fingerprint(self, usual: str) -> str:
        """The word for pictures drawn by these means where others have the word `usual`."""
        if self.is_usual:
            return usual
        return hashlib.sha256("\n".join((usual, *self.words)).encode()).hexdigest()[:_LENGTH]


USUAL = Means()


def with_less_memory(means: Means, stage: Stage, *, fills_up: bool) -> Means | None:
    """What takes less where `stage` ran out of memory; None: nothing does.

    `fills_up`: its passes are filled up to a fixed number of pictures.
    """
    if stage is Stage.PREDICT and fills_up and not means.alone:
        return replace(means, alone=True)
    if stage is Stage.DECODE and not means.tiled:
        return replace(means, tiled=True)
    return None


def more_exact(means: Means, dtype: str) -> Means | None:
    """What may help a picture that came out bad; None where it was computed in float32 already."""
    return None if means.exact or dtype == "float32" else replace(means, exact=True)


def log_means(ref: str, means: Means, error: EngineError) -> None:
    """Tell whoever keeps the worker that a picture is drawn by `means` because of `error`."""
    logger.warning(
        "A picture is drawn by other means: %s",
        ", ".join(means.words),
        extra={"action": "other_means", "ref": ref, "error": type(error).__name__},
    )
