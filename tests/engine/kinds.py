"""Tiny folders of each kind of FLUX.1 weights, the pictures that are asked of them, and how a test draws them."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from tiny import CPU, tiny_networks
from transformers import (
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from fluxserve import mini
from fluxserve.catalogue import Generation, InputPicture, Size
from fluxserve.catalogue.recipes import Recipe
from fluxserve.engine.base import Pixels
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.trajectory import Trajectory

SIZE = Size(256, 256)
#: Pipeline and channels that are read beside the latents' own: 32 pixels to a latent, 16 channels.
KINDS = {
    "plain": ("FluxPipeline", 0),
    "kontext": ("FluxKontextPipeline", 0),
    "fill": ("FluxFillPipeline", 64 + 4 * 32**2),
    "control": ("FluxControlPipeline", 64),
}
RUNTIME = CPU


def build_kind(folder: Path, kind: str) -> Path:
    pipeline, more = KINDS[kind]
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    shutil.copytree(mini.folder(), folder, ignore=shutil.ignore_patterns("fluxserve.toml", *parts))
    networks = tiny_networks(more_channels=more)
    _without_variance(networks[1])
    for part, network in zip(parts, networks, strict=True):
        network.save_pretrained(folder / part)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderTiny", "AutoencoderKL").replace("FluxPipeline", pipeline))
    return folder


def build_redux(folder: Path) -> Path:
    """For the words of the folders of `build_kind`."""
    torch.manual_seed(3)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    pipeline = FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config),
        feature_extractor=SiglipImageProcessorPil(size={"height": 64, "width": 64}),
        image_embedder=ReduxImageEncoder(redux_dim=32, txt_in_features=32),
    )
    pipeline.save_pretrained(folder)
    return folder


def build_depth(folder: Path) -> Path:
    torch.manual_seed(4)
    config = DPTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def _without_variance(vae: torch.nn.Module) -> None:
    """What the stock pipelines sample from the autoencoder's distribution is then its mode."""
    last = vae.encoder.conv_out  # type: ignore[union-attr]
    channels = last.weight.shape[0] // 2
    with torch.no_grad():
        last.weight[channels:] = 0
        last.bias[channels:] = -30


def picture(seed: int, size: Size = SIZE) -> Pixels:
    """Blocks of colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (size.height // 32, size.width // 32, 3), dtype=np.uint8)
    return Pixels(size=size, data=colours.repeat(32, 0).repeat(32, 1).tobytes())


def half_white(size: Size = SIZE) -> Pixels:
    """A mask whose right half is drawn anew."""
    levels = np.zeros((size.height, size.width, 3), dtype=np.uint8)
    levels[:, size.width // 2 :] = 255
    return Pixels(size=size, data=levels.tobytes())


def wish(
    recipe: Recipe, pictures: Mapping[str, Pixels], *, seed: int = 7, size: Size = SIZE, steps: int = 4
) -> Generation:
    return Generation(
        model="flux-dev",
        prompt="a red apple",
        size=size,
        seed=seed,
        steps=steps,
        guidance=3.5,
        output_format="png",
        recipe=recipe,
        pictures=tuple(
            InputPicture(name=name, size=one.size, sha256=hashlib.sha256(one.data).hexdigest())
            for name, one in pictures.items()
        ),
    )


def begin(drawer: Drawer, wanted: Generation, pictures: Mapping[str, Pixels]) -> Trajectory:
    return drawer.start("a", wanted, 0, pictures=pictures)


def end(drawer: Drawer, trajectory: Trajectory) -> Trajectory:
    while not trajectory.is_done:
        trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
    return trajectory
