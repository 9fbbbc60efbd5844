"""Waypoints: a trajectory written down after a step, as a safetensors file that any engine of its fingerprint takes up.

The file holds the float32 latents, where they stand on which noise schedule, and of what they are. The prompt's
conditioning is not in it: encoding the prompt again gives the same bits, takes less than a step, and neither words
nor megabytes of text are kept on disk. Without torch, so that servers can check what workers hand them.
What it does not know: networks, tasks, where waypoints are kept.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import struct
from dataclasses import dataclass
from typing import Final

import msgspec

from fluxserve.catalogue import Generation
from fluxserve.errors import WaypointRefused

logger = logging.getLogger(__name__)
#: The largest pictures have 16 thousand image tokens of 64 or 128 channels: 4 or 8 MB.
MAX_BYTES: Final = 32 * 2**20
MAX_STEPS: Final = 1000
_KIND = "fluxserve-waypoint-1"
_LENGTH = struct.Struct("<Q")
_FLOAT_BYTES = 4
#: Tensors of a safetensors file begin at multiples of this.
_ALIGNMENT = 8
#: The highest byte of a float32 of 2^127 and more, infinite, or no number: latents are some 10^37 times smaller.
_OUT_OF_RANGE = (0x7F, 0xFF)


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, int, int]
    data_offsets: tuple[int, int]


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What safetensors calls metadata: texts only. `sha256` is over everything, the whole generation too."""

    kind: str
    fingerprint: str
    model: str
    seed: str
    guidance: str
    step: str
    sigmas: str
    sha256: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: _Facts = msgspec.field(name="__metadata__")
    latents: _Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """`latents` (float32, little-endian, of `shape`) after `step` steps, at noise level `sigmas[step]`."""

    fingerprint: str
    step: int
    sigmas: tuple[float, ...]
    shape: tuple[int, int, int]
    latents: bytes

    @property
    def steps(self) -> int:
        """How many steps lead from noise to the picture."""
        return len(self.sigmas) - 1

    @property
    def is_sound(self) -> bool:
        """It is on the way, neither at its start nor at its end, and its numbers are as many as they say and finite."""
        highest = self.latents[_FLOAT_BYTES - 1 :: _FLOAT_BYTES]
        return (
            0 < self.step < self.steps <= MAX_STEPS
            and all(size > 0 for size in self.shape)
            and len(self.latents) == _FLOAT_BYTES * math.prod(self.shape) <= MAX_BYTES
            and not any(highest.count(byte) for byte in _OUT_OF_RANGE)
            and all(later < earlier for earlier, later in itertools.pairwise(self.sigmas))
        )


def encode(waypoint: Waypoint, generation: Generation) -> bytes:
    """The file; equal waypoints of equal generations are equal bytes."""
    facts = _Facts(
        kind=_KIND,
        fingerprint=waypoint.fingerprint,
        model=generation.model,
        seed=str(generation.seed),
        guidance=repr(generation.guidance),
        step=str(waypoint.step),
        sigmas=msgspec.json.encode(waypoint.sigmas).decode(),
        sha256=_digest(waypoint, generation),
    )
    tensor = _Tensor(dtype="F32", shape=waypoint.shape, data_offsets=(0, len(waypoint.latents)))
    header = msgspec.json.encode(_Header(facts=facts, latents=tensor))
    header += b" " * (-len(header) % _ALIGNMENT)
    return _LENGTH.pack(len(header)) + header + waypoint.latents


def decode(data: bytes, generation: Generation, fingerprint: str) -> Waypoint:
    """The waypoint in a file that comes from elsewhere; raises WaypointRefused.

    A file that differs in one bit from what `encode` writes for this generation and fingerprint is refused.
    """
    waypoint = _read(data)
    if waypoint.fingerprint != fingerprint:
        raise WaypointRefused("It was drawn by other weights, or on a machine that may draw other pixels.")
    if not waypoint.is_sound:
        raise WaypointRefused("Its numbers are out of range, or not as many as they say.")
    if encode(waypoint, generation) != data:
        raise WaypointRefused("It is damaged, or of another picture.")
    return waypoint


def log_refused(ref: str, error: WaypointRefused) -> None:
    """The one line that tells why a picture starts over."""
    logger.warning(
        "A waypoint cannot be taken up: its picture starts over",
        extra={"action": "waypoint_refused", "ref": ref, "reason": error.message},
    )


def _digest(waypoint: Waypoint, generation: Generation) -> str:
    facts = (waypoint.fingerprint, generation, waypoint.step, waypoint.sigmas, waypoint.shape)
    return hashlib.sha256(repr(facts).encode() + waypoint.latents).hexdigest()


def _read(data: bytes) -> Waypoint:
    """What a file says; nothing of it is checked but its form."""
    if not _LENGTH.size <= len(data) <= MAX_BYTES:
        raise WaypointRefused(f"It has {len(data)} bytes.")
    begin = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    try:
        header = msgspec.json.decode(data[_LENGTH.size : begin], type=_Header)
        return Waypoint(
            fingerprint=header.facts.fingerprint,
            step=msgspec.json.decode(header.facts.step, type=int),
            sigmas=msgspec.json.decode(header.facts.sigmas, type=tuple[float, ...]),
            shape=header.latents.shape,
            latents=data[begin:],
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise WaypointRefused("It is not of the form that waypoints have.") from None
