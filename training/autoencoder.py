"""The autoencoder of mini: AutoencoderTiny with factor 32 and 16 channels, trained in two parts.

The *core* (five levels, factor 16) learns on pictures at half their resolution, so it is cheap; the *shell* then adds
the outermost level: a decoder that draws sharp at full resolution and an encoder that imitates the core's. Latents are
therefore known as soon as the core is, and everything else can be trained on half-size pictures.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from diffusers import AutoencoderTiny
from torch import Tensor

from training import checkpoints, ranks, work
from training.painter import Painter
from training.ranks import Rank
from training.render import load_sprites
from training.scenes import SceneSampler

CHANNELS = 16
WIDTH = 32
#: Residual blocks of each level, the finest first; the shell adds a level without.
CORE_BLOCKS = (1, 2, 3, 4, 4)
BLOCKS = (0, *CORE_BLOCKS)
#: Standard deviation of the noise that the decoder learns to bear: what is drawn is never quite on the latents' spot.
NOISE = 0.1
_SIDE = 64
#: Pieces cut from one painted picture.
_PIECES = 3


def build(blocks: tuple[int, ...]) -> AutoencoderTiny:
    """An untrained network; factor 2 ** (levels - 1)."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * len(blocks),
        decoder_block_out_channels=(WIDTH,) * len(blocks),
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=CHANNELS,
    )


def encode(network: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in -1 ... 1 -> (B, 16, H/f, W/f), of about unit variance."""
    latents: Tensor = network.encoder(pictures)
    return latents


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 of the values, L1 of their differences to the neighbours at two scales: flat areas and sharp edges."""
    loss = F.l1_loss(drawn, target) + F.mse_loss(drawn, target)
    for scale in (1, 2):
        a, b = (F.avg_pool2d(picture, scale) for picture in (drawn, target))
        loss = loss + F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))
    return loss


def psnr(drawn: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1 ... 1."""
    return -10 * math.log10(F.mse_loss(drawn.clamp(-1, 1), target).item() / 4)


class Pictures:
    """Endless batches (B, 3, 64, 64): pieces of pictures as they are trained on, of small and of large canvases."""

    def __init__(self, seed: int, device: str) -> None:
        sprites, records = load_sprites()
        self._painter = Painter(sprites, device)
        self._sampler = SceneSampler(records, stage=3, seed=seed)
        self._chance = np.random.default_rng(seed)
        self._index = 0

    def whole(self, count: int, side: int) -> Tensor:
        """The next `count` pictures, uncut: (count, 3, side, side)."""
        scenes = [self._sampler.scene(self._index + offset, (2 * side, 2 * side)) for offset in range(count)]
        self._index += count
        return self._painter.paint(scenes, side, side).clamp(-1, 1)

    def batch(self, count: int) -> Tensor:
        """`count` pieces, `_PIECES` of each picture."""
        pictures = self.whole(count // _PIECES, _SIDE * int(self._chance.choice((2, 2, 4))))
        places = self._chance.integers(0, pictures.shape[-1] - _SIDE + 1, (count, 2))
        pieces = [
            pictures[number // _PIECES, :, top : top + _SIDE, left : left + _SIDE]
            for number, (top, left) in enumerate(places)
        ]
        return torch.stack(pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`samples` over all processes decide the learning rate; `minutes` end a run before, to be resumed."""

    samples: int
    minutes: float
    batch: int
    rate: float
    device: str
    seed: int
    folder: Path


def _core_loss(network: AutoencoderTiny, pictures: Tensor, noise: torch.Generator) -> Tensor:
    """Reconstruction under noise; latents near unit variance; a quarter of the rows at half the size of their latents.

    The last makes latents of a picture and of its half alike (equivariance under scaling, EQ-VAE, arXiv 2502.09509).
    """
    with torch.autocast(pictures.device.type, torch.bfloat16):
        latents = encode(network, pictures).float()
    spread = (
        0.01 * (latents.square().mean(dim=(0, 2, 3)) - 1).abs().mean() + 0.01 * latents.mean(dim=(0, 2, 3)).abs().mean()
    )
    latents = latents + NOISE * torch.randn(latents.shape, generator=noise).to(latents)
    quarter = len(pictures) // 4
    loss = spread
    for rows, shrink in ((slice(quarter, None), 1), (slice(quarter), 2)):
        with torch.autocast(pictures.device.type, torch.bfloat16):
            drawn = network.decoder(F.avg_pool2d(latents[rows], shrink))
        share = (len(pictures) - quarter if shrink == 1 else quarter) / len(pictures)
        loss = loss + share * reconstruction_loss(drawn.float(), F.avg_pool2d(pictures[rows], shrink))
    return loss


def train_core(rank: Rank, plan: Plan) -> None:
    """Train or resume the core; writes `core/` and prints its PSNR."""
    torch.manual_seed(plan.seed)
    network = build(CORE_BLOCKS).to(plan.device)
    optimizer = torch.optim.AdamW(network.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    parts = {"network": network, "optimizer": optimizer}
    done = checkpoints.resume(plan.folder / "core.state", parts, plan.device)
    pictures = Pictures(plan.seed + 1000 * rank.index + done, plan.device)
    noise = torch.Generator().manual_seed(plan.seed + rank.index + done)
    held_out = Pictures(plan.seed + 999_999, plan.device).whole(48, 128)
    started, shown = time.monotonic(), 0.0
    parameters = list(network.parameters())
    while done < plan.samples and time.monotonic() - started < 60 * plan.minutes:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * _rate(done / plan.samples, done // plan.batch)
        loss = _core_loss(network, pictures.batch(plan.batch), noise)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        _average_gradients(rank, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done += plan.batch * rank.size
        if rank.leader and time.monotonic() - shown > 60:
            shown = time.monotonic()
            print(f"core: {done} pieces, loss {loss.item():.4f}, {_quality(network, held_out)}", flush=True)
            checkpoints.save(plan.folder / "core.state", parts, done)
    if rank.leader:
        checkpoints.save(plan.folder / "core.state", parts, done)
        print(f"core: {done} pieces, {_quality(network, held_out)}", flush=True)
        network.save_pretrained(plan.folder / "core")


def _rate(share: float, steps: int) -> float:
    """Rises over the first 400 steps, then half a cosine down to 2 %."""
    return min(1.0, (steps + 1) / 400) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))


def _average_gradients(rank: Rank, parameters: list[torch.nn.Parameter]) -> None:
    if rank.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rank.average(flat)
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


@torch.no_grad()
def _quality(network: AutoencoderTiny, pictures: Tensor) -> str:
    latents = encode(network, pictures)
    drawn = network.decoder(latents)
    return f"{psnr(drawn, pictures):.2f} dB, latents {latents.mean():.3f} +- {latents.std():.3f}"


def command(
    samples: Annotated[int, typer.Option(help="Pieces of pictures to train on, over all processes.")] = 300_000,
    minutes: Annotated[float, typer.Option(help="Stop after this long; the same command resumes.")] = 30,
    processes: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    batch: Annotated[int, typer.Option(help="Pieces a step and process.")] = 9,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1.5e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train the core of the autoencoder on half-size pictures."""
    plan = Plan(
        samples=samples, minutes=minutes, batch=batch, rate=rate, device=device, seed=seed, folder=work.folder() / "vae"
    )
    plan.folder.mkdir(exist_ok=True)
    ranks.run(train_core, plan, processes)


if __name__ == "__main__":
    typer.run(command)
