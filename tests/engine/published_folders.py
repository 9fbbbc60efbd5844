"""Folders as large as those that were published, of files that have headers and holes: nothing of them takes disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2Transformer2DModel, FluxTransformer2DModel
from flux2_folders import build_dev, build_klein
from torch.nn import Module
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from fluxserve import mini

_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_QWEN = {"vocab_size": 151936, "num_hidden_layers": 36, **_HEADS}
_QWEN_4B = _QWEN | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
_QWEN_8B = _QWEN | {"hidden_size": 4096, "intermediate_size": 12288}
_KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
_KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
NAMES = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.2-dev", "FLUX.2-klein-4B", "FLUX.2-klein-9B")


def build_published(folder: Path, name: str) -> Path:
    """With the small files of tiny ones, and no numbers at all."""
    if name.startswith("FLUX.1"):
        shutil.copytree(mini.folder(), folder, ignore=shutil.ignore_patterns("fluxserve.toml", "*.safetensors"))
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("AutoencoderTiny", "AutoencoderKL"))
        for tokenizer, length in {"tokenizer": 77, "tokenizer_2": 512}.items():
            config = folder / tokenizer / "tokenizer_config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": length}))
    elif name == "FLUX.2-dev":
        build_dev(folder)
    else:
        build_klein(folder, is_distilled=True)
    for part, network in networks(name).items():
        _write(folder / part, network)
    return folder


def made(name: str, part: str) -> Module:
    """One network, as large as it was published, with the numbers that its class begins with."""
    return _PARTS[name][part]()


def networks(name: str) -> dict[str, Module]:
    """By part, as large as they were published, without numbers."""
    with torch.device("meta"):
        return {part: make().to(torch.bfloat16).eval() for part, make in _PARTS[name].items()}


def _flux1(*, guidance: bool) -> dict[str, Callable[[], Module]]:
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    t5 = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    return {
        "transformer": lambda: FluxTransformer2DModel(guidance_embeds=guidance),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1159,
            scaling_factor=0.3611,
        ),
        "text_encoder": lambda: CLIPTextModel(clip),
        "text_encoder_2": lambda: T5EncoderModel(t5),
    }


def _mistral() -> Mistral3ForConditionalGeneration:
    text = {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40}
    eye = {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    text |= {"vocab_size": 131072, **_HEADS}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=eye))


_PARTS: dict[str, dict[str, Callable[[], Module]]] = {
    "FLUX.1-dev": _flux1(guidance=True),
    "FLUX.1-schnell": _flux1(guidance=False),
    "FLUX.2-dev": {
        "transformer": lambda: Flux2Transformer2DModel(guidance_embeds=True),
        "vae": AutoencoderKLFlux2,
        "text_encoder": _mistral,
    },
    "FLUX.2-klein-4B": {
        "transformer": lambda: Flux2Transformer2DModel(guidance_embeds=False, **_KLEIN_4B),
        "vae": AutoencoderKLFlux2,
        "text_encoder": lambda: Qwen3ForCausalLM(Qwen3Config(**_QWEN_4B)),
    },
    "FLUX.2-klein-9B": {
        "transformer": lambda: Flux2Transformer2DModel(guidance_embeds=False, **_KLEIN_9B),
        "vae": AutoencoderKLFlux2,
        "text_encoder": lambda: Qwen3ForCausalLM(Qwen3Config(**_QWEN_8B)),
    },
}


def _write(folder: Path, network: Module) -> None:
    """Its config, and one safetensors file that says where each tensor would lie."""
    config = network.config if hasattr(network.config, "to_json_file") else None
    for old in folder.glob("*.safetensors"):
        old.unlink()
    if config is not None:
        config.to_json_file(folder / "config.json")
    else:
        network.save_config(folder)  # type: ignore[operator]
    tied = {"encoder.embed_tokens.weight"}  # T5's shared ones
    if getattr(network.config, "tie_word_embeddings", False):
        tied.add("lm_head.weight")
    header, end = {}, 0
    for name, tensor in network.state_dict().items():
        if name in tied:
            continue
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    text = json.dumps(header).encode()
    stem = "model" if config is not None else "diffusion_pytorch_model"
    with (folder / f"{stem}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
