"""How FLUX.2's weights look at pictures: as references beside the one that is drawn, or as what is drawn over.

References are more image tokens, as if they were other moments of the picture. Pictures are encoded to the mode of the
autoencoder's distribution, so that equal pictures are equal bits, and normalised by its batch norm.
What it does not know: prompts, steps, other trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.catalogue.recipes import Control, Fill, ImageToImage, TextToImage
from fluxserve.engine import canvas
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.networks.levels import to_levels
from fluxserve.engine.trajectory import Inputs, Start

if TYPE_CHECKING:
    from torch import Tensor, device

    from fluxserve.engine.weights import Parts

#: The transformer reads latents in patches of 2 x 2.
PATCH = 2
#: Moments from one picture to the next.
_BETWEEN_PICTURES = 10
#: Pixels of a reference; larger ones are made smaller.
_LARGEST_REFERENCE = 1024 * 1024
#: A mask is white from here.
_WHITE = 0.0


class Looker:
    """Looks at the pictures of generations, for one checkpoint, whose autoencoder is on the device meanwhile."""

    def __init__(self, checkpoint: Checkpoint, parts: Parts) -> None:
        self._checkpoint = checkpoint
        self._parts = parts

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size) -> Inputs:
        """See `Network.look`; there are pictures."""
        if isinstance(generation.recipe, ImageToImage | Fill):
            return Inputs(start=self._start(generation, pictures, size))
        references = self._references([pictures[one.name] for one in generation.pictures])
        return replace(references, warnings=self.warnings(generation))

    def warnings(self, generation: Generation) -> tuple[str, ...]:
        """What whoever asked should be told of how far these weights can do it."""
        name, recipe, most = self._checkpoint.name, generation.recipe, self._checkpoint.family.references
        told = []
        if len(generation.pictures) > most:
            told.append(f"{name} reads {most} pictures: the others were left out")
        if isinstance(recipe, Control):
            told.append(f"{name} reads no {recipe.kind} pictures as such: it took the picture as a reference")
        is_changed = isinstance(recipe, TextToImage) and recipe != TextToImage(likeness=recipe.likeness)
        if is_changed and not self._checkpoint.guidance_embeds:
            told.append(f"{name} reads no guidance, which raw and interval change: they changed nothing")
        return tuple(told)

    def norm(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of a patch, (1, channels, 1, 1) in float32."""
        vae = self._parts.vae
        mean, variance = (one.float().view(1, -1, 1, 1) for one in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _references(self, shown: Sequence[Pixels]) -> Inputs:
        """In their order, as many as the weights learnt to read."""
        import torch

        most, side = self._checkpoint.family.references, self._checkpoint.token_side
        fitted = [pixels_of.fit_reference(one, _LARGEST_REFERENCE, side) for one in shown[:most]]
        seen = [self._encoded(one) for one in fitted]
        places_of = [places(*one.shape[2:], number, self._parts.device) for number, one in enumerate(seen, 1)]
        return Inputs(tokens=torch.cat([pack(one) for one in seen], dim=1), places=torch.cat(places_of))

    def _start(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size) -> Start:
        recipe, asked = generation.recipe, generation.size
        if isinstance(recipe, Fill):
            laid_out = canvas.lay_out(recipe, pictures, asked)
            clean = pack(self._encoded(pixels_of.unfit(laid_out.picture, size)))
            return Start(clean=clean, redrawn=self._redrawn(pixels_of.unfit(laid_out.mask, size)))
        fitted = pixels_of.fit(pictures["image"], asked)
        strength = recipe.strength if isinstance(recipe, ImageToImage) else 1.0
        return Start(clean=pack(self._encoded(pixels_of.unfit(fitted, size))), strength=strength)

    def _redrawn(self, mask: Pixels) -> Tensor:
        """(1, image tokens, channels): 1 for each latent of which a pixel is white."""
        from torch.nn.functional import max_pool2d, pixel_unshuffle

        white = (to_levels(mask).mean(dim=1, keepdim=True) >= _WHITE).float()
        latents = max_pool2d(white, self._checkpoint.vae_factor)
        each = latents.expand(-1, int(self._parts.vae.config.latent_channels), -1, -1)
        return pack(pixel_unshuffle(each, PATCH)).to(self._parts.device)

    def _encoded(self, picture: Pixels) -> Tensor:
        """(1, channels, rows, columns) in float32: a patch of latents at each place, normalised."""
        from torch.nn.functional import pixel_unshuffle

        vae = self._parts.vae
        mean, deviation = self.norm()
        latents = vae.encode(to_levels(picture).to(self._parts.device, vae.dtype)).latent_dist.mode()
        return (pixel_unshuffle(latents.float(), PATCH) - mean) / deviation


def pack(patches: Tensor) -> Tensor:
    """(1, channels, rows, columns) -> (1, rows x columns, channels)."""
    return patches.flatten(2).transpose(1, 2)


@lru_cache(maxsize=64)
def places(rows: int, columns: int, number: int, device: device) -> Tensor:
    """(rows x columns, 4): moment, row, column and word of each image token of a picture, for the rotations.

    `number`: 0 for the picture that is drawn, 1 and so on for references.
    """
    import torch

    each = torch.zeros(rows, columns, 4)
    each[..., 0] = _BETWEEN_PICTURES * number
    each[..., 1] = torch.arange(rows)[:, None]
    each[..., 2] = torch.arange(columns)[None, :]
    return each.reshape(rows * columns, 4).to(device)
