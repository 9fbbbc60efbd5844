"""Checkpoints of the real classes with random weights, small enough for a test, and the drawers that open them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import flux2_folders
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxserve import mini
from fluxserve.catalogue import MODELS
from fluxserve.engine import device
from fluxserve.engine.cache import Cache
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.weights import Parts, load
from fluxserve.settings import Settings

#: A budget of one token: every picture is drawn alone.
CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
#: What a picture of 256 x 256 takes of a token budget in the tiny checkpoints without true guidance.
TINY_TOKENS = 16**2 + 32
OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    device.apply(CPU)


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


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like FLUX.1-dev: a guidance embedding, a shift that grows with the picture."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return build(tmp_path_factory.mktemp("weights") / "tiny-dev", guidance_embeds=True, scheduler=scheduler)


@pytest.fixture(scope="session")
def schnell_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like FLUX.1-schnell: no guidance embedding, a fixed shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return build(tmp_path_factory.mktemp("weights") / "tiny-schnell", guidance_embeds=False, scheduler=scheduler)


@pytest.fixture(scope="session")
def shifted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed shift that is not 1, and steps that are predicted with and without the prompt."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    folder = tmp_path_factory.mktemp("weights") / "tiny-shifted"
    build(folder, guidance_embeds=False, scheduler=scheduler)
    (folder / "fluxserve.toml").write_text("cfg_scale = 2.0")
    return folder


@pytest.fixture(scope="session")
def float8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six levels of VAE, and every matrix in 8 bits."""
    return build_in_float8(tmp_path_factory.mktemp("weights") / "tiny-float8")


@pytest.fixture(scope="session")
def checkpoints(
    dev_folder: Path, schnell_folder: Path, shifted_folder: Path, float8_folder: Path
) -> dict[str, Checkpoint]:
    """By name: dev, schnell, shifted, float8 and mini."""
    folders = {
        "dev": dev_folder,
        "schnell": schnell_folder,
        "shifted": shifted_folder,
        "float8": float8_folder,
        "mini": mini.folder(),
    }
    return {name: find(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def drawers(checkpoints: dict[str, Checkpoint]) -> dict[str, Drawer]:
    """An open drawer for each of `checkpoints`, one row a pass."""
    return {name: open_drawer(checkpoint, CPU) for name, checkpoint in checkpoints.items()}


@pytest.fixture(scope="session")
def flux2_drawers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawer]:
    """An open drawer, one row a pass, for tiny weights of FLUX.2 by name: dev, klein and klein-base."""
    home = tmp_path_factory.mktemp("flux2")
    folders = (
        flux2_folders.build_dev(home / "dev"),
        flux2_folders.build_klein(home / "klein", is_distilled=True),
        flux2_folders.build_klein(home / "klein-base", is_distilled=False),
    )
    return {folder.name: open_drawer(find(str(folder)), CPU) for folder in folders}


@pytest.fixture(scope="session")
def open_once() -> OpenDrawer:
    """Like `open_drawer`, but each checkpoint is opened once a runtime, and its networks and what was found with them
    are shared: for engines that tell of something else than opening. What was read of prompts is each engine's own.
    """
    opened: dict[tuple[Path, Runtime], Drawer] = {}

    def open_shared(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        known = (checkpoint.path, runtime)
        if known not in opened:
            opened[known] = open_drawer(checkpoint, runtime)
        return replace(opened[known], prompts=Cache(runtime.prompt_cache))

    return open_shared


@pytest.fixture(scope="session")
def pipelines(checkpoints: dict[str, Checkpoint]) -> dict[str, FluxPipeline]:
    """The stock pipeline over the same weights, for each of `checkpoints`."""
    return {name: stock(load(checkpoint.path, CPU), checkpoint) for name, checkpoint in checkpoints.items()}


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


@pytest.fixture(scope="session")
def settings_for() -> Callable[..., Settings]:
    """Settings that map every named model to a folder, or all of them to one, so that no other is opened.

    So many pictures of 256 x 256 step `together`.
    """

    def make(models: dict[str, Path] | Path, together: int = 1) -> Settings:
        folders = dict.fromkeys(MODELS, models) if isinstance(models, Path) else models
        named = {model: str(folder) for model, folder in folders.items()}
        return Settings(models=named, device="cpu", token_budget=TINY_TOKENS * together if together > 1 else 1)

    return make
