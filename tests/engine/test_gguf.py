"""A transformer in a GGUF file draws with the numbers that gguf makes of it."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import flux2_folders
import gguf
import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import _replace_with_gguf_linear
from gguf import GGMLQuantizationType, GGUFWriter, quants
from single_files import in_bfl, tensors_of, transformer, transformer_of_flux2
from tiny import CPU
from torch import Tensor

from fluxserve.doctor import examine
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.eight_bits import hold
from fluxserve.engine.means import Stage
from fluxserve.engine.needs import needs
from fluxserve.engine.plans import PLANS
from fluxserve.engine.weights import load
from fluxserve.errors import CheckpointRefused
from fluxserve.settings import Composed, Settings

#: Wide enough for blocks of 256 numbers.
WIDE = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 192,
    "pooled_projection_dim": 192,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 24, 24),
}
MIXED = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "BF16", "F16")


def write_gguf(file: Path, tensors: Mapping[str, Tensor], *kinds: str, architecture: str = "flux") -> Path:
    """Matrices in these formats by turns, as far as their rows allow, all else in float32; as files for ComfyUI are."""
    writer = GGUFWriter(file, architecture)
    chance = np.random.default_rng(3)
    turns = 0
    for name, one in tensors.items():
        kind = GGMLQuantizationType[kinds[turns % len(kinds)]]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        if one.ndim < 2 or one.shape[1] % numbers:
            writer.add_tensor(name, one.float().numpy())
            continue
        turns += 1
        try:
            data = quants.quantize(one.float().numpy(), kind)
        except NotImplementedError:  # it only reads these: small numbers of their blocks, by chance
            data = chance.integers(0, 256, (len(one), one.shape[1] // numbers * size), dtype=np.uint8)
            data = with_small_scales(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def with_small_scales(data: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Scales of 16 bits are at the beginning of a block, or at its end."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind.name, (0,))
    blocks = data.reshape(-1, size).copy()
    for place in places:
        blocks[:, place : place + 2] = np.frombuffer(np.float16(1e-4).tobytes(), dtype=np.uint8)
    return blocks.reshape(data.shape)


def dequantized(file: Path) -> dict[str, Tensor]:
    """By gguf's own reader and numbers."""
    return {
        one.name: torch.from_numpy(quants.dequantize(one.data, one.tensor_type).copy())
        for one in gguf.GGUFReader(file).tensors
    }


