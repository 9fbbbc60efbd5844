"""A drawer: one checkpoint, loaded, with all that turns a generation into a trajectory and that into a picture.

What was found out when it was first opened (`Known`) outlives its weights: to open it again is to load them, no more.
What it does not know: who else draws, in which order trajectories step, what a failure means for a task.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import first_block, forward, networks, sampling, soundness, waypoint, weights
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.adapters import Adapters
from fluxserve.engine.base import NO_PICTURES, Finished, Pixels
from fluxserve.engine.beside import Beside
from fluxserve.engine.cache import Cache
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.company import find_safely, without
from fluxserve.engine.device import Runtime
from fluxserve.engine.faster import plainly
from fluxserve.engine.fingerprint import fingerprint, weights_hash
from fluxserve.engine.forward import ALONE, Company, Row
from fluxserve.engine.means import USUAL, Means, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.planning import Fit, fit, planned
from fluxserve.engine.previews import Previewer
from fluxserve.engine.single_file import Piece
from fluxserve.engine.speed import Speed
from fluxserve.engine.trajectory import Conditioning, Kept, Trajectory
from fluxserve.engine.warming import warm, warm_company
from fluxserve.engine.weights import Parts
from fluxserve.engine.writing import Draft
from fluxserve.errors import CheckpointMissing, CheckpointRefused, DrawingFailed

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
#: Makes the parts of a folder: see `weights.load`.
Load = Callable[[Path, Runtime, Mapping[str, Piece], Beside], Parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a checkpoint that was opened once, as long as its files stay what they were.

    `runtime`: with its plan, and with the speed that held when it was tried.
    `writes`: its language model answers too.
    `company`: how many pictures of a drawn size may share a forward pass; one where a size is not named. `weights`: the
    hash of its files. `fit`: how they are held, and what that takes. `loaded_in`: seconds that reading them took, not
    those of importing libraries before or of all that was found out after.
    """

    checkpoint: Checkpoint
    unconditional: Conditioning
    prompts: Cache[Conditioning]
    company: Mapping[Size, Company]
    weights: str
    fit: Fit
    runtime: Runtime
    fingerprint: str
    previewer: Previewer
    loaded_in: float
    writes: bool

    @property
    def speed(self) -> Speed:
        """See `speed`."""
        return self.runtime.speed

    def company_of(self, trajectory: Trajectory) -> Company:
        """How many pictures may share a forward pass with it: none by other means or of a shape that was not tested.

        Reference tokens, more words than a prompt has, and a fine-tune's matrices make such shapes.
        """
        inputs = trajectory.inputs
        is_tested = inputs.tokens is None and inputs.words is None and trajectory.lora is None
        return self.company.get(trajectory.drawn_size, ALONE) if is_tested and trajectory.means.is_usual else ALONE

    def save(self, trajectory: Trajectory) -> bytes | None:
        """The trajectory as a waypoint; None where nobody could go on from it."""
        if not trajectory.means.is_usual:
            return None
        reached = trajectory.written_down(self.fingerprint)
        return waypoint.encode(reached, trajectory.generation) if reached.is_sound else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawer(Known):
    """What is known, and the weights."""

    network: Network
    adapters: Adapters

    @property
    def known(self) -> Known:
        """Without the weights."""
        return Known(**{field.name: getattr(self, field.name) for field in fields(Known)})

    def alone(self, stage: Stage) -> Callable[[Callable[[], _T]], _T] | None:
        """How to act with what `stage` needs for itself on the device; None: nothing can be taken off it."""
        if not self.network.is_movable:
            return None

        def act_alone(act: Callable[[], _T]) -> _T:
            with self.network.alone(stage):
                return act()

        return act_alone

    def write(self, draft: Draft) -> Draft:
        """Go on with a draft. Raises DrawingFailed."""
        writer = self.network.writer
        if writer is None:
            raise DrawingFailed(f"What reads prompts in {self.checkpoint.name} cannot write.")
        with self.network.using(Stage.ENCODE, USUAL):
            writer.go_on(draft)
        return draft

    def start(
        self,
        ref: str,
        generation: Generation,
        turn: float,
        means: Means = USUAL,
        flow: str = "",
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
    ) -> Trajectory:
        """Encode the prompt, unless it was read before, look at the pictures and draw the noise."""
        size = drawn_size(self.checkpoint, generation.size)
        finetune = generation.finetune
        inputs = self.network.look(generation, pictures, size, means)
        conditioning = self._read(generation.prompt, means)
        noise = self.network.noise(generation.seed, size)
        levels = sampling.sigmas(self.checkpoint.schedule, generation.steps, noise.shape[1])
        begun = inputs.start
        if begun is not None:
            levels = sampling.last_share(levels, begun.strength)
        return Trajectory(
            ref=ref,
            generation=generation,
            pictures=pictures,
            drawn_size=size,
            conditioning=conditioning if inputs.words is None else conditioning.followed_by(inputs.words),
            inputs=inputs,
            sigmas=levels,
            latents=noise if begun is None else sampling.noised(begun.clean, noise, levels[0]),
            turn=turn,
            flow=flow,
            means=means,
            most_guidance=self.checkpoint.most_guidance(generation.recipe),
            step_cache=self.speed.step_cache,
            lora=None if finetune is None else self.adapters.get(finetune),
            kept=None
            if begun is None or begun.redrawn is None
            else Kept(clean=begun.clean, noise=noise, redrawn=begun.redrawn),
        )

    def resume(
        self,
        ref: str,
        generation: Generation,
        turn: float,
        saved: bytes,
        flow: str = "",
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
    ) -> Trajectory:
        """Encode the prompt, look at the pictures and go on from a waypoint; raises WaypointRefused."""
        reached = waypoint.decode(saved, generation, self.fingerprint)
        return self.start(ref, generation, turn, flow=flow, pictures=pictures).at(reached)

    def velocities(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        """The velocity of each trajectory where it stands; all have one drawn size and the same means.

        Either all of their steps are made or none.
        """
        told = [velocity for one in trajectories if (velocity := one.foretold) is not None]
        return told or self._predicted(trajectories)

    def _predicted(self, trajectories: Sequence[Trajectory]) -> list[Tensor]:
        # With true guidance the two rows of a picture stand side by side in one pass, always in the same order.
        pictures = [
            [
                _row(trajectory, conditioning)
                for conditioning in (trajectory.conditioning, self._without_prompt(trajectory))[
                    : self.checkpoint.rows_per_picture
                ]
            ]
            for trajectory in trajectories
        ]
        first = trajectories[0]
        with (
            self.network.using(Stage.PREDICT, first.means),
            plainly(self.adapters.transformer, when=not first.is_drawn_usually),
            self.adapters.applied(first.lora, first.strength),
            self._with_rest(trajectories),
        ):
            velocities = forward.predict(self.network, pictures, first.drawn_size, self.company_of(first))
        return [sampling.guided(rows, self.checkpoint.cfg_scale) for rows in velocities]

    @contextmanager
    def _with_rest(self, trajectories: Sequence[Trajectory]) -> Iterator[None]:
        """Inside, one pass is made: whole, and what it leaves is kept for the next steps, or by what was left."""
        if trajectories[0].step_cache != "first-block":
            yield
            return
        import torch

        kept = [one.rest.added for one in trajectories if not one.is_made and one.rest.added is not None]
        if kept:
            with first_block.short(self.adapters.transformer, torch.cat(kept)):
                yield
            return
        with first_block.whole(self.adapters.transformer) as rest:
            yield
        each = self.checkpoint.rows_per_picture
        for number, one in enumerate(trajectories):
            one.rest.added = None if rest.added is None else rest.added[number * each : (number + 1) * each].clone()

    def preview(self, trajectory: Trajectory, velocity: Tensor) -> Pixels:
        """A small picture of where `velocity` leads from where the trajectory stands."""
        clean = sampling.predicted(trajectory.latents, velocity, trajectory.sigma)
        return self.previewer.draw(clean, trajectory.drawn_size, trajectory.generation.size)

    def finish(self, trajectory: Trajectory, means: Means) -> Finished:
        """Decode, check and fit the picture, by means that may differ from those it was drawn by so far.

        Raises BadPicture.
        """
        soundness.check_finite(trajectory.latents)
        with self.network.using(Stage.DECODE, means):
            drawn = self.network.decode(trajectory.latents, trajectory.drawn_size)
        fitted = trajectory.with_kept(pixels_of.fit(drawn, trajectory.generation.size))
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
                **self.speed.facts(
                    is_usual=trajectory.is_drawn_usually,
                    in_company=self.company_of(trajectory).most > 1,
                    foretells=trajectory.foretells,
                ),
            },
            warnings=(
                *self.checkpoint.warnings_for(trajectory.generation.prompt),
                *trajectory.inputs.warnings,
                *trajectory.finetune_warnings,
            ),
        )

    def _read(self, prompt: str, means: Means) -> Conditioning:
        """Read in float32 a prompt comes out otherwise, so that is neither taken from the cache nor kept in it."""
        encode = partial(self._encode, means=means)
        return encode(prompt) if means.exact else self.prompts.get(prompt, encode)

    def _without_prompt(self, trajectory: Trajectory) -> Conditioning:
        """As many text tokens as with it: where pictures add some, zeros."""
        words = trajectory.inputs.words
        return self.unconditional if words is None else self.unconditional.followed_by(words.new_zeros(words.shape))

    def _encode(self, prompt: str, means: Means) -> Conditioning:
        with self.network.using(Stage.ENCODE, means):
            return self.network.encode(prompt)


def open_drawer(checkpoint: Checkpoint, runtime: Runtime, load: Load = weights.load) -> Drawer:
    """Load the checkpoint and find out what this machine can promise. Raises ConfigurationError or EngineError."""
    started = time.monotonic()
    found = fit(checkpoint, runtime)
    runtime = planned(runtime, found)
    weights.import_classes(checkpoint.path)
    began = time.monotonic()
    network = networks.create(checkpoint, load(checkpoint.path, runtime, checkpoint.pieces, checkpoint.beside))
    loaded_in = time.monotonic() - began
    runtime = warm(checkpoint, network, runtime)
    weights_word = _hash_of(checkpoint)
    company = find_safely(checkpoint, network, runtime, fingerprint(weights_word, runtime, {}))
    company = without(company, warm_company(checkpoint, network, company, runtime))
    with network.using(Stage.ENCODE, USUAL):
        unconditional = network.encode("")
    padded = {size: found.most for size, found in company.items() if found.padded}
    drawer = Drawer(
        checkpoint=checkpoint,
        network=network,
        unconditional=unconditional,
        prompts=Cache(runtime.prompt_cache),
        company=company,
        weights=weights_word,
        fit=found,
        runtime=runtime,
        fingerprint=fingerprint(weights_word, runtime, padded),
        previewer=Previewer(network, checkpoint.token_side),
        loaded_in=loaded_in,
        writes=network.writer is not None,
        adapters=Adapters(network.transformer, runtime),
    )
    logger.info(
        "Loaded %s",
        checkpoint.name,
        extra={
            "action": "checkpoint_loaded",
            "device": runtime.device,
            "dtype": runtime.dtype,
            "threads": runtime.threads,
            "memory_plan": runtime.plan.name,
            "speed": ", ".join(runtime.speed.words) or "plain",
            "seconds": round(time.monotonic() - started, 2),
            "fingerprint": drawer.fingerprint,
        },
    )
    return drawer


def open_again(known: Known) -> Drawer:
    """Load the weights of a checkpoint that was opened before. Raises EngineError, also where files have changed."""
    checkpoint, runtime = known.checkpoint, known.runtime
    changed = DrawingFailed(
        f"The files of {checkpoint.name} are not those that this worker began with: restart it to draw with them."
    )
    try:
        parts = weights.load(checkpoint.path, runtime, checkpoint.pieces, checkpoint.beside)
        network = networks.create(checkpoint, parts)
    except (CheckpointRefused, CheckpointMissing) as error:
        if _is_as_before(known):
            raise DrawingFailed(f"{checkpoint.name} could not be loaded again: {error.message}") from None
        raise changed from None
    if not _is_as_before(known):  # looked at last, so that no file changes in between
        raise changed
    if warm(checkpoint, network, runtime) != runtime or warm_company(checkpoint, network, known.company, runtime):
        raise DrawingFailed(f"{checkpoint.name} would be drawn by other kernels than before: restart the worker.")
    return with_weights(known, network)


def with_weights(known: Known, network: Network) -> Drawer:
    """What is known, drawing with these weights. Fine-tunes are read anew."""
    facts = {field.name: getattr(known, field.name) for field in fields(Known)}
    return Drawer(**facts, network=network, adapters=Adapters(network.transformer, known.runtime))


def _is_as_before(known: Known) -> bool:
    """Whether its files are those that it was opened from."""
    try:
        return _hash_of(known.checkpoint) == known.weights
    except (CheckpointRefused, CheckpointMissing, OSError):
        return False


def _hash_of(checkpoint: Checkpoint) -> str:
    return weights_hash(checkpoint.path, checkpoint.pieces, checkpoint.beside)


def _row(trajectory: Trajectory, conditioning: Conditioning) -> Row:
    return Row(
        latents=trajectory.latents,
        sigma=trajectory.sigma,
        guidance=trajectory.guidance,
        conditioning=conditioning,
        inputs=trajectory.inputs,
    )
