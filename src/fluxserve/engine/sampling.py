"""The mathematics of drawing: falling noise levels as a plain list, and one Euler step along the predicted velocity.

Pure functions, so that every picture of a batch can stand at its own step. The formulas are those that diffusers'
FluxPipeline uses with its FlowMatchEulerDiscreteScheduler; the tests hold ours against it.
What it does not know: networks, pictures, who steps together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


class NoiseSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """`scheduler/scheduler_config.json`, as far as FLUX.1 uses it; lengths are in image tokens."""

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


def sigmas(schedule: NoiseSchedule, steps: int, image_tokens: int) -> tuple[float, ...]:
    """The `steps` + 1 noise levels from 1 (pure noise) to 0 (the picture).

    Evenly spaced levels t = 1, ..., 1/steps are shifted towards noise: with dynamic shifting to
    exp(mu) / (exp(mu) + 1/t - 1), more for larger pictures, else to shift t / (1 + (shift - 1) t).
    The first form is the second with shift = exp(mu). Source: Esser et al. 2024, section 5.3.2.
    """
    shift = math.exp(mu(schedule, image_tokens)) if schedule.use_dynamic_shifting else schedule.shift
    even = [1 + (1 / steps - 1) * index / max(steps - 1, 1) for index in range(steps)]
    return (*(shift * t / (1 + (shift - 1) * t) for t in even), 0.0)


def mu(schedule: NoiseSchedule, image_tokens: int) -> float:
    """The logarithm of the shift: a straight line through (base length, base shift) and (max length, max shift)."""
    slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_image_seq_len - schedule.base_image_seq_len)
    return schedule.base_shift + slope * (image_tokens - schedule.base_image_seq_len)


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