@pytest.fixture(scope="session")
def wide_folder(dev_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder like FLUX.1-dev with a transformer that is 256 wide, whose weights are not there."""
    folder = tmp_path_factory.mktemp("gguf") / "wide-dev"
    shutil.copytree(dev_folder, folder, ignore=shutil.ignore_patterns("transformer"))
    network = FluxTransformer2DModel(**WIDE)
    network.save_config(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def wide_file(wide_folder: Path) -> Path:
    torch.manual_seed(6)
    tensors = transformer(FluxTransformer2DModel(**WIDE).state_dict())
    return write_gguf(wide_folder.parent / "flux1-dev-Q4_K_S.gguf", tensors, *MIXED)


def checkpoint_of(base: Path, file: Path) -> Checkpoint:
    return find(Composed(base=str(base), files=(str(file),)))


def loaded(checkpoint: Checkpoint) -> torch.nn.Module:
    network: torch.nn.Module = load(checkpoint.path, CPU, checkpoint.pieces).transformer
    return network


def test_every_number_is_the_packages_own(wide_folder: Path, wide_file: Path) -> None:
    checkpoint = checkpoint_of(wide_folder, wide_file)
    kinds = {one.dtype for one in checkpoint.pieces["transformer"].tensors.values()}
    assert kinds == {*MIXED, "F32"}
    state = transformer(loaded(checkpoint).state_dict())
    expected = dequantized(wide_file)
    assert state.keys() == expected.keys()
    assert all(one.equal(expected[name]) for name, one in state.items())
    assert all(one.isfinite().all() for one in state.values())


def test_it_is_told_what_is_taken_from_where_and_what_it_needs(wide_folder: Path, wide_file: Path) -> None:
    checkpoint = checkpoint_of(wide_folder, wide_file)
    assert "transformer from flux1-dev-Q4_K_S.gguf, the rest from wide-dev" in checkpoint.describe()
    assert checkpoint.license == "flux-1-dev"
    with torch.device("meta"):
        network = FluxTransformer2DModel(**WIDE)
    predict = needs(checkpoint, 2).stages[Stage.PREDICT]
    count = predict.rest.elements + sum(block.elements for block in predict.blocks)
    assert count == sum(one.numel() for one in network.parameters())


def test_a_plan_of_8_bits_holds_the_numbers_as_those_of_any_file(wide_folder: Path, wide_file: Path) -> None:
    checkpoint = checkpoint_of(wide_folder, wide_file)
    network = load(checkpoint.path, replace(CPU, plan=PLANS["float8"]), checkpoint.pieces).transformer
    held = network.transformer_blocks[0].ff.net[2]
    like = torch.nn.Linear(held.in_features, held.out_features)
    hold(like, dequantized(wide_file)["double_blocks.0.img_mlp.2.weight"], "float8")
    assert {name: one.dtype for name, one in held.state_dict().items() if "bias" not in name} == {
        name: one.dtype for name, one in like.state_dict().items() if "bias" not in name
    }
    for name, one in like.state_dict().items():
        if "bias" not in name:
            assert held.state_dict()[name].view(torch.uint8).equal(one.view(torch.uint8))


def by_diffusers(file: Path, folder: Path) -> Flux2Transformer2DModel:
    """As `from_single_file` does it, but for what wants more packages: tensors kept quantised, layers that know it."""
    state = convert_flux2_transformer_checkpoint_to_diffusers(load_gguf_checkpoint(str(file), return_tensors=True))
    network = Flux2Transformer2DModel.from_config(Flux2Transformer2DModel.load_config(folder / "transformer"))
    _replace_with_gguf_linear(network, torch.float32, state)
    for name, one in state.items():
        path, _, leaf = name.rpartition(".")
        kept = one if hasattr(one, "quant_type") else torch.nn.Parameter(one, requires_grad=False)
        setattr(network.get_submodule(path), leaf, kept)
    return network.eval()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_flux2_predicts_what_it_predicts_with_diffusers_own_gguf_layers(tmp_path: Path, kind: str) -> None:
    folder = flux2_folders.build_dev(tmp_path / "dev")
    file = write_gguf(tmp_path / "flux2-dev.gguf", transformer_of_flux2(tensors_of(folder, "transformer")), kind)
    ours, theirs = loaded(checkpoint_of(folder, file)), by_diffusers(file, folder)
    torch.manual_seed(8)
    given = {
        "hidden_states": torch.randn(1, 6, 128),
        "encoder_hidden_states": torch.randn(1, 5, 48),
        "timestep": torch.tensor([0.7]),
        "img_ids": torch.cartesian_prod(*(torch.arange(n).float() for n in (1, 2, 3, 1))).view(1, 6, 4),
        "txt_ids": torch.zeros(1, 5, 4),
        "guidance": torch.tensor([3.5]),
        "return_dict": False,
    }
    with torch.inference_mode():
        (expected,), (found,) = theirs(**given), ours(**given)
    # Theirs works scales out in 16 bits where it can.
    assert torch.allclose(found, expected, atol=2e-3 * float(expected.abs().max()))


def test_the_prefix_of_an_all_in_one_file_is_known(wide_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(6)
    tensors = transformer(FluxTransformer2DModel(**WIDE).state_dict())
    file = write_gguf(
        tmp_path / "a.gguf", {f"model.diffusion_model.{name}": one for name, one in tensors.items()}, "Q8_0"
    )
    assert checkpoint_of(wide_folder, file).pieces["transformer"].prefix == "model.diffusion_model."


def test_a_file_of_other_networks_is_refused_with_what_it_is(
    wide_folder: Path, dev_folder: Path, tmp_path: Path
) -> None:
    some = torch.zeros(4, 32)
    for name, architecture, words in (
        ("blk.0.attn_q.weight", "llama", "a language model or a text encoder in llama.cpp's layout"),
        ("enc.blk.0.attn_q.weight", "t5encoder", "a language model or a text encoder"),
        ("blocks.0.self_attn.q.weight", "wan", r"no part of FLUX .* but blocks\.0\.self_attn.* \('wan', as it says\)"),
        ("transformer_blocks.0.attn.to_q.weight", "qwen_image", "in diffusers layout"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "sd3", "Stable Diffusion 3"),
    ):
        file = write_gguf(tmp_path / "other.gguf", {name: some}, "Q4_0", architecture=architecture)
        with pytest.raises(CheckpointRefused, match=words):
            checkpoint_of(wide_folder, file)
    whole = in_bfl(dev_folder, "transformer")
    less = {name: one for name, one in whole.items() if not name.startswith("single_blocks.0.")}
    with pytest.raises(CheckpointRefused, match=r"is not a whole transformer of FLUX\.1"):
        checkpoint_of(dev_folder, write_gguf(tmp_path / "less.gguf", less, "Q8_0"))


def test_a_server_without_the_package_says_which_is_missing(
    wide_folder: Path, wide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    value = Composed(base=str(wide_folder), files=(str(wide_file),))
    settings = Settings(models={"flux-dev": value}, device="cpu", accept_licenses=("flux-1-dev",))
    told = [one.text for one in examine(settings) if one.grade == "bad"]
    assert any("the package that reads its numbers is not installed: pip install gguf" in text for text in told)
    with pytest.raises(CheckpointRefused, match="is not installed: pip install gguf"):
        loaded(find(value))


def test_the_folder_that_is_written_for_these_tests_is_of_the_width_it_says(wide_folder: Path) -> None:
    config = json.loads((wide_folder / "transformer/config.json").read_text())
    assert config["num_attention_heads"] * config["attention_head_dim"] == 256
