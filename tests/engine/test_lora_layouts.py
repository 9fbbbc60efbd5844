"""LoRA files as kohya, BFL and ComfyUI call their layers change ours as they do by diffusers' own converters."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_fal_kontext_lora_to_diffusers,
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_kohya_flux_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear, Module

from fluxserve.engine import bfl, lora
from fluxserve.errors import CheckpointRefused

RANK, ALPHA = 3, 2.0
#: Layers that the converters scale by no alpha, so that there is none.
UNSCALED = ("final_layer", "time_in", "vector_in", "guidance_in", "img_in", "txt_in")
#: A layer's path in BFL's names -> (width in, width out).
Widths = Mapping[str, tuple[int, int]]


def flux1(double: int, single: int) -> Module:
    """As wide as the published ones, which the converters know alone; without numbers."""
    with torch.device("meta"):
        return FluxTransformer2DModel(num_layers=double, num_single_layers=single, guidance_embeds=True)


def flux2() -> Module:
    with torch.device("meta"):
        return Flux2Transformer2DModel(
            num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=3, axes_dims_rope=(4, 4, 4, 4)
        )


def widths(transformer: Module, names: bfl.Names, double: int, single: int) -> dict[str, tuple[int, int]]:
    linear = {name: one for name, one in transformer.named_modules() if isinstance(one, Linear)}
    found = {}
    for name, place in bfl.transformer(double, single, guidance=True, names=names).items():
        ours = [linear[one.removesuffix(".weight")] for one in place.names if one.removesuffix(".weight") in linear]
        if name.endswith(".weight") and ours:
            found[name.removesuffix(".weight")] = (ours[0].in_features, sum(one.out_features for one in ours))
    return found


def kohya(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    start = f"lora_unet_{layer.replace('.', '_')}"
    scaled = {} if layer.startswith(UNSCALED) else {f"{start}.alpha": torch.tensor(ALPHA)}
    return {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up, **scaled}


def peft(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}


def comfy(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}


def comfy_down_and_up(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"diffusion_model.{layer}.lora_down.weight": down, f"diffusion_model.{layer}.lora_up.weight": up}


Spelling = Callable[[str, Tensor, Tensor], dict[str, Tensor]]


def tensors(layers: Widths, spelling: Spelling, rank: int = RANK) -> dict[str, Tensor]:
    torch.manual_seed(4)
    spelled: dict[str, Tensor] = {}
    for layer, (width_in, width_out) in layers.items():
        spelled |= spelling(layer, torch.randn(rank, width_in), torch.randn(width_out, rank))
    return spelled


def loaded(file: Path, transformer: Module, content: Mapping[str, Tensor]) -> lora.Lora:
    save_file(dict(content), file)
    return lora.load(file, transformer, torch.device("cpu"), torch.float32)


def assert_the_same_changes(ours: lora.Lora, theirs: Mapping[str, Tensor]) -> None:
    """What each layer makes of some tokens."""
    ends = (".lora_A.weight", ".lora_B.weight")
    expected = {name.removeprefix("transformer.").removesuffix(ends[0]) for name in theirs if name.endswith(ends[0])}
    assert ours.changes.keys() == expected
    bare = {name.removeprefix("transformer."): one.double() for name, one in theirs.items()}
    torch.manual_seed(5)
    for layer, change in ours.changes.items():
        tokens = torch.randn(2, change.down.shape[1], dtype=torch.float64)
        made = tokens @ bare[layer + ends[0]].T @ bare[layer + ends[1]].T
        found = tokens @ change.down.double().T @ change.up.double().T
        torch.testing.assert_close(found, made, rtol=1e-5, atol=1e-4)


def test_kohyas_layers_of_flux1_change_what_the_converter_says(tmp_path: Path) -> None:
    transformer = flux1(1, 1)
    content = tensors(widths(transformer, bfl.FLUX1, 1, 1), kohya)
    ours = loaded(tmp_path / "kohya.safetensors", transformer, content)
    assert "single_transformer_blocks.0.proj_mlp" in ours.changes
    assert_the_same_changes(ours, _convert_kohya_flux_lora_to_diffusers(dict(content)))


def test_what_kohya_joins_from_separate_ranks_changes_the_same(tmp_path: Path) -> None:
    """Trained apart, queries, keys and values lie on the diagonal of `up`, and the converter takes them apart again."""
    transformer, name = flux1(1, 0), "lora_unet_double_blocks_0_img_attn_qkv"
    up = torch.block_diag(*(torch.randn(3072, 2) for _ in range(3)))
    content = {f"{name}.lora_down.weight": torch.randn(6, 3072), f"{name}.lora_up.weight": up}
    ours = loaded(tmp_path / "kohya.safetensors", transformer, content)
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(content))
    assert theirs["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"].shape == (2, 3072)
    assert_the_same_changes(ours, theirs)


def test_bfls_layers_of_flux1_change_what_the_converter_says(tmp_path: Path) -> None:
    """The converter wants every block of the published transformer."""
    transformer = flux1(19, 38)
    layers = {
        name: one
        for name, one in widths(transformer, bfl.FLUX1, 19, 38).items()
        if "blocks" in name or name == "final_layer.linear"
    }
    content = tensors(layers, peft, rank=1)
    ours = loaded(tmp_path / "bfl.safetensors", transformer, content)
    assert_the_same_changes(ours, _convert_fal_kontext_lora_to_diffusers(dict(content)))


@pytest.mark.parametrize(
    ("spelling", "convert"),
    [
        (kohya, _convert_kohya_flux2_lora_to_diffusers),
        (comfy, _convert_non_diffusers_flux2_lora_to_diffusers),
        (comfy_down_and_up, _convert_non_diffusers_flux2_lora_to_diffusers),
    ],
)
def test_the_layers_of_flux2_too(
    tmp_path: Path, spelling: Spelling, convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    transformer = flux2()
    layers = {name: one for name, one in widths(transformer, bfl.FLUX2, 2, 2).items() if "blocks" in name}
    content = tensors(layers, spelling)
    ours = loaded(tmp_path / "flux2.safetensors", transformer, content)
    assert_the_same_changes(ours, convert(dict(content)))


def test_all_spellings_of_a_file_change_the_same(tmp_path: Path) -> None:
    """BFL's as ComfyUI writes them, with and without its prefix, and the layer whose halves are swapped among them."""
    transformer = flux1(1, 1)
    layers = widths(transformer, bfl.FLUX1, 1, 1)
    assert "final_layer.adaLN_modulation.1" in layers

    def bare(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}

    def all_in_one(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        return {f"model.diffusion_model.{name}": one for name, one in bare(layer, down, up).items()}

    files = [
        loaded(tmp_path / "a.safetensors", transformer, tensors(layers, spelling))
        for spelling in (bare, comfy, comfy_down_and_up, all_in_one, peft)
    ]
    first, *others = files
    for other in others:
        assert other.changes.keys() == first.changes.keys()
        assert all(
            one.up.equal(first.changes[layer].up) and one.down.equal(first.changes[layer].down)
            for layer, one in other.changes.items()
        )
    swapped = tensors(layers, bare)["final_layer.adaLN_modulation.1.lora_B.weight"]
    assert first.changes["norm_out.linear"].up.equal(torch.cat(swapped.chunk(2)[::-1]))


def test_diffusers_names_in_kohyas_spelling_are_known(tmp_path: Path) -> None:
    down, up = torch.randn(2, 3072), torch.randn(3072, 2)
    for start in ("lora_transformer_", "lora_unet_"):
        name = f"{start}transformer_blocks_0_attn_to_out_0"
        found = loaded(
            tmp_path / "a.safetensors", flux1(1, 0), {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        )
        assert list(found.changes) == ["transformer_blocks.0.attn.to_out.0"]


def test_changes_of_text_encoders_are_left_out_and_told(tmp_path: Path) -> None:
    transformer = flux1(1, 0)
    layers = {"double_blocks.0.img_mlp.0": (3072, 12288)}
    content = tensors(layers, kohya)
    assert not loaded(tmp_path / "a.safetensors", transformer, content).leaves_texts
    pair = {"lora_down.weight": torch.zeros(2, 8), "lora_up.weight": torch.zeros(8, 2), "alpha": torch.tensor(2.0)}
    for start in ("lora_te1_text_model_encoder_layers_0_mlp_fc1.", "text_encoder.text_model.encoder.layers.0.mlp.fc1."):
        more = content | {start + name: one for name, one in pair.items()}
        found = loaded(tmp_path / "a.safetensors", transformer, more)
        assert found.leaves_texts
        assert list(found.changes) == ["transformer_blocks.0.ff.net.0.proj"]


def test_a_file_of_the_other_family_or_of_other_widths_is_refused(tmp_path: Path) -> None:
    content = tensors({"single_blocks.0.modulation.lin": (48, 144)}, kohya)
    with pytest.raises(CheckpointRefused, match="another transformer: here is no single_blocks_0_modulation_lin"):
        loaded(tmp_path / "a.safetensors", flux2(), content)
    content = tensors({"double_blocks.0.img_attn.qkv": (3072, 3072)}, kohya)
    with pytest.raises(CheckpointRefused, match="to_v is 3072 to 9216 here, 3072 to 3072 there"):
        loaded(tmp_path / "a.safetensors", flux1(1, 0), content)
