"""Forward passes in company: only where a picture's neighbours have been shown to change nothing.

torch promises equal bits for equal shapes only. One picture at a time always holds. More hold where the self-test has
shown on this very machine that a picture comes out the same, bit by bit, beside any neighbours: in passes of any
number of pictures, or else in passes that are always filled up to the same number.
What it does not know: steps, trajectories, how latents become a picture.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import NO_PICTURES
from fluxserve.engine.means import USUAL, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import NO_INPUTS, Conditioning, Inputs, noise

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
    inputs: Inputs = NO_INPUTS


#: A picture as a forward pass takes it: one row, or, with true guidance, two side by side in the same order.
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """Up to `most` pictures share a forward pass; `padded`: every pass is filled up to exactly that many."""

    most: int
    padded: bool = False


ALONE = Company(most=1)


def predict(network: Network, pictures: Sequence[Rows], size: Size, company: Company) -> list[list[Tensor]]:
    """The velocity of each row of each picture, (1, image tokens, channels)."""
    chunks = [pictures[start : start + company.most] for start in range(0, len(pictures), company.most)]
    return [velocities for chunk in chunks for velocities in _pass(network, chunk, size, company)]


def holds(
    network: Network,
    size: Size,
    company: Company,
    *,
    per_picture: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """The self-test: pictures beside others, in any slot, equal the same pictures alone, bit by bit.

    Up to TRIALS passes in about `seconds`, at least one of every number of pictures that `company` allows.
    """
    end, tried, die = clock() + seconds, 0, random.Random(0)  # noqa: S311 - repeatable, not secret
    pool = [random_picture(network, size, seed, per_picture) for seed in range(2 * company.most)]
    alone = [predict_usually(network, [picture], size, company)[0] for picture in pool]
    counts = [company.most] if company.padded else list(range(company.most, 1, -1))
    while tried < TRIALS and (tried < len(counts) or clock() < end):
        chosen = die.sample(range(len(pool)), counts[tried % len(counts)])
        together = predict_usually(network, [pool[number] for number in chosen], size, company)
        if not all(_equal(alone[number], velocities) for number, velocities in zip(chosen, together, strict=True)):
            return False
        tried += 1
    return True


def seconds_of(network: Network, size: Size, count: int, *, per_picture: int) -> float:
    """How long a pass of `count` pictures takes, after one to warm up."""
    pictures = [random_picture(network, size, 0, per_picture)] * count
    predict_usually(network, pictures, size, Company(most=count))
    began = time.perf_counter()
    predict_usually(network, pictures, size, Company(most=count))[0][0].sum().item()  # waits for the device
    return time.perf_counter() - began


def predict_usually(network: Network, pictures: Sequence[Rows], size: Size, company: Company) -> list[list[Tensor]]:
    """As usual, with the transformer brought."""
    with network.using(Stage.PREDICT, USUAL):
        return predict(network, pictures, size, company)


def _pass(network: Network, pictures: Sequence[Rows], size: Size, company: Company) -> list[list[Tensor]]:
    import torch

    missing = company.most - len(pictures) if company.padded else 0
    rows = [row for picture in (*pictures, *[pictures[0]] * missing) for row in picture]
    latents = torch.cat([row.latents for row in rows])
    conditioning = Conditioning(
        tokens=torch.cat([row.conditioning.tokens for row in rows]),
        pooled=torch.cat([row.conditioning.pooled for row in rows]),
    )
    sigmas = torch.tensor([row.sigma for row in rows], device=latents.device)
    guidance = torch.tensor([row.guidance for row in rows], device=latents.device)
    velocities = network.predict(latents, sigmas, guidance, conditioning, _together([row.inputs for row in rows]), size)
    each = len(pictures[0])
    return [
        [velocities[row : row + 1] for row in range(number * each, (number + 1) * each)]
        for number in range(len(pictures))
    ]


def _together(inputs: Sequence[Inputs]) -> Inputs:
    """A row for each; those that share a pass are of one shape, and their reference tokens at the same places."""
    import torch

    tokens = [one.tokens for one in inputs if one.tokens is not None]
    channels = [one.channels for one in inputs if one.channels is not None]
    return Inputs(
        tokens=torch.cat(tokens) if tokens else None,
        places=inputs[0].places,
        channels=torch.cat(channels) if channels else None,
    )


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def random_picture(network: Network, size: Size, seed: int, per_picture: int) -> Rows:
    """Noise at some level under some words, beside more noise where the weights read more; no two seeds share any."""
    prompt, guidance = f"neighbour number {seed}", 1.5 + (seed * 0.7) % 3.5
    plain = Generation(model="", prompt=prompt, size=size, seed=seed, steps=1, guidance=guidance, output_format="png")
    inputs = network.look(plain, NO_PICTURES, size, USUAL)
    if inputs.channels is not None:
        inputs = replace(inputs, channels=noise(seed, tuple(inputs.channels.shape)).to(inputs.channels))
    with network.using(Stage.ENCODE, USUAL):
        conditioning = network.encode(prompt)
    row = Row(
        latents=network.noise(seed, size),
        sigma=1 - (seed * 0.37) % 1,
        guidance=guidance,
        conditioning=conditioning,
        inputs=inputs,
    )
    return [row] * per_picture
