"""Judges elsewhere: what they are asked, and how their answers become scores by category. Pure.

An answer that is not as it should be is none: whoever asked lets nothing through.
What it does not know: who calls them, and how.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Protocol

import msgspec

from fluxserve.errors import JsonValue, ModerationFailed

_FAILED = "A judge's answer cannot be read."
_encode = msgspec.json.Encoder().encode


class Kind(Protocol):
    """One way to ask: the body of a POST, and its answer."""

    def about_text(self, text: str, model: str | None) -> bytes:
        """Asks about a text; `model` is the judge's own name for what should judge."""

    def about_picture(self, file: bytes, media_type: str, model: str | None) -> bytes:
        """Asks about a picture."""

    def read(self, answer: bytes) -> Mapping[str, float]:
        """By category, scores from 0 to 1. Raises ModerationFailed."""


class _Scores(msgspec.Struct, frozen=True):
    scores: dict[str, float]


class Plain:
    """`{"text": TEXT}` or `{"picture": BASE64, "media_type": TYPE}`, with a `model` where one is named.

    Answered by `{"scores": {CATEGORY: NUMBER}}` in categories of ours; one that our table does not know is refused.
    """

    def about_text(self, text: str, model: str | None) -> bytes:
        """Asks about a text."""
        return _encode({"text": text} | _named(model))

    def about_picture(self, file: bytes, media_type: str, model: str | None) -> bytes:
        """Asks about a picture."""
        return _encode({"picture": base64.b64encode(file).decode(), "media_type": media_type} | _named(model))

    def read(self, answer: bytes) -> Mapping[str, float]:
        """The scores, as they are."""
        try:
            return _sound(msgspec.json.decode(answer, type=_Scores).scores)
        except msgspec.MsgspecError:
            raise ModerationFailed(_FAILED) from None


class _Judged(msgspec.Struct, frozen=True):
    category_scores: dict[str, float | None]


class _Results(msgspec.Struct, frozen=True):
    results: tuple[_Judged]


class OpenAi:
    """OpenAI's `/v1/moderations`, which other servers offer too."""

    #: Its words and ours; the others it has (harassment, violence, illicit) are none of our categories.
    CATEGORIES = {  # noqa: RUF012 - read only
        "sexual": "sexual",
        "sexual/minors": "child_safety",
        "hate": "hate",
        "hate/threatening": "hate",
        "self-harm": "self_harm",
        "self-harm/intent": "self_harm",
        "self-harm/instructions": "self_harm",
        "violence/graphic": "gore",
    }

    def about_text(self, text: str, model: str | None) -> bytes:
        """Asks about a text."""
        return _encode({"input": text} | _named(model))

    def about_picture(self, file: bytes, media_type: str, model: str | None) -> bytes:
        """Asks about a picture, in a data URI."""
        url = f"data:{media_type};base64,{base64.b64encode(file).decode()}"
        return _encode({"input": [{"type": "image_url", "image_url": {"url": url}}]} | _named(model))

    def read(self, answer: bytes) -> Mapping[str, float]:
        """Of several of its categories that are one of ours, the highest score."""
        try:
            (judged,) = msgspec.json.decode(answer, type=_Results).results
        except msgspec.MsgspecError:
            raise ModerationFailed(_FAILED) from None
        told = {name: score for name in self.CATEGORIES if (score := judged.category_scores.get(name)) is not None}
        if not told:
            raise ModerationFailed(_FAILED)
        found: dict[str, float] = {}
        for theirs, score in _sound(told).items():
            ours = self.CATEGORIES[theirs]
            found[ours] = max(score, found.get(ours, 0.0))
        return found


#: name -> how to ask. A new kind is a class above and a line here.
KINDS: Mapping[str, Kind] = {"http": Plain(), "openai": OpenAi()}


def _named(model: str | None) -> dict[str, JsonValue]:
    return {} if model is None else {"model": model}


def _sound(scores: dict[str, float]) -> dict[str, float]:
    if not all(0.0 <= score <= 1.0 for score in scores.values()):
        raise ModerationFailed(_FAILED)
    return scores
