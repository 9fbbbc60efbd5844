"""What the networks of a family offer the engine; which file draws which family is said in `families`.

What it does not know: files on disk, trajectories, batches.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, cast

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.means import Means, Stage
from fluxserve.engine.trajectory import Conditioning, Inputs
from fluxserve.engine.writing import Writes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fluxserve.engine.weights import Parts


class Network(Protocol):
    """The networks of one checkpoint, loaded. Latents are float32 (rows, image tokens, channels) on the device."""

    def using(self, stage: Stage, means: Means) -> AbstractContextManager[None]:
        """Inside, what `stage` needs is on the device and computes by these means."""

    @property
    def transformer(self) -> Module:
        """What predicts: adapters change what its layers do, but never its weights."""

    @property
    def switches(self) -> Sequence[Switch]:
        """Of what makes the transformer faster, and the decoder."""

    @property
    def is_movable(self) -> bool:
        """Whether what a stage does not need can be taken off the device."""

    def alone(self, stage: Stage) -> AbstractContextManager[None]:
        """Inside, `stage` has the device to itself: others wait, and what only they need is off it until then."""

    def leave(self) -> None:
        """Off the device with all of it, into the machine's memory. Raises what torch raises where memory runs out."""

    def come(self) -> None:
        """Back to the device, the same bits."""

    @property
    def writer(self) -> Writes | None:
        """Its language model, where it was loaded whole; it works where prompts are read (`Stage.ENCODE`)."""

    def encode(self, prompt: str) -> Conditioning:
        """The prompt as the transformer reads it; always one row."""

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        """What the generation's pictures are to these weights, for a picture that is drawn at `size`.

        Equal pictures become equal bits. Weights that cannot do what the recipe wants say so in `warnings`. Which
        stages' networks look depends on the recipe: they are taken here (`using`), not by the caller.
        """

    def noise(self, seed: int, size: Size) -> Tensor:
        """The latents a picture of `size` starts from, one row."""

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        """The velocity at `latents`; all else but `inputs.places` has a row for each row of latents."""

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        """One row of finished latents as a picture of `size`. Raises BadPicture."""


def create(checkpoint: Checkpoint, parts: Parts) -> Network:
    """The networks of the checkpoint's family over its loaded parts."""
    module, _, name = checkpoint.family.draws.partition(":")
    return cast("Network", getattr(importlib.import_module(module), name)(checkpoint, parts))
