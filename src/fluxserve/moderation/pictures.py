"""The classifier seam: what every classifier of pictures offers, and which there are.

What it does not know: which scores are refused, and what becomes of a picture.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Literal, Protocol, cast

from fluxserve.catalogue import Size

Name = Literal["opennsfw", "fake"]
#: name -> "module:Class", imported when used.
CLASSIFIERS: dict[Name, str] = {
    "opennsfw": "fluxserve.moderation.opennsfw:OpenNsfw",
    "fake": "fluxserve.moderation.fake:FakeClassifier",
}


class Classifier(Protocol):
    """Scores pictures, one at a time, in one thread."""

    @property
    def identity(self) -> str:
        """Its name and that of its weights: equal ones give equal scores."""

    def warm(self) -> None:
        """Load the weights and look at one picture. Raises ClassifierMissing."""

    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        """By category, from 0 to 1, what the picture shows: `rgb` holds height x width x 3 bytes, row by row."""


def create(name: Name) -> Classifier:
    """A classifier, not yet warm."""
    module, _, attribute = CLASSIFIERS[name].partition(":")
    return cast("Classifier", getattr(importlib.import_module(module), attribute)())


def suited_to(engine: str) -> Name:
    """Networks draw what has to be looked at; the fake engine's patterns have a fake classifier."""
    return "fake" if engine == "fake" else "opennsfw"


def missing(name: Name) -> str:
    """Why this classifier cannot look at pictures here, and what to do; empty where it can."""
    if name == "fake":
        return ""
    from fluxserve.moderation import opennsfw

    return opennsfw.missing()
