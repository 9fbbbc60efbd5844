"""Pictures from a network in training, the way the finished checkpoint draws them: Euler steps over shifted sigmas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from training.canvases import TOKEN
from training.network import VALUES, Illustrator, Texts

#: Guidance at which a network answers without any: 1 is plain prediction.
PLAIN = 1.0


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1's own schedule: the shift grows with the number of image tokens, 0.5 at 256 and 1.15 at 4096."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def sigmas(steps: int, tokens: int) -> list[float]:
    """`steps` noise levels from 1 downwards and a final 0, as FluxPipeline computes them."""
    schedule = scheduler()
    config = schedule.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = config.base_shift + slope * (tokens - config.base_image_seq_len)
    schedule.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    return [float(sigma) for sigma in schedule.sigmas]


@torch.no_grad()
def draw(
    network: Illustrator,
    texts: Texts,
    canvas: tuple[int, int],
    *,
    steps: int = 12,
    guidance: float = PLAIN,
    seed: int = 0,
    without: Texts | None = None,
    cfg: float = 1.0,
) -> Tensor:
    """Latents (B, N, 64) for the texts on a canvas of (height, width) pixels.

    `cfg` above 1 also predicts for the text `without` (one row) and goes further along the difference
    (classifier-free guidance, arXiv 2207.12598).
    """
    grid = (canvas[0] // TOKEN, canvas[1] // TOKEN)
    count = len(texts.clip)
    device = next(network.parameters()).device
    shape = (count, grid[0] * grid[1], VALUES)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    strength = torch.full((count,), guidance, device=device)
    levels = sigmas(steps, latents.shape[1])
    for sigma, following in pairwise(levels):
        noise = torch.full((count,), sigma, device=device)
        velocity = network(latents, noise, strength, texts, grid)
        if without is not None and cfg > 1:
            plain = network(latents, noise, strength, without.repeat(count), grid)
            velocity = plain + cfg * (velocity - plain)
        latents = latents + (following - sigma) * velocity
    return latents
