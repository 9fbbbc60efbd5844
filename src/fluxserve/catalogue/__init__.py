"""What each model accepts, costs and runs on: one declarative entry per model.

`find(name)` is the only way in; everything public about a model follows from its `ModelSpec`.
What it does not know: who asks, what a task is, how a picture is drawn.
"""

from __future__ import annotations

from fluxserve.catalogue import flux1
from fluxserve.catalogue.sizes import Size
from fluxserve.catalogue.spec import (
    Finetune,
    Generation,
    InputPicture,
    ModelSpec,
    OutputFormat,
    Price,
    Resolved,
    resolve,
)
from fluxserve.errors import UnknownModel

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in flux1.MODELS}

__all__ = [
    "MODELS",
    "Finetune",
    "Generation",
    "InputPicture",
    "ModelSpec",
    "OutputFormat",
    "Price",
    "Resolved",
    "Size",
    "find",
    "resolve",
]


def find(name: str) -> ModelSpec:
    """The model called `name`; raises UnknownModel, naming those there are."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModel(f"There is no model of this name here. There are: {', '.join(MODELS)}.") from None
