"""FLUX.1: how its networks read a prompt, predict a velocity and decode latents; [dev], [schnell] and mini alike.

The networks are the published classes of diffusers and transformers, called as FluxPipeline calls them.
What it does not know: noise schedules, batches, other trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.faster import prepare, prepare_decoder
from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.means import Means
from fluxserve.engine.networks.flux1_pictures import Looker
from fluxserve.engine.networks.flux1_tokens import PATCH, image_places, pack, unpack
from fluxserve.engine.networks.levels import to_pixels
from fluxserve.engine.residence import Residence
from fluxserve.engine.trajectory import Conditioning, Inputs, noise
from fluxserve.engine.weights import Parts

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.nn import Module
    from transformers import PreTrainedTokenizerBase


class Flux1(Residence):
    """Implements networks.Network."""

    def __init__(self, checkpoint: Checkpoint, parts: Parts) -> None:
        from fluxserve.engine.networks.linear_tail import fold_linear_tail

        fold_linear_tail(parts.vae)
        self._switches = prepare(parts.transformer, parts.speed), prepare_decoder(parts.vae, parts.speed)
        super().__init__(parts, checkpoint.vae_factor)
        self._checkpoint = checkpoint
        self._channels = int(parts.vae.config.latent_channels)
        self._looker = Looker(checkpoint, parts, self.using)

    @property
    def transformer(self) -> Module:
        """Of diffusers."""
        transformer: Module = self._parts.transformer
        return transformer

    @property
    def switches(self) -> Sequence[Switch]:
        """See `faster`."""
        return self._switches

    @property
    def writer(self) -> None:
        """What reads its prompts cannot write."""
        return None

    def encode(self, prompt: str) -> Conditioning:
        """CLIP gives the pooled row, T5 a row for each token; padding is part of the text, there is no mask."""
        text = prompt.encode("utf-8", "replace").decode()
        clip = self._ids(self._parts.tokenizer, text, int(self._parts.tokenizer.model_max_length))
        t5 = self._ids(self._parts.tokenizer_2, text, self._checkpoint.text_length)
        return Conditioning(
            tokens=self._parts.text_encoder_2(t5, output_hidden_states=False)[0],
            pooled=self._parts.text_encoder(clip, output_hidden_states=False).pooler_output,
        )

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        """See `flux1_pictures`."""
        return self._looker.look(generation, pictures, size, means)

    def noise(self, seed: int, size: Size) -> Tensor:
        """Drawn as a picture of latents (1, channels, height, width), then cut into patches."""
        height, width = self._patches(size)
        latents = noise(seed, (1, self._channels, height * PATCH, width * PATCH))
        return pack(latents).to(self._parts.device)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        """Guidance is read only by weights that have an embedding for it. What they say of references is left out."""
        dtype = self._parts.transformer.dtype
        velocity: Tensor = self._parts.transformer(
            hidden_states=_beside(latents, inputs).to(dtype),
            timestep=sigmas,
            guidance=guidance if self._checkpoint.guidance_embeds else None,
            pooled_projections=conditioning.pooled.to(dtype),
            encoder_hidden_states=conditioning.tokens.to(dtype),
            img_ids=self._places(size, inputs),
            txt_ids=_text_ids(conditioning.tokens.shape[1], self._parts.device),
            return_dict=False,
        )[0]
        return velocity[:, : latents.shape[1]].float()

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        """Undo the patches and the VAE's scaling, and decode."""
        vae = self._parts.vae
        scaled = unpack(latents, *self._patches(size)) / vae.config.scaling_factor + vae.config.shift_factor
        return to_pixels(vae.decode(scaled.to(vae.dtype), return_dict=False)[0], size)

    def _places(self, size: Size, inputs: Inputs) -> Tensor:
        import torch

        own = _image_ids(*self._patches(size), self._parts.device)
        return own if inputs.places is None else torch.cat([own, inputs.places])

    def _ids(self, tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> Tensor:
        read = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = read.input_ids
        return ids.to(self._parts.device)

    def _patches(self, size: Size) -> tuple[int, int]:
        """Rows and columns of patches in a picture of `size`."""
        pixels = PATCH * self._checkpoint.vae_factor
        return size.height // pixels, size.width // pixels


def _beside(latents: Tensor, inputs: Inputs) -> Tensor:
    """(rows, image tokens and reference tokens, channels and more channels): what the transformer reads as pictures."""
    import torch

    if inputs.channels is not None:
        latents = torch.cat([latents, inputs.channels.to(latents)], dim=2)
    return latents if inputs.tokens is None else torch.cat([latents, inputs.tokens.to(latents)], dim=1)


@lru_cache(maxsize=64)
def _image_ids(height: int, width: int, device: device) -> Tensor:
    """See `image_places`."""
    return image_places(height, width).to(device)


@lru_cache(maxsize=8)
def _text_ids(length: int, device: device) -> Tensor:
    """(length, 3): text has no place in the picture."""
    import torch

    return torch.zeros(length, 3, device=device)
