"""Folders of FLUX.2 from the real classes, with random weights, small enough for a test."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fluxserve.engine.published import MISTRAL_TEMPLATE, QWEN_TEMPLATE, WORDS, byte_tokenizer

#: A token for each byte: the system message that [dev] is told has more than 200.
TEXT_LENGTH = 288
_WIDTH = 16


def build_klein(folder: Path, *, is_distilled: bool) -> Path:
    """Like FLUX.2 [klein], or like its base that is not distilled."""
    torch.manual_seed(3)
    encoder = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **_LANGUAGE_MODEL))
    return _build(folder, "Flux2KleinPipeline", encoder, "left", QWEN_TEMPLATE, is_distilled=is_distilled)


def build_dev(folder: Path) -> Path:
    """Like FLUX.2 [dev]: a guidance embedding, and a text encoder that also sees pictures."""
    torch.manual_seed(4)
    eye = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    eye |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    text = {"model_type": "mistral", "num_hidden_layers": 30, **_LANGUAGE_MODEL}
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=eye))
    return _build(folder, "Flux2Pipeline", encoder, "right", MISTRAL_TEMPLATE)


def tiny_transformer(*, guidance_embeds: bool, blocks: tuple[int, int] = (1, 2)) -> Flux2Transformer2DModel:
    """Of the published class, with so many double and single blocks."""
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * _WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def change(path: Path, **values: object) -> None:
    """Other values in one of the layout's small files."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


_LANGUAGE_MODEL = {
    "vocab_size": len(WORDS) + 256,
    "hidden_size": _WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def _build(folder: Path, pipeline: str, encoder: torch.nn.Module, side: str, template: str, **facts: bool) -> Path:
    transformer = tiny_transformer(guidance_embeds=pipeline == "Flux2Pipeline")
    parts: dict[str, torch.nn.Module | PreTrainedTokenizerFast | FlowMatchEulerDiscreteScheduler] = {
        "transformer": transformer,
        "vae": tiny_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": byte_tokenizer(side, template, TEXT_LENGTH),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }
    index: dict[str, object] = {"_class_name": pipeline, **facts}
    for name, part in parts.items():
        part.save_pretrained(folder / name)  # type: ignore[operator,union-attr]
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_autoencoder() -> AutoencoderKLFlux2:
    """Its batch norm has seen something: means that are not 0 and variances that are not 1."""
    vae = AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=32, norm_num_groups=4)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae
