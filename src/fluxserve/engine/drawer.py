"""A drawer: one checkpoint, loaded, with all that turns a generation into a trajectory and that into a picture.

What it does not know: who else draws, in which order trajectories step, what a failure means for a task.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import forward, layout, sampling, soundness, waypoint, weights
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Finished, Pixels
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.device import Runtime
from fluxserve.engine.fingerprint import fingerprint, weights_hash
from fluxserve.engine.forward import Row
from fluxserve.engine.means import USUAL, Means, Stage
from fluxserve.engine.networks import FAMILIES, Network
from fluxserve.engine.previews import Previewer
from fluxserve.engine.trajectory import Conditioning, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

#: Common sizes whose shapes may be drawn with more rows than one, if they pass the self-test.
_TESTED_SIZES = (Size(256, 256), Size(512, 512), Size(1024, 768), Size(1024, 1024))
_SELF_TEST_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawer:
    """`batches`: pictures in a forward pass by drawn size, 1 where a size is not named."""

    checkpoint: Checkpoint
    network: Network
    unconditional: Conditioning
    batches: Mapping[Size, int]
    fingerprint: str
    previewer: Previewer

    def start(self, ref: str, generation: Generation, turn: int, means: Means = USUAL) -> Trajectory:
        """Encode the prompt and draw the noise."""
        size = drawn_size(self.checkpoint, generation.size)
        latents = self.network.noise(generation.seed, size)
        with self.network.using(Stage.ENCODE, means):
            conditioning = self.network.encode(generation.prompt)
        return Trajectory(
            ref=ref,
            generation=generation,
            drawn_size=size,
            conditioning=conditioning,
            sigmas=sampling.sigmas(self.checkpoint.schedule, generation.steps, latents.shape[1]),
            latents=latents,
            turn=turn,
            means=means,
        )

    def resume(self, ref: str, generation: Generation, turn: int, saved: bytes) -> Trajectory:
        """Encode the prompt and go on from a waypoint; raises WaypointRefused."""
        reached = waypoint.decode(saved, generation, self.fingerprint)
        return self.start(ref, generation, turn).at(reached)

    def save(self, trajectory: Trajectory) -> bytes | None:
        """The trajectory as a waypoint; None where nobody could go on from it."""
        if not trajectory.means.is_usual:
            return None
        reached = trajectory.written_down(self.fingerprint)
        return waypoint.encode(reached, trajectory.generation) if reached.is_sound else None

    def velocities(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """The velocity of each trajectory where it stands; all have one drawn size and the same means."""
        size, per_picture = trajectories[0].drawn_size, _rows_per_picture(self.checkpoint)
        # With true guidance the two rows of a picture stand side by side in one pass, always in the same order.
        rows = [
            _row(trajectory, conditioning)
            for trajectory in trajectories
            for conditioning in (trajectory.conditioning, self.unconditional)[:per_picture]
        ]
        means = trajectories[0].means
        batch = 1 if means.alone else self.batches.get(size, 1)
        with self.network.using(Stage.PREDICT, means):
            velocities = forward.predict(self.network, rows, size, batch * per_picture)
        if per_picture == 1:
            return velocities
        return sampling.guided(velocities[::2], velocities[1::2], self.checkpoint.cfg_scale)

    def preview(self, trajectory: Trajectory, velocity: Tensor) -> Pixels:
        """A small picture of where `velocity` leads from where the trajectory stands."""
        clean = sampling.predicted(trajectory.latents, velocity, trajectory.sigma)
        with self.network.using(Stage.DECODE, USUAL):
            return self.previewer.draw(clean, trajectory.drawn_size, trajectory.generation.size)

    def finish(self, trajectory: Trajectory, means: Means) -> Finished:
        """Decode, check and fit the picture, by means that may differ from those it was drawn by so far.

        Raises BadPicture.
        """
        soundness.check_finite(trajectory.latents)
        with self.network.using(Stage.DECODE, means):
            drawn = self.network.decode(trajectory.latents, trajectory.drawn_size)
        fitted = pixels_of.fit(drawn, trajectory.generation.size)
        return Finished(
            ref=trajectory.ref,
            pixels=fitted,
            drawn_by=self.checkpoint.name,
            facts={
                "pixels_sha256": pixels_of.sha256(fitted),
                "drawn_at": str(trajectory.drawn_size),
                "steps": trajectory.steps,
                "fingerprint": means.fingerprint(self.fingerprint),
                **({} if means.is_usual else {"drawn_with": ", ".join(means.words)}),
            },
            warnings=self.checkpoint.warnings_for(trajectory.generation.prompt),
        )


def open_drawer(checkpoint: Checkpoint, runtime: Runtime, canonical_batch: int) -> Drawer:
    """Load the checkpoint and find out what this machine can promise. Raises ConfigurationError or EngineError."""
    started = time.monotonic()
    module, _, name = FAMILIES[checkpoint.family].partition(":")
    parts = weights.load(checkpoint.path, runtime)
    network = cast("Network", getattr(importlib.import_module(module), name)(checkpoint, parts))
    batches = sound_batches(checkpoint, network, runtime, canonical_batch)
    drawer = Drawer(
        checkpoint=checkpoint,
        network=network,
        unconditional=network.encode(""),
        batches=batches,
        fingerprint=fingerprint(weights_hash(checkpoint.path), runtime, batches),
        previewer=Previewer(network, _token_side(checkpoint)),
    )
    logger.info(
        "Loaded %s",
        checkpoint.name,
        extra={
            "action": "checkpoint_loaded",
            "device": runtime.device,
            "dtype": runtime.dtype,
            "threads": runtime.threads,
            "seconds": round(time.monotonic() - started, 2),
            "fingerprint": drawer.fingerprint,
        },
    )
    return drawer


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint's weights on disk."""
    files = [file for part in layout.PARTS for file in layout.weight_files(checkpoint.path, part)]
    return sum((checkpoint.path / file).stat().st_size for file in files)


def sound_batches(
    checkpoint: Checkpoint, network: Network, runtime: Runtime, canonical_batch: int
) -> Mapping[Size, int]:
    """The sizes drawn with `canonical_batch` pictures a pass: those that fit the budget and pass the self-test."""
    if canonical_batch == 1:
        return {}
    per_token = _token_side(checkpoint) ** 2
    rows = canonical_batch * _rows_per_picture(checkpoint)
    sizes = {drawn_size(checkpoint, size) for size in _TESTED_SIZES}
    fitting = [size for size in sizes if size.area // per_token * canonical_batch <= runtime.token_budget]
    passed = {
        size: canonical_batch for size in fitting if forward.holds(network, size, rows, seconds=_SELF_TEST_SECONDS)
    }
    logger.info(
        "Forward passes of %d pictures hold for %s; other sizes are drawn one at a time",
        canonical_batch,
        ", ".join(map(str, passed)) or "no size",
        extra={"action": "batch_self_test"},
    )
    return passed


def _token_side(checkpoint: Checkpoint) -> int:
    """Pixels to an image token, one way: a patch of 2 x 2 latents."""
    return 2 * checkpoint.vae_factor


def _rows_per_picture(checkpoint: Checkpoint) -> int:
    """Two with true guidance: with and without the prompt."""
    return 2 if checkpoint.cfg_scale > 1 else 1


def _row(trajectory: Trajectory, conditioning: Conditioning) -> Row:
    return Row(
        latents=trajectory.latents,
        sigma=trajectory.sigma,
        guidance=trajectory.generation.guidance,
        conditioning=conditioning,
    )
