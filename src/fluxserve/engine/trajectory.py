"""A trajectory: one picture on its way from noise, as an explicit value. It never leaves the engine.

Whatever is needed to go on is in it, so it can wait, step beside any others and be dropped at any time.
What it does not know: networks, batches, tasks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.catalogue.recipes import Fill, TextToImage
from fluxserve.engine import canvas, step_cache
from fluxserve.engine.base import Pixels
from fluxserve.engine.lora import Lora
from fluxserve.engine.means import Means
from fluxserve.engine.sampling import advance, guidance_at, noised
from fluxserve.engine.step_cache import Rest, Velocity
from fluxserve.engine.waypoint import Waypoint
from fluxserve.errors import WaypointRefused
from fluxserve.settings import StepCacheChoice

if TYPE_CHECKING:
    from torch import Tensor

#: torch's CPU generator (a Mersenne twister) reads this many bits of a seed.
_SEED_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """A prompt as the networks read it: `tokens` (1, text length, width) and `pooled` (1, width), 0 wide in FLUX.2."""

    tokens: Tensor
    pooled: Tensor

    @property
    def byte_count(self) -> int:
        """What it takes of memory."""
        return self.tokens.nbytes + self.pooled.nbytes

    def followed_by(self, words: Tensor) -> Conditioning:
        """The same with more text tokens (1, more, width) at its end."""
        import torch

        return replace(self, tokens=torch.cat([self.tokens, words.to(self.tokens.dtype)], dim=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A picture that is drawn over: its `clean` latents (1, image tokens, channels).

    `strength`: the share of the steps that is made, 1 begins at pure noise. `redrawn` (1, image tokens, channels) is 1
    where the picture is drawn anew and 0 where every step puts it back; None: it is drawn anew everywhere.
    """

    clean: Tensor
    strength: float = 1.0
    redrawn: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the pictures of a generation became for the networks, one row.

    `tokens` (1, reference tokens, channels) stand beside the picture's own in every pass, at `places` (reference
    tokens, axes). `channels` (1, image tokens, more channels) are joined to those of the latents. `words` (1, more text
    tokens, width) follow the prompt's. `start` is drawn over. `warnings`: what these weights could not do with them.
    """

    tokens: Tensor | None = None
    places: Tensor | None = None
    channels: Tensor | None = None
    words: Tensor | None = None
    start: Start | None = None
    warnings: tuple[str, ...] = ()


NO_INPUTS = Inputs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What every step puts back: `clean` under `noise` as at that step's level, where `redrawn` is 0."""

    clean: Tensor
    noise: Tensor
    redrawn: Tensor

    def put_back(self, latents: Tensor, sigma: float) -> Tensor:
        """`latents` at noise level `sigma` with what is kept."""
        return (1 - self.redrawn) * noised(self.clean, self.noise, sigma) + self.redrawn * latents


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """`latents` (1, image tokens, channels), float32, at noise level `sigmas[position]`; the lowest `turn` steps.

    `flow`: whom a pass is shared with fairly. `means`: how it is drawn, from its start to its end. `pictures` and what
    they became, `inputs` and `kept`, are in no waypoint: they are made again from the same pictures. `lora`: what its
    generation's fine-tune changes of the weights.

    Where some steps are foretold (`step_cache`), `made` are the last velocities, `rest` is what the last pass left, and
    `standing` is the last state, with its position, from which a picture goes on without either; None: this one is.
    """

    ref: str
    generation: Generation
    pictures: Mapping[str, Pixels]
    drawn_size: Size
    conditioning: Conditioning
    inputs: Inputs
    sigmas: tuple[float, ...]
    latents: Tensor
    turn: float
    flow: str
    means: Means
    kept: Kept | None = None
    lora: Lora | None = None
    most_guidance: float = math.inf
    position: int = 0
    step_cache: StepCacheChoice = "off"
    made: tuple[Velocity, ...] = ()
    rest: Rest = field(default_factory=Rest)
    standing: tuple[int, Tensor] | None = None

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

    @property
    def guidance(self) -> float:
        """The guidance now."""
        recipe, guidance = self.generation.recipe, min(self.generation.guidance, self.most_guidance)
        if isinstance(recipe, TextToImage):
            return guidance_at(self.sigma, guidance, raw=recipe.raw, interval=recipe.interval)
        return guidance

    @property
    def is_drawn_usually(self) -> bool:
        """Whether its passes are made by what is chosen for speed: a fine-tune's and those in float32 are plain."""
        return self.lora is None and not self.means.exact

    @property
    def foretells(self) -> bool:
        """Whether any of its steps, from noise to the picture, is not made by the whole network."""
        return not all(step_cache.is_made(self.step_cache, step, self.steps) for step in range(self.steps))

    @property
    def is_made(self) -> bool:
        """Whether its step is made by the whole network."""
        return step_cache.is_made(self.step_cache, self.position, self.steps)

    @property
    def foretold(self) -> Tensor | None:
        """The velocity of a step that takes no pass."""
        if self.is_made or self.step_cache != "taylor":
            return None
        return step_cache.foretold(self.made, self.sigma)

    @property
    def strength(self) -> float:
        """Of its fine-tune, if it has one."""
        finetune = self.generation.finetune
        return 0.0 if finetune is None else finetune.strength

    @property
    def finetune_warnings(self) -> tuple[str, ...]:
        """What of its fine-tune is not drawn with."""
        finetune = self.generation.finetune
        if finetune is None or self.lora is None or not self.lora.leaves_texts:
            return ()
        return (f"{finetune.name} also changes text encoders: that part of it was left out",)

    @property
    def shape(self) -> Hashable:
        """Equal for those whose rows fit into one pass, through the same weights."""
        tokens, channels = self.inputs.tokens, self.inputs.channels
        return (
            self.conditioning.tokens.shape[1],
            0 if tokens is None else tokens.shape[1],
            0 if channels is None else channels.shape[2],
            self.generation.finetune,
            self.is_made,
        )

    def moved(self, velocity: Tensor) -> Trajectory:
        """One step further along `velocity`."""
        sigma_next = self.sigmas[self.position + 1]
        latents = advance(self.latents, velocity, self.sigma, sigma_next)
        if self.kept is not None:
            latents = self.kept.put_back(latents, sigma_next)
        moved = replace(self, latents=latents, position=self.position + 1)
        return moved if self.step_cache == "off" else moved._remembering(self, velocity)

    def _remembering(self, before: Trajectory, velocity: Tensor) -> Trajectory:
        """The same with what its next steps may need of those `before`."""
        needs_nothing = step_cache.needs_nothing(self.step_cache, self.position, self.steps)
        return replace(
            self,
            made=(*self.made[-1:], Velocity(sigma=before.sigma, velocity=velocity)) if before.is_made else self.made,
            standing=None if needs_nothing else before.standing or (before.position, before.latents),
        )

    def with_kept(self, drawn: Pixels) -> Pixels:
        """The picture that was drawn, in the size asked for, with the pixels that its recipe keeps."""
        recipe, size = self.generation.recipe, self.generation.size
        return canvas.lay_out(recipe, self.pictures, size).kept_in(drawn) if isinstance(recipe, Fill) else drawn

    def written_down(self, fingerprint: str) -> Waypoint:
        """Where it stands, or where it last could go on from; drawn under `fingerprint`."""
        position, latents = self.standing or (self.position, self.latents)
        rows, tokens, channels = latents.shape
        return Waypoint(
            fingerprint=fingerprint,
            step=position,
            sigmas=self.sigmas,
            shape=(rows, tokens, channels),
            latents=latents.cpu().numpy().tobytes(),
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
