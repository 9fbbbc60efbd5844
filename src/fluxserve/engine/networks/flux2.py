"""FLUX.2: how its networks read a prompt, predict a velocity and decode latents; [dev] and [klein] alike.

The networks are the published classes of diffusers and transformers, called as Flux2Pipeline and Flux2KleinPipeline
call them. A language model reads the prompt as what somebody says to it, and some of its layers' rows stand side by
side for each token; there is no pooled row. Latents are normalised by a batch norm of the autoencoder.
What it does not know: noise schedules, batches, other trajectories.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.faster import prepare, prepare_decoder
from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.means import Means, Stage
from fluxserve.engine.networks.flux2_pictures import PATCH, Looker, pack, places
from fluxserve.engine.networks.levels import to_pixels
from fluxserve.engine.residence import Residence
from fluxserve.engine.trajectory import Conditioning, Inputs, noise
from fluxserve.engine.weights import Parts
from fluxserve.engine.writing import Talk, Writer

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: A prompt as the language model is told it, in the template of its tokenizer.
Chat = Callable[["PreTrainedTokenizerBase", str], str]


def dev(checkpoint: Checkpoint, parts: Parts) -> Flux2:
    """FLUX.2 [dev], whose prompts Mistral reads."""
    return Flux2(checkpoint, parts, _told_to_mistral, _asked_of_mistral)


def klein(checkpoint: Checkpoint, parts: Parts) -> Flux2:
    """FLUX.2 [klein], whose prompts Qwen3 reads."""
    return Flux2(checkpoint, parts, _told_to_qwen, _asked_of_qwen)


class Flux2(Residence):
    """Implements networks.Network."""

    def __init__(self, checkpoint: Checkpoint, parts: Parts, chat: Chat, talk: Talk) -> None:
        self._switches = prepare(parts.transformer, parts.speed), prepare_decoder(parts.vae, parts.speed)
        self._layers = checkpoint.family.text_layers
        self._reader = _as_far_as(max(self._layers), parts.text_encoder)
        self._writer = Writer(parts.text_encoder, parts.tokenizer, talk, parts.device) if parts.writes else None
        kept = parts.text_encoder if parts.writes else self._reader
        super().__init__(replace(parts, by_name={**parts.by_name, "text_encoder": kept}), checkpoint.vae_factor)
        self._checkpoint = checkpoint
        self._chat = chat
        self._looker = Looker(checkpoint, self._parts)
        self._channels = int(parts.transformer.config.in_channels)

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
    def writer(self) -> Writer | None:
        """See `writing`."""
        return self._writer

    def encode(self, prompt: str) -> Conditioning:
        """A row for each token; the reader does not see padding, but its rows are part of the text as any others."""
        import torch

        text = self._chat(self._parts.tokenizer, prompt.encode("utf-8", "replace").decode())
        read = self._parts.tokenizer(
            text,
            padding="max_length",
            max_length=self._checkpoint.text_length,
            truncation=True,
            add_special_tokens=False,  # the template has them
            return_tensors="pt",
        ).to(self._parts.device)
        hidden = self._reader(
            input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        tokens = torch.cat([hidden[layer] for layer in self._layers], dim=-1)
        return Conditioning(tokens=tokens, pooled=tokens.new_empty(1, 0))

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        """See `flux2_pictures`."""
        if not generation.pictures:
            return Inputs(warnings=self._looker.warnings(generation))
        with self.using(Stage.DECODE, means):  # its networks are the autoencoder's, both ways
            return self._looker.look(generation, pictures, size)

    def noise(self, seed: int, size: Size) -> Tensor:
        """Drawn as a picture of patches (1, channels, rows, columns)."""
        return pack(noise(seed, (1, self._channels, *self._patches(size)))).to(self._parts.device)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        """Guidance is read only by weights that have an embedding for it. What they say of references is left out."""
        import torch

        own = places(*self._patches(size), 0, self._parts.device)
        dtype = self._parts.transformer.dtype
        velocity: Tensor = self._parts.transformer(
            hidden_states=(latents if inputs.tokens is None else torch.cat([latents, inputs.tokens], dim=1)).to(dtype),
            timestep=sigmas,
            guidance=guidance if self._checkpoint.guidance_embeds else None,
            encoder_hidden_states=conditioning.tokens.to(dtype),
            img_ids=own if inputs.places is None else torch.cat([own, inputs.places]),
            txt_ids=_words(conditioning.tokens.shape[1], self._parts.device),
            return_dict=False,
        )[0]
        return velocity[:, : latents.shape[1]].float()

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        """Undo the batch norm and the patches, and decode."""
        vae = self._parts.vae
        mean, deviation = self._looker.norm()
        patches = latents.transpose(1, 2).reshape(1, self._channels, *self._patches(size)) * deviation + mean
        return to_pixels(vae.decode(_unpatched(patches).to(vae.dtype), return_dict=False)[0], size)

    def _patches(self, size: Size) -> tuple[int, int]:
        """Rows and columns of patches in a picture of `size`."""
        pixels = PATCH * self._checkpoint.vae_factor
        return size.height // pixels, size.width // pixels


def _told_to_mistral(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """With the system message that FLUX.2 was trained with; the word for a picture would stand for one."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    roles = {"system": SYSTEM_MESSAGE, "user": prompt.replace("[IMG]", "")}
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles.items()]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))


def _told_to_qwen(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Qwen3 is not to think first."""
    messages = [{"role": "user", "content": prompt}]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def _asked_of_mistral(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    roles = {"system": system, "user": user.replace("[IMG]", "")}
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles.items()]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _asked_of_qwen(tokenizer: PreTrainedTokenizerBase, system: str, user: str) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def _as_far_as(layer: int, encoder: PreTrainedModel) -> PreTrainedModel:
    """What reads texts up to a layer, without what only sees pictures, writes, or comes after it.

    One more layer stays: what comes out of the last one is normalised, which `layer` is not to be. The encoder itself
    stays whole.
    """
    whole = encoder.get_decoder()
    reader = copy.copy(whole)
    reader._modules = dict(whole._modules)
    reader.layers = whole.layers[: layer + 1]
    return reader


def _unpatched(patches: Tensor) -> Tensor:
    """(1, 4C, rows, columns) -> (1, C, 2 rows, 2 columns): the channels of a patch are its own times its places."""
    from torch.nn.functional import pixel_shuffle

    return pixel_shuffle(patches, PATCH)


@lru_cache(maxsize=8)
def _words(length: int, device: device) -> Tensor:
    """(length, 4): the words in their order, at no place of a picture."""
    import torch

    places = torch.zeros(length, 4)
    places[:, 3] = torch.arange(length)
    return places.to(device)
