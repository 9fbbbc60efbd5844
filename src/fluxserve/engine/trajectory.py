"""A trajectory: one picture on its way from noise, as an explicit value. It never leaves the engine.

Whatever is needed to go on is in it, so it can wait, step beside any others and be dropped at any time.
What it does not know: networks, batches, tasks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.means import Means
from fluxserve.engine.sampling import advance
from fluxserve.engine.waypoint import Waypoint
from fluxserve.errors import WaypointRefused

if TYPE_CHECKING:
    from torch import Tensor

#: torch's CPU generator (a Mersenne twister) reads this many bits of a seed.
_SEED_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """A prompt as the networks read it: `tokens` (1, text length, width) and `pooled` (1, width)."""

    tokens: Tensor
    pooled: Tensor

    @property
    def byte_count(self) -> int:
        """What it takes of memory."""
        return self.tokens.nbytes + self.pooled.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """`latents` (1, image tokens, channels), float32, at noise level `sigmas[position]`; the lowest `turn` steps.

    `flow`: whom a pass is shared with fairly. `means`: how it is drawn, from its start to its end.
    """

    ref: str
    generation: Generation
    drawn_size: Size
    conditioning: Conditioning
    sigmas: tuple[float, ...]
    latents: Tensor
    turn: float
    flow: str
    means: Means
    position: int = 0

    @property
    def steps(self) -> int:
        """How many steps lead from noise to the picture."""
        return len(self.sigmas) - 1

    @property
    def is_done(self) -> bool:
        """Whether the latents are the picture."""
        return self.position >= self.steps

    @property
    def sigma(self) -> float:
        """The noise level now."""
        return self.sigmas[self.position]

    def moved(self, velocity: Tensor) -> Trajectory:
        """One step further along `velocity`."""
        latents = advance(self.latents, velocity, self.sigma, self.sigmas[self.position + 1])
        return replace(self, latents=latents, position=self.position + 1)

    def written_down(self, fingerprint: str) -> Waypoint:
        """Where it stands; drawn under `fingerprint`."""
        rows, tokens, channels = self.latents.shape
        return Waypoint(
            fingerprint=fingerprint,
            step=self.position,
            sigmas=self.sigmas,
            shape=(rows, tokens, channels),
            latents=self.latents.cpu().numpy().tobytes(),
        )

    def at(self, waypoint: Waypoint) -> Trajectory:
        """The same picture further on its way, at a sound waypoint; raises WaypointRefused where it is another's."""
        import torch

        if waypoint.shape != tuple(self.latents.shape) or waypoint.sigmas != self.sigmas:
            raise WaypointRefused("It is of another size or another noise schedule.")
        # Copied, because kernels take other paths, with other last bits, for memory that is not aligned.
        latents = torch.frombuffer(bytearray(waypoint.latents), dtype=torch.float32).reshape(waypoint.shape).clone()
        return replace(self, latents=latents.to(self.latents.device), position=waypoint.step)


def noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise on the CPU, the same on every machine.

    Equal to what FluxPipeline draws with `torch.Generator("cpu").manual_seed(generator_seed(seed))`.
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(generator_seed(seed))
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def generator_seed(seed: int) -> int:
    """A seed up to 2^64 - 1 as the 32 bits that torch's CPU generator reads.

    Seeds below 2^32 are themselves. torch would drop the upper half of a larger one, so that 2^32 drew the same
    noise as 0: larger seeds are hashed instead (SHA-256 of their eight bytes, the first four of it).
    """
    if seed < 1 << _SEED_BITS:
        return seed
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "big")).digest()[: _SEED_BITS // 8], "big")
