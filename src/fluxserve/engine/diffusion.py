"""The diffusion engine: real networks, many trajectories, one batch a step.

Each step: start what waits, choose who moves, predict, advance, decode those done. A generation that cannot be
drawn, by other means neither, becomes a `Failed` event and leaves the others alone; only a broken device raises.
What it does not know: tasks, files, the formulas (sampling), the networks (networks/), the shapes (forward).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import device, waypoint
from fluxserve.engine.base import Event, Failed, Pixels, Progressed
from fluxserve.engine.batcher import Candidate, choose
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, open_drawer, weight_bytes
from fluxserve.engine.means import USUAL, Means, Stage, more_exact, with_less_memory
from fluxserve.engine.recovery import attempt
from fluxserve.engine.trajectory import Trajectory
from fluxserve.errors import BadPicture, EngineError, OutOfMemory, WaypointRefused
from fluxserve.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Generations held at once where rows pass one by one: enough to be fair, few enough that none waits long.
_CAPACITY = 4
_WARM_SIZE = Size(256, 256)
_WARM_REF = "warm"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What waits for its start, the waypoint it may go on from, and how it is to be drawn."""

    generation: Generation
    waypoint: bytes | None = None
    means: Means = USUAL


class DiffusionEngine:
    """Implements the engine seam with torch."""

    def __init__(
        self, settings: Settings, open_drawer: Callable[[Checkpoint, Runtime, int], Drawer] = open_drawer
    ) -> None:
        self._settings = settings
        self._open_drawer = open_drawer
        self._drawers: dict[str, Drawer] = {}
        self._waiting: dict[str, _Wish] = {}
        self._trajectories: dict[str, Trajectory] = {}
        #: Refs whose next step is to be shown, and what the step that is under way showed.
        self._shown: set[str] = set()
        self._previews: dict[str, Pixels] = {}
        self._turns: dict[str, float] = {}
        self._budget = 0
        self._dtype = "float32"
        self._turn = 0

    @property
    def models(self) -> tuple[str, ...]:
        """Every model of the catalogue: each is mapped to some checkpoint."""
        return tuple(MODELS)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """That of each model's checkpoint; none before `warm`."""
        return {model: drawer.fingerprint for model, drawer in self._drawers.items()}

    @property
    def capacity(self) -> int:
        """How many generations are worth holding at once."""
        return max(_CAPACITY, 2 * self._settings.canonical_batch)

    @property
    def active(self) -> int:
        """Generations admitted and not yet finished."""
        return len(self._waiting) + len(self._trajectories)

    @property
    def device_memory(self) -> int:
        """Of tensors, on a GPU: weights, and what is on its way."""
        import torch

        return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0

    def warm(self) -> None:
        """Load each checkpoint once and draw one step with it. Raises ConfigurationError or EngineError."""
        import torch

        planned = plan(self._settings)
        checkpoints = {checkpoint.path: checkpoint for checkpoint in planned.values()}
        runtime = device.resolve(self._settings, sum(map(weight_bytes, checkpoints.values())))
        device.apply(runtime)
        self._budget, self._dtype = runtime.token_budget, runtime.dtype
        with torch.inference_mode():
            opened = {
                path: self._open_drawer(checkpoint, runtime, self._settings.canonical_batch)
                for path, checkpoint in checkpoints.items()
            }
        self._drawers = {model: opened[checkpoint.path] for model, checkpoint in planned.items()}
        for path in opened:
            self._draw_once(next(model for model, checkpoint in planned.items() if checkpoint.path == path))

    def admit(self, ref: str, generation: Generation, waypoint: bytes | None = None, *, turn: float = 0.0) -> None:
        """Take a generation in; it starts, or goes on from its waypoint, with the next `step`."""
        self._waiting[ref] = _Wish(generation=generation, waypoint=waypoint)
        self._turns[ref] = turn

    def save(self, ref: str) -> bytes | None:
        """Where `ref` stands as a waypoint; None where there is nothing to go on from."""
        trajectory = self._trajectories.get(ref)
        return None if trajectory is None else self._drawer(trajectory).save(trajectory)

    def discard(self, ref: str) -> None:
        """Forget `ref`; unknown refs are ignored."""
        self._waiting.pop(ref, None)
        self._trajectories.pop(ref, None)
        self._turns.pop(ref, None)
        self._shown.discard(ref)
        self._previews.pop(ref, None)

    def show(self, ref: str) -> None:
        """Let the next step of `ref` be shown."""
        if ref in self._waiting or ref in self._trajectories:
            self._shown.add(ref)

    def step(self) -> Sequence[Event]:
        """Move one batch by one step; tells progress for each that moved, and outcomes."""
        if not self.active:
            return ()
        import torch

        with torch.inference_mode():
            # 1. Start what waits.
            failed = self._start_waiting()
            # 2. Choose who moves, of all that are on their way.
            chosen = [self._trajectories[ref] for ref in choose(self._candidates(), self._budget)]
            # 3. Predict and advance them.
            moved = self._advance(chosen)
            # 4. Tell of progress, and decode those that are done.
            return (*failed, *(event for outcome in moved for event in self._tell(outcome)))

    def _start_waiting(self) -> Sequence[Failed]:
        failed = []
        for ref, wish in list(self._waiting.items()):
            outcome = self._with_room(
                ref, self._drawers[wish.generation.model], Stage.ENCODE, partial(self._start, ref, wish)
            )
            del self._waiting[ref]
            if isinstance(outcome, Failed):
                self.discard(ref)
                failed.append(outcome)
            else:
                self._trajectories[ref] = outcome
        return failed

    def _start(self, ref: str, wish: _Wish) -> Trajectory:
        drawer = self._drawers[wish.generation.model]
        if wish.waypoint is not None:
            try:
                return drawer.resume(ref, wish.generation, self._turn, wish.waypoint)
            except WaypointRefused as error:
                waypoint.log_refused(ref, error)
        return drawer.start(ref, wish.generation, self._turn, wish.means)

    def _candidates(self) -> Sequence[Candidate]:
        return [
            Candidate(
                ref=ref,
                key=(self._drawer(trajectory).checkpoint.path, trajectory.drawn_size, trajectory.means),
                tokens=trajectory.image_tokens,
                moved=trajectory.turn,
                turn=self._turns[ref],
            )
            for ref, trajectory in self._trajectories.items()
        ]

    def _advance(self, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory | Failed]:
        """Move all together; where that fails, each alone, so that a bad one takes no other with it."""
        if not trajectories:
            return ()
        drawer = self._drawer(trajectories[0])
        self._turn += 1
        first, predict = trajectories[0], partial(drawer.velocities, trajectories)
        if len(trajectories) == 1:
            velocities = self._with_room(first.ref, drawer, Stage.PREDICT, predict)
        else:
            velocities = attempt(first.ref, predict)
        if isinstance(velocities, Failed) and len(trajectories) > 1:
            return [outcome for trajectory in trajectories for outcome in self._advance([trajectory])]
        if isinstance(velocities, Failed):
            return self._advance_otherwise(first, velocities)
        moves = zip(trajectories, velocities, strict=True)
        return [self._moved(trajectory, velocity) for trajectory, velocity in moves]

    def _advance_otherwise(self, trajectory: Trajectory, failed: Failed) -> Sequence[Trajectory | Failed]:
        """A picture that cannot even step alone: from its start by means that take less memory, if there are any."""
        if not isinstance(failed.error, OutOfMemory):
            return [failed]
        fills_up = self._drawer(trajectory).batches.get(trajectory.drawn_size, 1) > 1
        means = with_less_memory(trajectory.means, Stage.PREDICT, fills_up=fills_up)
        return [failed] if means is None else self._start_over(trajectory, means, failed.error)

    def _start_over(self, trajectory: Trajectory, means: Means, error: EngineError) -> Sequence[Failed]:
        """Its first steps would else be drawn one way and its last another, and that no machine would draw again."""
        _log_means(trajectory.ref, means, error)
        del self._trajectories[trajectory.ref]
        self._waiting[trajectory.ref] = _Wish(generation=trajectory.generation, means=means)
        return ()

    @staticmethod
    def _with_room(ref: str, drawer: Drawer, stage: Stage, act: Callable[[], _T]) -> _T | Failed:
        """Act; where memory runs out, again with everything off the device that the stage does not need."""
        outcome = attempt(ref, act)
        if isinstance(outcome, Failed) and isinstance(outcome.error, OutOfMemory) and drawer.network.make_room(stage):
            return attempt(ref, act)
        return outcome

    def _moved(self, trajectory: Trajectory, velocity: Tensor) -> Trajectory:
        """One step further; before the last one its preview is made where it was asked for."""
        moved = trajectory.moved(velocity, self._turn)
        if trajectory.ref in self._shown:
            self._shown.discard(trajectory.ref)
            preview = partial(self._drawer(trajectory).preview, trajectory, velocity)
            if not moved.is_done and not isinstance(made := attempt(trajectory.ref, preview), Failed):
                self._previews[trajectory.ref] = made
        return moved

    def _tell(self, outcome: Trajectory | Failed) -> Sequence[Event]:
        if isinstance(outcome, Failed):
            self.discard(outcome.ref)
            return (outcome,)
        self._trajectories[outcome.ref] = outcome
        preview = self._previews.pop(outcome.ref, None)
        progressed = Progressed(ref=outcome.ref, step=outcome.position, steps=outcome.steps, preview=preview)
        if not outcome.is_done:
            return (progressed,)
        finished = self._finish(outcome, outcome.means)
        device.release_memory()
        return (progressed, *finished)

    def _finish(self, trajectory: Trajectory, means: Means) -> Sequence[Event]:
        """Decode; where memory runs out, in tiles. A bad picture is drawn once more in float32, and not told of now."""
        drawer = self._drawer(trajectory)
        outcome = self._with_room(trajectory.ref, drawer, Stage.DECODE, partial(drawer.finish, trajectory, means))
        if isinstance(outcome, Failed):
            if isinstance(outcome.error, OutOfMemory) and (
                less := with_less_memory(means, Stage.DECODE, fills_up=False)
            ):
                _log_means(trajectory.ref, less, outcome.error)
                return self._finish(trajectory, less)
            if isinstance(outcome.error, BadPicture) and (exact := more_exact(means, self._dtype)):
                return self._start_over(trajectory, exact, outcome.error)
        self.discard(trajectory.ref)
        return (outcome,)

    def _drawer(self, trajectory: Trajectory) -> Drawer:
        return self._drawers[trajectory.generation.model]

    def _draw_once(self, model: str) -> None:
        generation = Generation(
            model=model, prompt="", size=_WARM_SIZE, seed=0, steps=1, guidance=3.5, output_format="png"
        )
        self.admit(_WARM_REF, generation)
        while self.active:
            for event in self.step():
                if isinstance(event, Failed):
                    raise event.error


def _log_means(ref: str, means: Means, error: EngineError) -> None:
    logger.warning(
        "A picture is drawn by other means: %s",
        ", ".join(means.words),
        extra={"action": "other_means", "ref": ref, "error": type(error).__name__},
    )
