"""Forward passes at canonical shapes: always the same number of rows, so that a row's neighbours change nothing.

torch promises equal bits for equal shapes only. One row at a time always holds; more rows hold where the self-test
has shown on this very machine that a row comes out the same in every slot beside any neighbours.
What it does not know: steps, trajectories, how latents become a picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxserve.catalogue import Size
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import Conditioning

if TYPE_CHECKING:
    from torch import Tensor

TRIALS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one picture gives a forward pass: `latents` (1, image tokens, channels) at noise level `sigma`."""

    latents: Tensor
    sigma: float
    guidance: float
    conditioning: Conditioning


def predict(network: Network, rows: Sequence[Row], size: Size, batch: int) -> list[Tensor]:
    """The velocity of each row, (1, image tokens, channels); every pass has exactly `batch` rows."""
    chunks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return [velocity for chunk in chunks for velocity in _pass(network, chunk, size, batch)]


def holds(
    network: Network, size: Size, batch: int, *, seconds: float, clock: Callable[[], float] = time.monotonic
) -> bool:
    """The self-test: a row in each slot beside random neighbours equals the row among copies of itself, bit by bit.

    Up to TRIALS trials in about `seconds`, at least one for each slot.
    """
    end, tried = clock() + seconds, 0
    row, neighbours = _random_row(network, size, 0), [_random_row(network, size, 1 + slot) for slot in range(batch)]
    alone = predict(network, [row], size, batch)[0]
    while tried < TRIALS and (tried < batch or clock() < end):
        slot = tried % batch
        beside = [*neighbours[:slot], row, *neighbours[slot + 1 :]]
        if not predict(network, beside, size, batch)[slot].equal(alone):
            return False
        neighbours = [_random_row(network, size, 1 + batch * (tried + 1) + index) for index in range(batch)]
        tried += 1
    return True


def _pass(network: Network, rows: Sequence[Row], size: Size, batch: int) -> list[Tensor]:
    import torch

    padded = [*rows, *[rows[0]] * (batch - len(rows))]
    latents = torch.cat([row.latents for row in padded])
    conditioning = Conditioning(
        tokens=torch.cat([row.conditioning.tokens for row in padded]),
        pooled=torch.cat([row.conditioning.pooled for row in padded]),
    )
    sigmas = torch.tensor([row.sigma for row in padded], device=latents.device)
    guidance = torch.tensor([row.guidance for row in padded], device=latents.device)
    velocities = network.predict(latents, sigmas, guidance, conditioning, size)
    return [velocities[row : row + 1] for row in range(len(rows))]


def _random_row(network: Network, size: Size, seed: int) -> Row:
    """Noise at some level under some words; no two seeds share either."""
    return Row(
        latents=network.noise(seed, size),
        sigma=1 - (seed * 0.37) % 1,
        guidance=1.5 + (seed * 0.7) % 3.5,
        conditioning=network.encode(f"neighbour number {seed}"),
    )
