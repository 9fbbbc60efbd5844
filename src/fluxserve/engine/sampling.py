"""The mathematics of drawing: falling noise levels as a plain list, and one Euler step along the predicted velocity.

Pure functions, so that every picture of a batch can stand at its own step. The formulas are those that diffusers' Flux
pipelines use with their FlowMatchEulerDiscreteScheduler; the tests hold ours against them.
What it does not know: networks, pictures, who steps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

#: Pictures of more image tokens have one shift for any number of steps.
_EMPIRICAL_TOKENS = 4300


class NoiseSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """`scheduler/scheduler_config.json`, as far as FLUX uses it; lengths are in image tokens."""

    kind: str = msgspec.field(name="_class_name")
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift: float = 1.0
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None
    invert_sigmas: bool = False
    stochastic_sampling: bool = False
    use_beta_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_karras_sigmas: bool = False

    @property
    def is_supported(self) -> bool:
        """Whether `sigmas` computes this schedule: flow matching with an exponential shift or a fixed one."""
        return self.kind == "FlowMatchEulerDiscreteScheduler" and not (
            self.time_shift_type != "exponential"
            or self.shift_terminal
            or self.invert_sigmas
            or self.stochastic_sampling
            or self.use_beta_sigmas
            or self.use_exponential_sigmas
            or self.use_karras_sigmas
        )

    def mu(self, image_tokens: int, steps: int) -> float:  # noqa: ARG002
        """The logarithm of the shift: a line through (base length, base shift) and (max length, max shift)."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (image_tokens - self.base_image_seq_len)


class EmpiricalSchedule(NoiseSchedule, frozen=True, kw_only=True):
    """FLUX.2's: what was found to work best at 10 and at 200 steps, and a line between them."""

    def mu(self, image_tokens: int, steps: int) -> float:
        """Large pictures take what was found at 200 steps, however many there are.

        Source: `compute_empirical_mu` of Black Forest Labs' flux2 and of diffusers.
        """
        at_200 = 0.00016927 * image_tokens + 0.45666666
        if image_tokens > _EMPIRICAL_TOKENS:
            return at_200
        at_10 = 8.73809524e-05 * image_tokens + 1.89833333
        return at_200 + (at_200 - at_10) / 190 * (steps - 200)


def sigmas(schedule: NoiseSchedule, steps: int, image_tokens: int) -> tuple[float, ...]:
    """The `steps` + 1 noise levels from 1 (pure noise) to 0 (the picture).

    Evenly spaced levels t = 1, ..., 1/steps are shifted towards noise: with dynamic shifting to
    exp(mu) / (exp(mu) + 1/t - 1), more for larger pictures, else to shift t / (1 + (shift - 1) t).
    The first form is the second with shift = exp(mu). Source: Esser et al. 2024, section 5.3.2.
    """
    shift = math.exp(schedule.mu(image_tokens, steps)) if schedule.use_dynamic_shifting else schedule.shift
    even = [1 + (1 / steps - 1) * index / max(steps - 1, 1) for index in range(steps)]
    return (*(shift * t / (1 + (shift - 1) * t) for t in even), 0.0)


def advance(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One Euler step of the flow from noise level `sigma` to `sigma_next`; float32 in and out, any shape."""
    return latents + (sigma_next - sigma) * velocity


def noised(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents as they are at noise level `sigma` on a straight way to `noise`; any shape."""
    return sigma * noise + (1 - sigma) * clean


def last_share(sigmas: tuple[float, ...], strength: float) -> tuple[float, ...]:
    """The noise levels of the last `strength` of the steps, as diffusers counts them: one begun is made whole."""
    steps = len(sigmas) - 1
    return sigmas[int(max(steps - steps * strength, 0)) :]


def predicted(latents: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The clean latents that `velocity` points at from noise level `sigma`."""
    return latents - sigma * velocity


def guidance_at(sigma: float, guidance: float, *, raw: bool, interval: float) -> float:
    """What a guidance is at noise level `sigma`; 1 is none.

    An `interval` of 2 leaves it as it is. A longer one takes of it where the picture's composition is decided, up to
    all of it in pure noise for 4; a shorter one adds there. `raw` takes two fifths of it everywhere.
    """
    share = (0.6 if raw else 1.0) * (1 - (interval / 2 - 1) * sigma)
    return guidance - (guidance - 1) * (1 - share)


def guided(rows: Sequence[Tensor], cfg_scale: float) -> Tensor:
    """The velocity of one picture from the rows that predict it.

    Two rows are true guidance: away from what the network predicts without the prompt. Source: Ho and Salimans 2022.
    """
    if len(rows) == 1:
        return rows[0]
    conditional, unconditional = rows
    return unconditional + cfg_scale * (conditional - unconditional)
