"""Attention by a kernel that is named, over queries, keys and values that may come of one product.

torch chooses a kernel by flags of the whole process; beside steps other threads read prompts, whose attention has masks
that not every kernel takes. So a kernel that is wanted is called by its own name.
What it does not know: blocks, pictures, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import scaled_dot_product_attention

from fluxserve.engine.faster.fused import WHOLES
from fluxserve.engine.faster.switch import Switch
from fluxserve.settings import AttentionChoice

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxAttention
    from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention

    from fluxserve.engine.networks.shortcuts import Rotation

#: Queries, keys and values (rows, heads, tokens, width of a head) -> the same of what was attended to.
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
_aten = torch.ops.aten


def attend(transformer: Module, switch: Switch, choice: AttentionChoice) -> None:
    """From now on its blocks attend by the kernel of this name."""
    kernel = KERNELS[choice]
    for block in transformer.transformer_blocks:  # type: ignore[union-attr]
        block.attn.processor = Attention(kernel, switch)
    for block in transformer.single_transformer_blocks:  # type: ignore[union-attr]
        parallel = hasattr(block.attn, "to_qkv_mlp_proj")
        block.attn.processor = (ParallelAttention if parallel else Attention)(kernel, switch)


class Attention:
    """What diffusers' processors of FLUX.1 and of FLUX.2's double blocks compute."""

    def __init__(self, kernel: Kernel, switch: Switch) -> None:
        self._kernel = kernel
        self._switch = switch

    def __call__(
        self,
        attn: FluxAttention | Flux2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - diffusers' blocks pass none
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (rows, tokens, width); with texts, pictures' and texts' apart."""
        query, key, value = self._projected(attn, "to_qkv", hidden_states)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is None:
            mixed = _mixed(self._current, query, key, value, image_rotary_emb)
            return mixed if attn.pre_only else attn.to_out[0](mixed)
        texts = self._projected(attn, "to_added_qkv", encoder_hidden_states)
        query = torch.cat([attn.norm_added_q(texts[0]), query], dim=1)
        key = torch.cat([attn.norm_added_k(texts[1]), key], dim=1)
        value = torch.cat([texts[2], value], dim=1)
        mixed = _mixed(self._current, query, key, value, image_rotary_emb)
        words = encoder_hidden_states.shape[1]
        return attn.to_out[0](mixed[:, words:].contiguous()), attn.to_add_out(mixed[:, :words].contiguous())

    def _projected(self, attn: FluxAttention | Flux2Attention, whole: str, tokens: Tensor) -> list[Tensor]:
        """Queries, keys and values (rows, tokens, heads, width of a head)."""
        if self._switch.on and hasattr(attn, whole):
            flat = list(getattr(attn, whole)(tokens).chunk(3, dim=-1))
        else:
            flat = [getattr(attn, part)(tokens) for part in WHOLES[whole]]
        return [one.unflatten(-1, (-1, attn.head_dim)) for one in flat]

    @property
    def _current(self) -> Kernel:
        return self._kernel if self._switch.on else _by_torch


class ParallelAttention:
    """What diffusers' processor of FLUX.2's single blocks computes: attention beside the rest, in two products."""

    def __init__(self, kernel: Kernel, switch: Switch) -> None:
        self._kernel = kernel
        self._switch = switch

    def __call__(
        self,
        attn: Flux2ParallelSelfAttention,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - diffusers' blocks pass none
        image_rotary_emb: Rotation | None = None,
    ) -> Tensor:
        """(rows, tokens, width) -> the same."""
        read = attn.to_qkv_mlp_proj(hidden_states)
        width = attn.inner_dim
        query, key, value = (one.unflatten(-1, (-1, attn.head_dim)) for one in read[..., : 3 * width].chunk(3, dim=-1))
        kernel = self._kernel if self._switch.on else _by_torch
        mixed = _mixed(kernel, attn.norm_q(query), attn.norm_k(key), value, image_rotary_emb)
        out: Tensor = attn.to_out(torch.cat([mixed, attn.mlp_act_fn(read[..., 3 * width :])], dim=-1))
        return out


def _mixed(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, angles: Rotation | None) -> Tensor:
    """(rows, tokens, heads, width of a head) -> (rows, tokens, width)."""
    from diffusers.models.embeddings import apply_rotary_emb

    if angles is not None:
        query = apply_rotary_emb(query, angles, sequence_dim=1)
        key = apply_rotary_emb(key, angles, sequence_dim=1)
    mixed = kernel(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2, 3).to(query.dtype)


def _by_torch(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def _by_cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed: Tensor = _aten._scaled_dot_product_cudnn_attention(query, key, value, None, False)[0]
    return mixed


def _by_flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    on_cpu = query.device.type == "cpu"
    own = _aten._scaled_dot_product_flash_attention_for_cpu if on_cpu else _aten._scaled_dot_product_flash_attention
    mixed: Tensor = own(query, key, value)[0]
    return mixed


def _by_efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed: Tensor = _aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]
    return mixed


def _by_math(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed: Tensor = _aten._scaled_dot_product_attention_math(query, key, value)[0]
    return mixed


@torch.library.custom_op("fluxserve::flash3", mutates_args=())
def _flash3(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """FlashAttention-3's own function, which takes heads after tokens."""
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    mixed = flash_attn_func(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    own: Tensor = (
        mixed[0] if isinstance(mixed, tuple) else mixed
    )  # earlier releases also answer what softmax divided by
    return own.transpose(1, 2).contiguous()


@_flash3.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


KERNELS: Mapping[AttentionChoice, Kernel] = {
    "torch": _by_torch,
    "cudnn": _by_cudnn,
    "flash": _by_flash,
    "flash3": _flash3,
    "efficient": _by_efficient,
    "math": _by_math,
}
