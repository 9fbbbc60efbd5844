"""LoRA files: read as they are published, applied as if they were fused, and refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.engine import lora
from fluxserve.engine.apart import keep_apart
from fluxserve.errors import CheckpointMissing, CheckpointRefused

LAYERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp", "x_embedder")
RANK, ALPHA = 2, 3.0


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer2DModel:
    torch.manual_seed(5)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def matrices(transformer: FluxTransformer2DModel) -> dict[str, tuple[Tensor, Tensor]]:
    torch.manual_seed(6)
    linear = {layer: transformer.get_submodule(layer) for layer in LAYERS}
    return {
        layer: (0.1 * torch.randn(RANK, one.in_features), 0.1 * torch.randn(one.out_features, RANK))
        for layer, one in linear.items()
    }


def peft(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}


def peft_with_an_adapters_name(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    start = f"base_model.model.{layer}"
    return {f"{start}.lora_A.default.weight": down, f"{start}.lora_B.default.weight": up}


def old_diffusers_with_alphas(layer: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    start = f"transformer.{layer}"
    return {f"{start}.lora.down.weight": down, f"{start}.lora.up.weight": up, f"{start}.alpha": torch.tensor(ALPHA)}


def load(file: Path, transformer: FluxTransformer2DModel) -> lora.Lora:
    return lora.load(file, transformer, torch.device("cpu"), torch.float32)


Spelling = Callable[[str, Tensor, Tensor], dict[str, Tensor]]


def write(
    file: Path, spelling: Spelling, transformer: FluxTransformer2DModel, metadata: Mapping[str, str] | None = None
) -> Path:
    pairs = matrices(transformer)
    tensors = {name: tensor for layer, pair in pairs.items() for name, tensor in spelling(layer, *pair).items()}
    save_file(tensors, file, metadata=dict(metadata or {}))
    return file


def fused(transformer: FluxTransformer2DModel, scale: float) -> FluxTransformer2DModel:
    """Weights that have the changes in them."""
    copy = FluxTransformer2DModel.from_config(transformer.config).eval()
    copy.load_state_dict(transformer.state_dict())
    with torch.no_grad():
        for layer, (down, up) in matrices(transformer).items():
            copy.get_submodule(layer).weight += scale * up @ down
    return copy


@torch.inference_mode()
def velocity(transformer: FluxTransformer2DModel, rows: int = 1) -> Tensor:
    torch.manual_seed(7)
    tokens, text = 12, 6
    places = torch.zeros(tokens, 3)
    places[:, 2] = torch.arange(tokens)
    found: Tensor = transformer(
        hidden_states=torch.randn(rows, tokens, 16),
        timestep=torch.full((rows,), 0.5),
        guidance=torch.full((rows,), 3.5),
        pooled_projections=torch.randn(rows, 24),
        encoder_hidden_states=torch.randn(rows, text, 24),
        img_ids=places,
        txt_ids=torch.zeros(text, 3),
        return_dict=False,
    )[0]
    return found


TOLD = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": ALPHA})}


@pytest.mark.parametrize(
    ("spelling", "metadata", "scale"),
    [
        (peft, {}, 1.0),
        (peft, TOLD, ALPHA / RANK),
        (peft_with_an_adapters_name, {}, 1.0),
        (old_diffusers_with_alphas, {}, ALPHA / RANK),
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("apart", [False, True])
def test_a_picture_is_drawn_as_if_the_changes_were_fused_into_the_weights(
    transformer: FluxTransformer2DModel,
    tmp_path: Path,
    spelling: Spelling,
    metadata: Mapping[str, str],
    scale: float,
    strength: float,
    apart: bool,
) -> None:
    file = write(tmp_path / "style.safetensors", spelling, transformer, metadata)
    usual, expected = velocity(transformer, 2), velocity(fused(transformer, strength * scale), 2)
    network = fused(transformer, 0)
    if apart:
        keep_apart(network)
    with lora.applied(network, load(file, network), strength):
        found = velocity(network, 2)
    assert (expected - usual).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("apart", [False, True])
def test_whoever_asks_for_none_is_drawn_as_before_bit_by_bit(
    transformer: FluxTransformer2DModel,
    tmp_path: Path,
    apart: bool,
) -> None:
    network = fused(transformer, 0)
    if apart:
        keep_apart(network)
    before = velocity(network)
    changes = load(write(tmp_path / "style.safetensors", peft, network), network)
    with lora.applied(network, changes, 1.0):
        first = velocity(network)
    with lora.applied(network, None, 1.0):
        assert velocity(network).equal(before)
    with pytest.raises(ZeroDivisionError), lora.applied(network, changes, 0.5):
        1 / 0  # noqa: B018 - a step that fails
    assert velocity(network).equal(before)
    with lora.applied(network, changes, 1.0):
        assert velocity(network).equal(first)
    assert not first.equal(before)


def test_what_it_takes_of_memory_is_its_matrices(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    changes = load(write(tmp_path / "style.safetensors", peft, transformer), transformer)
    assert changes.byte_count == sum(4 * tensor.numel() for pair in matrices(transformer).values() for tensor in pair)


PAIR = (torch.ones(2, 8), torch.ones(8, 2))
REFUSED = {
    "in the layout of XLabs": {"double_blocks.0.processor.qkv_lora1.down.weight": PAIR[0]},
    "a LoKr, a LoHa or a DoRA": peft("x_embedder", *PAIR) | {"transformer.x_embedder.lora_magnitude_vector": PAIR[0]},
    "no whole LoRA: it is empty": {"lora_te1_text_model_a.lora_down.weight": PAIR[0]},
    "changes biases too": peft("x_embedder", *PAIR) | {"transformer.x_embedder.lora_B.bias": PAIR[0]},
    "no whole LoRA: x_embedder": {"transformer.x_embedder.lora_A.weight": PAIR[0]},
    "a layout that is read: it holds 'x_embedder.lora_C": peft("x_embedder", *PAIR) | {"x_embedder.lora_C": PAIR[0]},
    "changes transformer_blocks.0.attn.to_q twice": peft(
        "transformer_blocks.0.attn.to_q", torch.ones(2, 32), torch.ones(32, 2)
    )
    | {
        "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight": torch.ones(2, 32),
        "lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight": torch.ones(32, 2),
    },
    "no LoRA in a layout that is read: it holds 'x_embedder.weight'": {"x_embedder.weight": PAIR[0]},
    "do not fit each other": peft("x_embedder", PAIR[0], torch.ones(8, 3)),
    "more than one LoRA": peft("x_embedder", *PAIR) | {"transformer.x_embedder.lora_A.b.weight": PAIR[0]},
    "matrices of x_embedder do not fit": peft("x_embedder", torch.ones(0, 16), torch.ones(32, 0)),
    "does not fit its content": peft("x_embedder", torch.ones(2, 16), torch.ones(32, 2))
    | {"transformer.x_embedder.alpha": torch.ones(2)},
    "kept as F64": peft("x_embedder", PAIR[0].double(), PAIR[1].double()),
    "x_embedder is 16 to 32 here, 8 to 8 there": peft("x_embedder", *PAIR),
    "another transformer: here is no transformer_blocks.7.attn.to_q": peft("transformer_blocks.7.attn.to_q", *PAIR),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_applied_is_refused_with_a_reason(
    transformer: FluxTransformer2DModel, tmp_path: Path, reason: str
) -> None:
    file = tmp_path / "style.safetensors"
    save_file({name: tensor.clone() for name, tensor in REFUSED[reason].items()}, file)
    with pytest.raises(CheckpointRefused, match=reason) as refused:
        load(file, transformer)
    assert str(file) in refused.value.message


def test_a_file_that_is_cut_off_or_a_pickle_or_not_there_is_refused(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    file = write(tmp_path / "style.safetensors", peft, transformer)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointRefused, match="cut off"):
        load(file, transformer)
    file.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(CheckpointRefused, match="a pickle"):
        load(file, transformer)
    with pytest.raises(CheckpointMissing):
        load(tmp_path / "none.safetensors", transformer)


def test_a_header_that_contradicts_itself_is_refused(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    file = write(tmp_path / "style.safetensors", peft, transformer)
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"shape":[2,32]', b'"shape":[2,31]'))
    assert file.read_bytes() != content
    with pytest.raises(CheckpointRefused):
        load(file, transformer)
