"""Checkpoints of the real classes with random weights, small enough for a test, and how they are run."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxserve import mini
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.weights import Parts

#: A budget of one token: every picture is drawn alone.
CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
#: What a picture of 256 x 256 takes of a token budget in the tiny checkpoints without true guidance.
TINY_TOKENS = 16**2 + 32


def build(folder: Path, *, guidance_embeds: bool, scheduler: FlowMatchEulerDiscreteScheduler) -> Path:
    """A folder with the text encoders of mini, and a tiny transformer and AutoencoderKL of random weights."""
    shutil.copytree(mini.folder(), folder, ignore=shutil.ignore_patterns("fluxserve.toml", "transformer", "vae"))
    torch.manual_seed(1)
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_of_mini("text_encoder_2", "d_model"),
        pooled_projection_dim=_of_mini("text_encoder", "hidden_size"),
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    scheduler.save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderTiny", "AutoencoderKL"))
    return folder


def build_in_float8(folder: Path) -> Path:
    """A folder with mini's tokenizers and tiny random networks: 32 pixels to a latent, matrices in 8 bits."""
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    shutil.copytree(mini.folder(), folder, ignore=shutil.ignore_patterns("fluxserve.toml", *parts))
    for part, network in zip(parts, tiny_networks(), strict=True):
        network.half().save_pretrained(folder / part)
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        eighths = {name: one.to(torch.float8_e4m3fn) for name, one in tensors.items() if one.ndim == 2}
        save_file(tensors | eighths, file, metadata={"format": "pt"})
    for tokenizer, length in {"tokenizer": 48, "tokenizer_2": 32}.items():
        config = folder / tokenizer / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": length}))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderTiny", "AutoencoderKL"))
    return folder


def tiny_networks(
    more_channels: int = 0,
) -> tuple[FluxTransformer2DModel, AutoencoderKL, CLIPTextModel, T5EncoderModel]:
    """A transformer, which reads so many channels beside the latents' own, an autoencoder, CLIP and T5."""
    torch.manual_seed(2)
    transformer = FluxTransformer2DModel(
        in_channels=64 + more_channels,
        out_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 6,
        up_block_types=("UpDecoderBlock2D",) * 6,
        block_out_channels=(8, 8, 8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.8,
        shift_factor=0.1,
    )
    clip = CLIPTextConfig(
        vocab_size=_of_mini("text_encoder", "vocab_size"),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    t5 = T5Config(
        vocab_size=_of_mini("text_encoder_2", "vocab_size"),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformer, vae, CLIPTextModel(clip), T5EncoderModel(t5)


def _of_mini(part: str, name: str) -> int:
    """A number of one of mini's configs."""
    return int(json.loads((mini.folder() / part / "config.json").read_text())[name])


def stock(parts: Parts, checkpoint: Checkpoint) -> FluxPipeline:
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint.path / "scheduler"),
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        text_encoder_2=parts.text_encoder_2,
        tokenizer_2=parts.tokenizer_2,
        transformer=parts.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
