"""The diffusion engine: real networks, many trajectories, one batch a step.

Each step: take in those whose prompts were read, choose who moves, predict, advance, hand those done to be decoded. A
generation that cannot be drawn becomes a `Failed` event and leaves the others alone; only a broken device raises.
What it does not know: tasks, files, the formulas (sampling), the networks (networks/), the shapes (forward).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import device, waypoint
from fluxserve.engine.base import Event, Failed, Finished, Pixels, Progressed
from fluxserve.engine.batcher import Candidate, choose
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.lanes import Lane
from fluxserve.engine.trajectory import Trajectory
from fluxserve.errors import DrawingFailed, EngineError, OutOfMemory, WaypointRefused
from fluxserve.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Generations held at once, at least: latents are small, and who steps is chosen anew at every step.
_CAPACITY = 8
#: Longest wait inside one `step` where only reading and decoding are left: a newcomer is noticed this soon.
_LONGEST_WAIT_S = 0.005
_WARM_SIZE = Size(256, 256)
_WARM_REF = "warm"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Wish:
    """What waits for its prompt to be read, and the waypoint it may go on from."""

    generation: Generation
    waypoint: bytes | None
    turn: float


class DiffusionEngine:
    """Implements the engine seam with torch."""

    def __init__(self, settings: Settings, open_drawer: Callable[[Checkpoint, Runtime], Drawer] = open_drawer) -> None:
        self._settings = settings
        self._open_drawer = open_drawer
        self._drawers: dict[str, Drawer] = {}
        #: A generation is in one of these: being read, stepping or parked, being decoded.
        self._wishes: dict[str, _Wish] = {}
        self._trajectories: dict[str, Trajectory] = {}
        self._drawn: dict[str, Trajectory] = {}
        #: Refs whose next step is to be shown, and what the step that is under way showed.
        self._shown: set[str] = set()
        self._previews: dict[str, Pixels] = {}
        self._news = threading.Condition()
        self._reading: Lane[tuple[_Wish, Trajectory | Failed]]
        self._decoding: Lane[tuple[Trajectory, Finished | Failed]]
        self._runtime: Runtime

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
        """How many generations are worth holding at once: enough for a batch and others to choose from."""
        widest = [company.most for drawer in self._drawers.values() for company in drawer.company.values()]
        return max(_CAPACITY, 2 * max(widest, default=1))

    @property
    def active(self) -> int:
        """Generations admitted and not yet finished."""
        return len(self._wishes) + len(self._trajectories) + len(self._drawn)

    def warm(self) -> None:
        """Load each checkpoint once and draw one step with it. Raises ConfigurationError or EngineError."""
        import torch

        planned = plan(self._settings)
        checkpoints = {checkpoint.path: checkpoint for checkpoint in planned.values()}
        weights = sum(checkpoint.weight_bytes for checkpoint in checkpoints.values())
        self._runtime = device.resolve(self._settings, weights)
        device.apply(self._runtime)
        with torch.inference_mode():
            opened = {path: self._open_drawer(checkpoint, self._runtime) for path, checkpoint in checkpoints.items()}
            for drawer in opened.values():
                drawer.previewer.fit()
            device.finish(self._runtime)
        self._drawers = {model: opened[checkpoint.path] for model, checkpoint in planned.items()}
        self._reading = Lane("reader", self._runtime, self._news)
        self._decoding = Lane("decoder", self._runtime, self._news)
        for path in opened:
            self._draw_once(next(model for model, checkpoint in planned.items() if checkpoint.path == path))

    def admit(self, ref: str, generation: Generation, waypoint: bytes | None = None, *, turn: float = 0.0) -> None:
        """Take a generation in: its prompt is read beside the steps, then it starts, or goes on from its waypoint."""
        wish = _Wish(generation=generation, waypoint=waypoint, turn=turn)
        self._wishes[ref] = wish
        self._reading.submit(ref, turn, lambda: (wish, _attempt(ref, partial(self._start, ref, wish))))

    def save(self, ref: str) -> bytes | None:
        """Where `ref` stands as a waypoint; None where there is nothing to go on from."""
        trajectory = self._trajectories.get(ref)
        return None if trajectory is None else self._drawer(trajectory).save(trajectory)

    def discard(self, ref: str) -> None:
        """Forget `ref`; unknown refs are ignored."""
        for held in (self._wishes, self._trajectories, self._drawn, self._previews):
            held.pop(ref, None)
        self._shown.discard(ref)
        for lane in (self._reading, self._decoding):
            lane.drop(ref)

    def show(self, ref: str) -> None:
        """Let the next step of `ref` be shown."""
        if ref in self._wishes or ref in self._trajectories:
            self._shown.add(ref)

    def step(self) -> Sequence[Event]:
        """Move one batch by one step; tells progress for each that moved, and outcomes."""
        if not self.active:
            return ()
        import torch

        self._wait_for_news()
        with torch.inference_mode():
            # 1. Take in those whose prompts were read.
            failed = self._take_started()
            # 2. Choose who moves, of all that are on their way.
            chosen = [self._trajectories[ref] for ref in choose(self._candidates())]
            # 3. Predict and advance them; what they were is given up only when the device has done so.
            moved = self._advance(chosen)
            device.finish(self._runtime)
            # 4. Tell of progress; those that are done go on to be decoded.
            progress = [event for outcome in moved for event in self._tell(outcome)]
        # 5. Hand out what was decoded.
        return (*failed, *progress, *self._take_decoded())

    def _wait_for_news(self) -> None:
        """Where nobody can step, until a prompt was read or a picture decoded, but only for a moment."""
        if not self._trajectories:
            with self._news:
                self._news.wait_for(lambda: self._reading.has_news or self._decoding.has_news, _LONGEST_WAIT_S)

    def _take_started(self) -> Sequence[Failed]:
        failed = []
        for ref, (wish, outcome) in self._reading.take():
            if self._wishes.get(ref) is not wish:  # discarded meanwhile
                continue
            if isinstance(outcome, Failed):
                self.discard(ref)
                failed.append(outcome)
            else:
                del self._wishes[ref]
                self._trajectories[ref] = outcome
        return failed

    def _take_decoded(self) -> Iterator[Finished | Failed]:
        for ref, (trajectory, outcome) in self._decoding.take():
            if self._drawn.get(ref) is trajectory:
                del self._drawn[ref]
                yield outcome

    def _start(self, ref: str, wish: _Wish) -> Trajectory:
        drawer = self._drawers[wish.generation.model]
        if wish.waypoint is not None:
            try:
                return drawer.resume(ref, wish.generation, wish.turn, wish.waypoint)
            except WaypointRefused as error:
                waypoint.log_refused(ref, error)
        return drawer.start(ref, wish.generation, wish.turn)

    def _candidates(self) -> Sequence[Candidate]:
        return [
            Candidate(
                ref=ref,
                key=(drawer.checkpoint.path, trajectory.drawn_size),
                most=drawer.company_at(trajectory.drawn_size).most,
                turn=trajectory.turn,
            )
            for ref, trajectory in self._trajectories.items()
            for drawer in (self._drawer(trajectory),)
        ]

    def _advance(self, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory | Failed]:
        """Move all together; where that fails, each alone, so that a bad one takes no other with it."""
        if not trajectories:
            return ()
        velocities = _attempt(trajectories[0].ref, partial(self._drawer(trajectories[0]).velocities, trajectories))
        if not isinstance(velocities, Failed):
            moves = zip(trajectories, velocities, strict=True)
            return [self._moved(trajectory, velocity) for trajectory, velocity in moves]
        if len(trajectories) == 1:
            return [velocities]
        return [outcome for trajectory in trajectories for outcome in self._advance([trajectory])]

    def _moved(self, trajectory: Trajectory, velocity: Tensor) -> Trajectory:
        """One step further; before the last one its preview is made where it was asked for."""
        moved = trajectory.moved(velocity)
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
        preview = self._previews.pop(outcome.ref, None)
        if outcome.is_done:
            self.discard(outcome.ref)
            self._drawn[outcome.ref] = outcome
            self._decoding.submit(outcome.ref, outcome.turn, partial(self._decode, outcome))
        else:
            self._trajectories[outcome.ref] = outcome
        return (Progressed(ref=outcome.ref, step=outcome.position, steps=outcome.steps, preview=preview),)

    def _decode(self, trajectory: Trajectory) -> tuple[Trajectory, Finished | Failed]:
        finished = _attempt(trajectory.ref, partial(self._drawer(trajectory).finish, trajectory))
        device.release_memory()
        return trajectory, finished

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
