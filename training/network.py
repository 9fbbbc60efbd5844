"""What flow training trains: the two text encoders and the transformer, as one network with one forward pass.

The transformer is the published class with its own weights; only the way it is called differs: attention as two batched
products and rotations in the number format of the rest, because for short sequences on a CPU the fused kernel's
backward pass costs ten times as much, and timesteps kept in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

PATCH = 2
CHANNELS = 16
#: Numbers in a token: those of the latents that it holds.
VALUES = CHANNELS * PATCH**2
_NORM_EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the transformer; heads are 64 wide."""

    heads: int
    double: int
    single: int


#: Layers that modulate: zero at the start, so that every block is the identity.
_STARTS_AT_ZERO = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
SHAPES = {
    "cpu": Shape(heads=4, double=2, single=6),
    "gpu": Shape(heads=5, double=2, single=8),
    "tiny": Shape(heads=1, double=1, single=1),
}


class Illustrator(nn.Module):
    """(latents, sigmas, guidance, token ids) -> velocity."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.clip = clip
        self.t5 = t5
        self.transformer = transformer
        transformer.set_attn_processor(_Attention())
        for module in t5.modules():
            if isinstance(module, T5DenseGatedActDense):
                module.act = nn.GELU(approximate="tanh")  # the same function as T5's own, in one kernel

    def compile_blocks(self) -> None:
        """Fuse what is between the matrix products: a quarter less time, after two minutes.

        The first number of tokens is compiled for itself, the second for all that follow.
        """
        for block in (*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks):
            block.compile()

    def forward(self, latents: Tensor, sigmas: Tensor, guidance: Tensor, texts: Texts, grid: tuple[int, int]) -> Tensor:
        """(B, N, 64), (B,), (B,), texts, (rows, columns) with N = rows * columns -> (B, N, 64)."""
        flux = self.transformer
        dtype = flux.x_embedder.weight.dtype
        pooled = self.clip(_unpadded(texts.clip, self.clip.config.eos_token_id)).pooler_output.to(dtype)
        text = flux.context_embedder(self.t5(texts.t5)[0].to(dtype))
        image = flux.x_embedder(latents.to(dtype))
        embedder = flux.time_text_embed
        condition = (
            embedder.timestep_embedder(embedder.time_proj(1000 * sigmas.float()).to(dtype))
            + embedder.guidance_embedder(embedder.time_proj(1000 * guidance.float()).to(dtype))
            + embedder.text_embedder(pooled)
        )
        rotary = _rotary(flux, *grid, text.shape[1], dtype, latents.device)
        for block in flux.transformer_blocks:
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=condition, image_rotary_emb=rotary
            )
        for block in flux.single_transformer_blocks:
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=condition, image_rotary_emb=rotary
            )
        velocity: Tensor = flux.proj_out(flux.norm_out(image, condition))
        return velocity.float()


@dataclass(frozen=True, slots=True)
class Texts:
    """Token ids: `clip` (B, 48), `t5` (B, 32 or fewer), padded as the tokenizers pad."""

    clip: Tensor
    t5: Tensor

    def where(self, keep: Tensor, other: Texts) -> Texts:
        """The rows of `keep` (B,) from here, the others from `other` (one row)."""
        return Texts(torch.where(keep[:, None], self.clip, other.clip), torch.where(keep[:, None], self.t5, other.t5))

    def cut(self, length: int) -> Texts:
        """At most the first `length` tokens for T5, which may lose a prompt's end."""
        return Texts(self.clip, self.t5[:, :length])

    def rows(self, chosen: slice) -> Texts:
        """Some of the rows."""
        return Texts(self.clip[chosen], self.t5[chosen])

    def repeat(self, count: int) -> Texts:
        """The one row here, `count` times."""
        return Texts(self.clip.expand(count, -1), self.t5.expand(count, -1))

    def to(self, device: str) -> Texts:
        """The same on `device`."""
        return Texts(self.clip.to(device), self.t5.to(device))


def build_transformer(shape: Shape, joint: int, pooled: int) -> FluxTransformer2DModel:
    """An untrained transformer; `joint` and `pooled` are the widths of T5 and CLIP.

    Starts as the identity (adaLN-zero, arXiv 2212.09748): modulations and the output are zero.
    """
    transformer = FluxTransformer2DModel(
        in_channels=VALUES,
        num_layers=shape.double,
        num_single_layers=shape.single,
        attention_head_dim=64,
        num_attention_heads=shape.heads,
        joint_attention_dim=joint,
        pooled_projection_dim=pooled,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )
    for name, parameter in transformer.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or name.endswith(_STARTS_AT_ZERO)):
            nn.init.zeros_(module.weight)
    return transformer


