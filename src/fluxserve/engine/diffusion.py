"""The diffusion engine: real networks, many trajectories, one batch a step.

Each step: start what waits, choose who moves, predict, advance, decode those done. A generation that cannot be
drawn becomes a `Failed` event and leaves the others alone; only a broken device raises.
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
from fluxserve.engine.trajectory import Trajectory
from fluxserve.errors import DrawingFailed, EngineError, OutOfMemory, WaypointRefused
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
    """What waits for its start, and the waypoint it may go on from."""

    generation: Generation
    waypoint: bytes | None


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

    def warm(self) -> None:
        """Load each checkpoint once and draw one step with it. Raises ConfigurationError or EngineError."""
        import torch

        planned = plan(self._settings)
        checkpoints = {checkpoint.path: checkpoint for checkpoint in planned.values()}
        runtime = device.resolve(self._settings, sum(map(weight_bytes, checkpoints.values())))
        device.apply(runtime)
        self._budget = runtime.token_budget
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
            outcome = _attempt(ref, partial(self._start, ref, wish))
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
        return drawer.start(ref, wish.generation, self._turn)

    def _candidates(self) -> Sequence[Candidate]:
        return [
            Candidate(
                ref=ref,
                key=(self._drawer(trajectory).checkpoint.path, trajectory.drawn_size),
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
        velocities = _attempt(trajectories[0].ref, partial(drawer.velocities, trajectories))
        if not isinstance(velocities, Failed):
            moves = zip(trajectories, velocities, strict=True)
            return [self._moved(trajectory, velocity) for trajectory, velocity in moves]
        if len(trajectories) == 1:
            return [velocities]
        return [outcome for trajectory in trajectories for outcome in self._advance([trajectory])]

    def _moved(self, trajectory: Trajectory, velocity: Tensor) -> Trajectory:
        """One step further; before the last one its preview is made where it was asked for."""
        moved = trajectory.moved(velocity, self._turn)
        if trajectory.ref in self._shown:
            self._shown.discard(trajectory.ref)
            preview = partial(self._drawer(trajectory).preview, trajectory, velocity)
            if not moved.is_done and not isinstance(made := _attempt(trajectory.ref, preview), Failed):
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
        self.discard(outcome.ref)
        finished = _attempt(outcome.ref, partial(self._drawer(outcome).finish, outcome))
        device.release_memory()
        return (progressed, finished)

    def _drawer(self, trajectory: Trajectory) -> Drawer:
        return self._drawers[trajectory.generation.model]

    def _draw_once(self, model: str) -> None:
        generation = Generation(
            model=model, prompt="", size=_WARM_SIZE, seed=0, steps=1, guidance=3.5, output_format="png"
        )
        self.admit(_WARM_REF, generation)
        for event in self.step():
            if isinstance(event, Failed):
                raise event.error


def _attempt(ref: str, act: Callable[[], _T]) -> _T | Failed:
    """What `act` returns, or how it failed. A device that stopped working is not a failure of one picture: raised."""
    import torch

    try:
        return act()
    except EngineError as error:
        return Failed(ref=ref, error=error)
    except (torch.OutOfMemoryError, MemoryError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Failed(ref=ref, error=OutOfMemory("The device ran out of memory."))
    except torch.AcceleratorError:
        raise
    except Exception:
        logger.exception("Drawing failed", extra={"action": "drawing_failed", "ref": ref})
        return Failed(ref=ref, error=DrawingFailed("The engine could not draw this picture."))
