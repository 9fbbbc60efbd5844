"""What each model accepts, costs and runs on: one declarative entry per model.

`find(name)` is the only way in; everything public about a model follows from its `ModelSpec`.
What it does not know: who asks, what a task is, how a picture is drawn.
"""

from __future__ import annotations

import difflib

from fluxserve.catalogue import flux1, flux1_tools, flux2, kontext
from fluxserve.catalogue.foreseeing import foresee
from fluxserve.catalogue.resolving import resolve
from fluxserve.catalogue.sizes import Size
from fluxserve.catalogue.spec import Finetune, Generation, InputPicture, ModelSpec, OutputFormat, Price, Resolved
from fluxserve.errors import ModelNotDrawn, UnknownModel

MODELS: dict[str, ModelSpec] = {
    spec.name: spec for family in (flux1, kontext, flux1_tools, flux2) for spec in family.MODELS
}
#: Published models that are asked for by name, and why none of them is drawn.
NOT_DRAWN: dict[str, str] = {
    "flux-3-image-klein": "FLUX.3 networks are not drawn here yet. flux-2-klein-9b is the nearest model that is.",
}

__all__ = [
    "MODELS",
    "NOT_DRAWN",
    "Finetune",
    "Generation",
    "InputPicture",
    "ModelSpec",
    "OutputFormat",
    "Price",
    "Resolved",
    "Size",
    "find",
    "foresee",
    "resolve",
]


def find(name: str) -> ModelSpec:
    """The model called `name`; raises UnknownModel, naming those there are, or ModelNotDrawn, saying why."""
    if name in NOT_DRAWN:
        raise ModelNotDrawn(NOT_DRAWN[name])
    try:
        return MODELS[name]
    except KeyError:
        near = difflib.get_close_matches(name, MODELS, n=3)
        nearest = f" Near it: {', '.join(near)}." if near else ""
        raise UnknownModel(f"There is no model of this name here.{nearest} There are: {', '.join(MODELS)}.") from None