def _unpadded(ids: Tensor, end: int) -> Tensor:
    """The columns up to the last row's first `end`: CLIP looks back only, so what follows changes nothing."""
    ends = (ids == end).int().argmax(dim=1)
    return ids[:, : int(ends.max()) + 1]


def pack(latents: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B, h w, 4C): each token holds a 2 x 2 patch, channel by channel."""
    count, channels, height, width = latents.shape
    patches = latents.view(count, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(count, height * width // PATCH**2, channels * PATCH**2)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h w, 4C) -> (B, C, 2h, 2w), the inverse of `pack`."""
    count, _, values = tokens.shape
    patches = tokens.view(count, *grid, values // PATCH**2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(count, values // PATCH**2, grid[0] * PATCH, grid[1] * PATCH)


class _Attention:
    """Attention of both kinds of block, for training."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - part of the processor's protocol; FLUX.1 has no mask
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        assert image_rotary_emb is not None  # noqa: S101 - always given by FLUX.1
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        length = image_rotary_emb[0].shape[0]
        query_scale, key_scale = (norm.weight.expand(query.shape[1], -1) for norm in (attn.norm_q, attn.norm_k))
        texts = length - query.shape[1]
        if encoder_hidden_states is not None:
            query = torch.cat([attn.add_q_proj(encoder_hidden_states), query], dim=1)
            key = torch.cat([attn.add_k_proj(encoder_hidden_states), key], dim=1)
            value = torch.cat([attn.add_v_proj(encoder_hidden_states), value], dim=1)
            query_scale = torch.cat([attn.norm_added_q.weight.expand(texts, -1), query_scale])
            key_scale = torch.cat([attn.norm_added_k.weight.expand(texts, -1), key_scale])
        query = _turned(query, query_scale * query_scale.shape[1] ** -0.5, *image_rotary_emb)
        key = _turned(key, key_scale, *image_rotary_emb)
        count, _, width = value.shape
        value = value.view(count, length, attn.heads, -1).transpose(1, 2).reshape(len(query), length, -1)
        attended: Tensor = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), value)
        attended = attended.view(count, attn.heads, length, -1).transpose(1, 2).reshape(count, length, width)
        if encoder_hidden_states is None:
            return attended
        image: Tensor = attn.to_out[0](attended[:, texts:])
        text: Tensor = attn.to_add_out(attended[:, :texts])
        return image, text


def _turned(states: Tensor, scale: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Root-mean-square norm with `scale` (N, D), then rotary embedding: (B, N, H D) -> (B H, N, D).

    The norm's division commutes with the rotation, so scale and angle become two tables of (N, D), the second with the
    values of each pair swapped; `sine` has the signs in it already.
    """
    count, length, _ = states.shape
    states = states.view(count, length, -1, scale.shape[1])
    straight, crossed = scale * cosine, _swapped(scale) * sine
    power = torch.linalg.vector_norm(states, dim=-1, keepdim=True).float().square() / scale.shape[1]
    turned = torch.addcmul(states * straight[:, None], _swapped(states), crossed[:, None])
    turned = turned * torch.rsqrt(power + _NORM_EPSILON).to(states.dtype)
    by_head: Tensor = turned.transpose(1, 2).reshape(-1, length, scale.shape[1])
    return by_head


def _swapped(states: Tensor) -> Tensor:
    """Neighbouring values of the last dimension changed with each other."""
    return states.view(*states.shape[:-1], -1, 2).flip(-1).view(states.shape)


_ROTARY: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def _rotary(
    flux: FluxTransformer2DModel, rows: int, columns: int, texts: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    key = (rows, columns, texts, dtype, device)
    if key not in _ROTARY:
        places = torch.zeros(texts + rows * columns, 3, device=device)
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(places)
        places[texts:, 1:] = grid
        cosine, sine = flux.pos_embed(places)
        signs = torch.tensor([-1.0, 1.0], device=device).repeat(sine.shape[1] // 2)
        _ROTARY[key] = (cosine.to(dtype), (sine * signs).to(dtype))
    return _ROTARY[key]
