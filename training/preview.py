"""A sheet of pictures by a network in training, to look at: `training/preview --name flow --out sheet.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny
from torch import Tensor

from training import checkpoints, latents, work
from training.bank import read
from training.canvases import TOKEN
from training.flow import PRESETS, load_start
from training.network import Illustrator, unpack
from training.painter import contact_sheet
from training.sampling import draw
from training.tokenizers import load_tokenizers

PROMPTS = (
    "a red apple", "a cat", "a dog", "a panda on a yellow background", "a lion", "a penguin in the snow",
    "a red heart", "a sailboat on water at sunrise", "a rocket at night", "a house on grass on a sunny day", "a pizza",
    "a hamburger, 3d style", "a sunflower", "a cactus on the sand", "a bus on a road",
    "a robot on a light blue background", "a banana on a purple background", "a strawberry, flat style",
    "a cat and a dog", "three apples", "a castle at sunset", "a guitar", "a soccer ball on grass", "a blue car",
    "a purple frog", "un chat", "ein Hund", "una manzana", "a fox to the left of a bear", "a grinning face",
    "A paper boat floating on calm water at sunrise.", "a cat holding a sign",
)  # fmt: skip


def load_average(name: str, preset: str) -> Illustrator:
    """The averaged weights of the run `name`, float32."""
    network = load_start(PRESETS[preset].shape)
    network.load_state_dict(checkpoints.load_average(work.folder() / name)[0], strict=False)
    return network.eval()


def command(
    name: Annotated[str, typer.Option(help="The run.")] = "flow",
    preset: Annotated[str, typer.Option(help="Its preset.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 12,
    cfg: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    guidance: Annotated[float, typer.Option(help="What the guidance embedding is told.")] = 1.0,
    height: Annotated[int, typer.Option(help="Canvas, pixels, a multiple of 128.")] = 512,
    width: Annotated[int, typer.Option(help="Canvas, pixels, a multiple of 128.")] = 512,
    sharp: Annotated[bool, typer.Option(help="Decode with the autoencoder instead of the linear inverse.")] = True,
    seed: int = 0,
) -> None:
    """Draw the preview prompts."""
    tokenizers = load_tokenizers(work.folder() / "text")
    texts, silence = read(tokenizers, list(PROMPTS)), read(tokenizers, [""])
    tokens = draw(
        load_average(name, preset),
        texts,
        (height, width),
        steps=steps,
        cfg=cfg,
        guidance=guidance,
        seed=seed,
        without=silence,
    )
    code = unpack(tokens, (height // TOKEN, width // TOKEN))
    pictures = decoded(code) if sharp else latents.load().decode(code)
    contact_sheet(pictures.clamp(-1, 1), PROMPTS, columns=8).save(out)


@torch.no_grad()
def decoded(code: Tensor) -> Tensor:
    """Latents (B, 16, h, w) -> pictures (B, 3, 64 h, 64 w) by the trained decoder."""
    vae = AutoencoderTiny.from_pretrained(work.folder() / "vae")
    pictures: Tensor = vae.decoder(code / vae.config.scaling_factor)
    return pictures


if __name__ == "__main__":
    typer.run(command)
