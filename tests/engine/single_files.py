"""Writes the networks of a diffusers folder into single files, under the names of BFL and of ComfyUI."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

COMFY = {
    "transformer": "model.diffusion_model.",
    "vae": "vae.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
_MLP = {"img": "ff", "txt": "ff_context"}
_NORM = {"img": "norm1", "txt": "norm1_context"}
_QKV = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}
_OUT = {"img": "to_out.0", "txt": "to_add_out"}
_QK_NORMS = {"img": ("norm_q", "norm_k"), "txt": ("norm_added_q", "norm_added_k")}


def tensors_of(folder: Path, part: str) -> dict[str, Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def in_bfl(folder: Path, part: str) -> dict[str, Tensor]:
    """A part's tensors under BFL's names, or as text encoders lie in ComfyUI's folders."""
    ours = tensors_of(folder, part)
    if part == "transformer":
        return transformer(ours)
    if part == "vae":
        return autoencoder(ours)
    return {f"text_model.{name}": one for name, one in ours.items()} if part == "text_encoder" else ours


def in_comfy(folder: Path, *parts: str) -> dict[str, Tensor]:
    """Parts side by side, as in an all-in-one file."""
    return {COMFY[part] + name: one for part in parts for name, one in in_bfl(folder, part).items()}


def write(file: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({name: one.contiguous().clone() for name, one in tensors.items()}, file)
    return file


def transformer(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs: dict[str, Tensor] = {}
    embedders = {"time_in": "timestep", "vector_in": "text", "guidance_in": "guidance"}
    for kind in ("weight", "bias"):

        def put(name: str, *sources: str, kind: str = kind) -> None:
            theirs[f"{name}.{kind}"] = torch.cat([ours[f"{source}.{kind}"] for source in sources])

        put("img_in", "x_embedder")
        put("txt_in", "context_embedder")
        put("final_layer.linear", "proj_out")
        scale, shift = ours[f"norm_out.linear.{kind}"].chunk(2)
        theirs[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for name, role in embedders.items():
            if f"time_text_embed.{role}_embedder.linear_1.{kind}" in ours:
                put(f"{name}.in_layer", f"time_text_embed.{role}_embedder.linear_1")
                put(f"{name}.out_layer", f"time_text_embed.{role}_embedder.linear_2")
        for i in range(_blocks(ours, "transformer_blocks")):
            for stream in ("img", "txt"):
                block, to = f"transformer_blocks.{i}", f"double_blocks.{i}.{stream}"
                put(f"{to}_mod.lin", f"{block}.{_NORM[stream]}.linear")
                put(f"{to}_attn.qkv", *(f"{block}.attn.{name}" for name in _QKV[stream]))
                put(f"{to}_attn.proj", f"{block}.attn.{_OUT[stream]}")
                put(f"{to}_mlp.0", f"{block}.{_MLP[stream]}.net.0.proj")
                put(f"{to}_mlp.2", f"{block}.{_MLP[stream]}.net.2")
                for norm, name in zip(("query", "key"), _QK_NORMS[stream], strict=True):
                    theirs[f"{to}_attn.norm.{norm}_norm.scale"] = ours[f"{block}.attn.{name}.weight"]
        for i in range(_blocks(ours, "single_transformer_blocks")):
            block, to = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
            put(f"{to}.modulation.lin", f"{block}.norm.linear")
            put(f"{to}.linear1", *(f"{block}.attn.to_{name}" for name in "qkv"), f"{block}.proj_mlp")
            put(f"{to}.linear2", f"{block}.proj_out")
            for norm, name in (("query", "norm_q"), ("key", "norm_k")):
                theirs[f"{to}.norm.{norm}_norm.scale"] = ours[f"{block}.attn.{name}.weight"]
    return theirs


def transformer_of_flux2(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scale, shift = ours["norm_out.linear.weight"].chunk(2)
    theirs = {"final_layer.adaLN_modulation.1.weight": torch.cat([shift, scale])}

    def put(name: str, *sources: str) -> None:
        theirs[f"{name}.weight"] = torch.cat([ours[f"{source}.weight"] for source in sources])

    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    put("final_layer.linear", "proj_out")
    for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        put(f"{name}.lin", f"{name}.linear")
    for name, role in {"time_in": "timestep", "guidance_in": "guidance"}.items():
        if f"time_guidance_embed.{role}_embedder.linear_1.weight" in ours:
            put(f"{name}.in_layer", f"time_guidance_embed.{role}_embedder.linear_1")
            put(f"{name}.out_layer", f"time_guidance_embed.{role}_embedder.linear_2")
    for i in range(_blocks(ours, "transformer_blocks")):
        for stream in ("img", "txt"):
            block, to = f"transformer_blocks.{i}", f"double_blocks.{i}.{stream}"
            put(f"{to}_attn.qkv", *(f"{block}.attn.{name}" for name in _QKV[stream]))
            put(f"{to}_attn.proj", f"{block}.attn.{_OUT[stream]}")
            put(f"{to}_mlp.0", f"{block}.{_MLP[stream]}.linear_in")
            put(f"{to}_mlp.2", f"{block}.{_MLP[stream]}.linear_out")
            for norm, name in zip(("query", "key"), _QK_NORMS[stream], strict=True):
                theirs[f"{to}_attn.norm.{norm}_norm.scale"] = ours[f"{block}.attn.{name}.weight"]
    for i in range(_blocks(ours, "single_transformer_blocks")):
        block, to = f"single_transformer_blocks.{i}.attn", f"single_blocks.{i}"
        put(f"{to}.linear1", f"{block}.to_qkv_mlp_proj")
        put(f"{to}.linear2", f"{block}.to_out")
        for norm, name in (("query", "norm_q"), ("key", "norm_k")):
            theirs[f"{to}.norm.{norm}_norm.scale"] = ours[f"{block}.{name}.weight"]
    return theirs


def autoencoder(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    levels = _blocks(ours, "decoder.up_blocks")
    return {_vae_name(name, levels): _as_convolution(name, one) for name, one in ours.items()}


def _vae_name(name: str, levels: int) -> str:
    for i in range(levels):
        name = name.replace(f"encoder.down_blocks.{i}.resnets.", f"encoder.down.{i}.block.")
        name = name.replace(f"encoder.down_blocks.{i}.downsamplers.0.", f"encoder.down.{i}.downsample.")
        name = name.replace(f"decoder.up_blocks.{i}.resnets.", f"decoder.up.{levels - 1 - i}.block.")
        name = name.replace(f"decoder.up_blocks.{i}.upsamplers.0.", f"decoder.up.{levels - 1 - i}.upsample.")
    for mine, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        name = name.replace(mine, theirs)
    return name


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if ".attentions." in name and tensor.ndim == 2 else tensor


def _blocks(tensors: Mapping[str, Tensor], kind: str) -> int:
    return len({name.removeprefix(f"{kind}.").split(".")[0] for name in tensors if name.startswith(f"{kind}.")})
