"""The names that Black Forest Labs and ComfyUI give to the tensors of FLUX.1 and FLUX.2, and those of diffusers.

Pure functions from name to name. diffusers cuts in pieces what BFL keeps as one: the queries, keys and values of an
attention, and in FLUX.1's single blocks the MLP's first layer with them; and it has the scale first where BFL has the
shift.
What it does not know: files, prefixes, shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a tensor goes: cut by rows into these, in this order; `swapped`: its second half of rows comes first."""

    names: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How the layers of a family's transformer are called, by BFL's names; `embedders` lie in `embedded` there.

    `kinds`: what a layer has. `sign`: a tensor that no other family's transformer has.
    """

    title: str
    sign: str
    embedded: str
    embedders: Mapping[str, str]
    outer: Mapping[str, tuple[str, ...]]
    double: Mapping[str, tuple[str, ...]]
    single: Mapping[str, tuple[str, ...]]
    kinds: tuple[str, ...] = ("weight", "bias")


_SWAPPED = "final_layer.adaLN_modulation.1"
_OUTER = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    _SWAPPED: ("norm_out.linear",),
}
_ATTENTION = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
}
_MODULATIONS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
FLUX1 = Names(
    title="FLUX.1",
    sign="vector_in.in_layer.weight",
    embedded="time_text_embed",
    embedders={"time_in": "timestep", "vector_in": "text", "guidance_in": "guidance"},
    outer=_OUTER,
    double={
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
        **_ATTENTION,
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
    },
    single={
        "modulation.lin": ("norm.linear",),
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
    },
)
#: Its blocks share their modulations, and no layer has a bias.
FLUX2 = Names(
    title="FLUX.2",
    sign="single_stream_modulation.lin.weight",
    embedded="time_guidance_embed",
    embedders={"time_in": "timestep", "guidance_in": "guidance"},
    outer=_OUTER | {f"{name}.lin": (f"{name}.linear",) for name in _MODULATIONS},
    double={
        **_ATTENTION,
        "img_mlp.0": ("ff.linear_in",),
        "img_mlp.2": ("ff.linear_out",),
        "txt_mlp.0": ("ff_context.linear_in",),
        "txt_mlp.2": ("ff_context.linear_out",),
    },
    single={"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)},
    kinds=("weight",),
)
_DOUBLE_NORMS = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
_SINGLE_NORMS = {"norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
#: BFL numbers the levels of a decoder from the picture's end, diffusers from the latents'.
_UP = re.compile(r"decoder\.up\.(\d{1,4})\.")
#: For the other names of an autoencoder, in this order.
_VAE = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def count_blocks(names: Iterable[str], kind: str) -> int:
    """One more than the highest number of a block of this kind, such as `double_blocks`."""
    numbers = (re.match(rf"{kind}\.(\d{{1,4}})\.", name) for name in names)
    return max((int(found[1]) + 1 for found in numbers if found), default=0)


def count_levels(names: Iterable[str]) -> int:
    """Levels of an autoencoder's decoder."""
    return max((int(found[1]) + 1 for name in names if (found := _UP.match(name))), default=0)


def transformer(
    double: int, single: int, *, guidance: bool, norm: str = "scale", names: Names = FLUX1
) -> Mapping[str, Destination]:
    """Every tensor of a transformer with so many blocks, by BFL's name; `norm`: the last word of a norm's.

    It is "weight" in what newer versions of ComfyUI write.
    """
    blocks = [(f"double_blocks.{i}", f"transformer_blocks.{i}", names.double, _DOUBLE_NORMS) for i in range(double)]
    blocks += [
        (f"single_blocks.{i}", f"single_transformer_blocks.{i}", names.single, _SINGLE_NORMS) for i in range(single)
    ]
    layers: dict[str, tuple[str, ...]] = dict(names.outer)
    for embedder, role in names.embedders.items():
        if guidance or embedder != "guidance_in":
            layers[f"{embedder}.in_layer"] = (f"{names.embedded}.{role}_embedder.linear_1",)
            layers[f"{embedder}.out_layer"] = (f"{names.embedded}.{role}_embedder.linear_2",)
    for theirs, ours, block, _ in blocks:
        layers |= {f"{theirs}.{layer}": tuple(f"{ours}.{name}" for name in into) for layer, into in block.items()}
    found = {
        f"{layer}.{kind}": Destination(tuple(f"{name}.{kind}" for name in into), swapped=layer == _SWAPPED)
        for layer, into in layers.items()
        for kind in names.kinds
    }
    for theirs, ours, _, norms in blocks:
        found |= {f"{theirs}.{one}.{norm}": Destination((f"{ours}.{name}.weight",)) for one, name in norms.items()}
    return found


def autoencoder(names: Iterable[str]) -> Mapping[str, Destination]:
    """Where each tensor of an autoencoder goes; what diffusers does not know keeps its name."""
    names = tuple(names)
    levels = count_levels(names)
    return {name: Destination((_vae_name(name, levels),)) for name in names}


def _vae_name(name: str, levels: int) -> str:
    name = _UP.sub(lambda found: f"decoder.up.{levels - 1 - int(found[1])}.", name)
    for theirs, ours in _VAE:
        name = re.sub(theirs, ours, name)
    return name
