"""The diffusion engine: real networks, many trajectories, one batch a step.

Each step: take in those whose prompts were read, choose who moves, predict, advance, hand those done to be decoded. A
generation that cannot be drawn, by other means neither, becomes a `Failed` event and leaves the others alone; only a
broken device raises. Whatever needs weights that are not on duty now waits until they are.
What it does not know: tasks, files, the formulas (sampling), the networks (networks/), the shapes (forward), where
weights are (pool) and who is on duty (duty).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import device
from fluxserve.engine.base import NO_PICTURES, Event, Failed, Finished, Pixels, Progressed, Wrote
from fluxserve.engine.batcher import Candidate, choose
from fluxserve.engine.checkpoints import Checkpoint, plan_in_part
from fluxserve.engine.company import Fitting
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, Known, open_drawer
from fluxserve.engine.duty import Duty
from fluxserve.engine.lanes import Lane
from fluxserve.engine.means import Means, Stage, log_means, more_exact, with_less_memory
from fluxserve.engine.pool import Origin, Pool
from fluxserve.engine.recovery import Recovery
from fluxserve.engine.trajectory import Trajectory
from fluxserve.engine.wish import Wish
from fluxserve.engine.writing import Draft
from fluxserve.errors import BadPicture, ConfigurationError, EngineError, OutOfMemory
from fluxserve.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Generations held at once, at least: latents are small, and who steps is chosen anew at every step.
_CAPACITY = 8
#: Longest wait inside one `step` where only reading and decoding are left: a newcomer is noticed this soon.
_LONGEST_WAIT_S = 0.005
_WARM = Generation(model="", prompt="", size=Size(256, 256), seed=0, steps=1, guidance=3.5, output_format="png")
_WARM_REF = "warm"


class DiffusionEngine:
    """Implements the engine seam with torch."""

    def __init__(self, settings: Settings, open_drawer: Callable[[Checkpoint, Runtime], Drawer] = open_drawer) -> None:
        self._settings = settings
        self._open_drawer = open_drawer
        #: Of each model, its checkpoint and what is known of that.
        self._origins: dict[str, Origin] = {}
        self._known: dict[str, Known] = {}
        self._left_out: tuple[str, ...] = ()
        #: A generation is in one of these: being read, stepping or parked, being decoded.
        self._wishes: dict[str, Wish] = {}
        self._trajectories: dict[str, Trajectory] = {}
        self._drawn: dict[str, Trajectory] = {}
        self._drafts: dict[str, Draft] = {}
        #: Of those to be read, decoded or written, the ones that wait for their weights.
        self._parked: set[str] = set()
        #: Of those whose weights could not be brought, what is still to be told.
        self._failed: list[Failed] = []
        #: Refs whose next step is to be shown, and what the step that is under way showed.
        self._shown: set[str] = set()
        self._previews: dict[str, Pixels] = {}
        self._fitting = Fitting()
        self._news = threading.Condition()
        self._reading: Lane[tuple[Wish, Trajectory | Failed]]
        self._decoding: Lane[tuple[Trajectory, Finished | Failed]]
        self._writing: Lane[Draft | Failed]
        self._runtime: Runtime
        self._recovery: Recovery
        self._pool: Pool
        self._duty: Duty

    @property
    def models(self) -> tuple[str, ...]:
        """Every model whose checkpoint works; all of the catalogue before `warm`."""
        return tuple(self._known or MODELS)

    @property
    def left_out(self) -> Sequence[str]:
        """What is wrong with checkpoints that do not work, and what to do; other models are drawn all the same."""
        return self._left_out

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """That of each model's checkpoint; none before `warm`."""
        return {model: known.fingerprint for model, known in self._known.items()}

    @property
    def capacity(self) -> int:
        """How many generations are worth holding at once: enough for a batch and others to choose from."""
        widest = [company.most for known in self._known.values() for company in known.company.values()]
        return max(_CAPACITY, 2 * max(widest, default=1))

    @property
    def active(self) -> int:
        """Generations admitted whose end was not told yet, and drafts."""
        drawn = len(self._wishes) + len(self._trajectories) + len(self._drawn)
        return drawn + len(self._drafts) + len(self._failed)

    @property
    def device_memory(self) -> int:
        """Of tensors, on a GPU: weights, and what is on its way."""
        import torch

        return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0

    @property
    def is_bringing(self) -> bool:
        """See `duty`."""
        return self._duty.is_bringing

    @property
    def away(self) -> Mapping[str, float]:
        """See `pool`."""
        return self._pool.away

    @property
    def spent_on(self) -> Set[str]:
        """See `recovery`."""
        return self._recovery.spent_on

    def warm(self) -> None:
        """Load each checkpoint once and draw one step with it; those where that fails are left out.

        Raises ConfigurationError or EngineError where none works.
        """
        planned, wrong = plan_in_part(self._settings)
        refused: list[ConfigurationError | EngineError] = list(wrong)
        if not planned:
            raise refused[0]
        checkpoints = {checkpoint.origin: checkpoint for checkpoint in planned.values()}
        weights = sum(checkpoint.weight_bytes for checkpoint in checkpoints.values())
        self._runtime = device.resolve(self._settings, weights)
        device.apply(self._runtime)
        self._recovery = Recovery(self._runtime)
        self._pool = Pool(device.room(self._settings, self._runtime), self._runtime, self._open_drawer)
        self._duty = Duty(self._pool, self._runtime, self._recovery, self._news)
        self._reading = Lane("reader", self._runtime, self._news)
        self._decoding = Lane("decoder", self._runtime, self._news)
        self._writing = Lane("writer", self._runtime, self._news)
        for origin, checkpoint in checkpoints.items():
            models = [model for model, one in planned.items() if one.origin == origin]
            try:
                self._origins |= dict.fromkeys(models, origin)
                self._known |= dict.fromkeys(models, self._pool.open(checkpoint))
                self._draw_once(models[0])
            except (ConfigurationError, EngineError) as error:
                refused.append(error)
                self._known = {model: known for model, known in self._known.items() if model not in models}
        if not self._known:
            raise refused[0]
        self._left_out = tuple(error.message for error in refused)
        for line in self._left_out:
            logger.error("A checkpoint is left out: %s", line, extra={"action": "checkpoint_left_out"})

    def admit(
        self,
        ref: str,
        generation: Generation,
        waypoint: bytes | None = None,
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        turn: float = 0.0,
        flow: str = "",
    ) -> None:
        """Take a generation in: its prompt is read beside the steps, then it starts, or goes on from its waypoint."""
        self._read(ref, Wish(generation=generation, pictures=pictures, turn=turn, flow=flow, waypoint=waypoint))

    @property
    def writes(self) -> tuple[str, ...]:
        """Those models whose checkpoint was loaded with all of its language model."""
        return tuple(model for model, known in self._known.items() if known.writes)

    def write(self, ref: str, model: str, system: str, user: str, most: int) -> None:
        """Take an answer down beside the steps."""
        self._drafts[ref] = Draft(model=model, system=system, user=user, most=most)
        self._parked.add(ref)
        self._post()

    def save(self, ref: str) -> bytes | None:
        """Where `ref` stands as a waypoint; None where there is nothing to go on from."""
        trajectory = self._trajectories.get(ref)
        return None if trajectory is None else self._known_of(trajectory).save(trajectory)

    def discard(self, ref: str) -> None:
        """Forget `ref`; unknown refs are ignored."""
        self._withdraw(ref)
        for held in (self._wishes, self._trajectories, self._drawn, self._drafts, self._previews):
            held.pop(ref, None)
        for marked in (self._shown, self._parked):
            marked.discard(ref)
        for lane in (self._reading, self._decoding, self._writing):
            lane.forget(ref)
        self._failed = [failed for failed in self._failed if failed.ref != ref]

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
            # 1. Choose whose weights are on the device, and take in those whose prompts were read.
            self._post()
            failed = [*self._take_failed(), *self._take_started()]
            # 2. Choose who moves, of all that are on their way.
            chosen = [self._trajectories[ref] for ref in choose(self._candidates())]
            # 3. Predict and advance them; what they were is given up only when the device has done so.
            moved = self._advance_with_weights(chosen)
            # 4. Tell of progress; those that are done go on to be decoded.
            progress = [event for outcome in moved for event in self._tell(outcome)]
        # 5. Hand out what was decoded or written.
        return (*failed, *progress, *self._take_decoded(), *self._take_written())

    def _wait_for_news(self) -> None:
        """Where nobody can step, until a prompt was read, a picture decoded or weights came, but only for a moment."""
        if not any(map(self._is_ready, self._trajectories.values())):
            lanes = (self._reading, self._decoding, self._writing, self._duty)
            with self._news:
                self._news.wait_for(lambda: any(lane.has_news for lane in lanes), _LONGEST_WAIT_S)

    def _post(self) -> None:
        """Let those be on duty whose turn it is, and hand in what can be read and decoded with their weights."""
        for origin, error in self._duty.update(self._needed()).items():
            for ref in [ref for ref, held in self._held() if held == origin]:
                self.discard(ref)
                self._failed.append(Failed(ref=ref, error=error))
        for ref, wish in self._wishes.items():
            self._post_beside(self._reading, ref, wish.model, wish.turn, partial(self._read_one, ref, wish))
        for ref, draft in self._drafts.items():
            self._post_beside(self._writing, ref, draft.model, 0.0, partial(self._write_on, ref, draft))
        for ref, drawn in self._drawn.items():
            # Once they are decoded its weights can leave, if they are to.
            if ref in self._parked and self._pool.is_at_hand(self._origin(drawn.generation)):
                origin = self._origin(drawn.generation)
                self._hand_in(self._decoding, ref, origin, drawn.turn, partial(self._decode, drawn))

    def _post_beside(self, lane: Lane[_T], ref: str, model: str, turn: float, act: Callable[[Drawer], _T]) -> None:
        """What waits for its weights is handed in once they are on duty, and taken back where they leave before."""
        origin = self._origins[model]
        is_ready = self._duty.is_ready(origin)
        if ref in self._parked and is_ready:
            self._hand_in(lane, ref, origin, turn, act)
        elif not is_ready and self._withdraw(ref):
            self._parked.add(ref)

    def _held(self) -> Sequence[tuple[str, Origin]]:
        drawn: tuple[Mapping[str, Trajectory], ...] = (self._trajectories, self._drawn)
        named: tuple[Mapping[str, Wish | Draft], ...] = (self._wishes, self._drafts)
        return [
            *((ref, self._origin(one.generation)) for held in drawn for ref, one in held.items()),
            *((ref, self._origins[one.model]) for held in named for ref, one in held.items()),
        ]

    def _needed(self) -> Mapping[Origin, bool]:
        """The checkpoints that have something to do, and whether pictures of them are being decoded."""
        decoded = {self._origin(drawn.generation) for drawn in self._drawn.values()}
        return {origin: origin in decoded for _, origin in self._held()}

    def _hand_in(self, lane: Lane[_T], ref: str, origin: Origin, turn: float, act: Callable[[Drawer], _T]) -> None:
        """To a lane, with the weights, which stay until the device has done it."""

        def act_with_weights() -> _T:
            try:
                outcome = act(self._pool.drawer(origin))
                device.finish(self._runtime)
                return outcome
            finally:
                self._pool.give_back(origin)

        self._pool.lend(origin)
        self._parked.discard(ref)
        lane.submit(ref, turn, act_with_weights)

    def _withdraw(self, ref: str) -> bool:
        """What was handed in and has not begun; whether there was any."""
        origin = next((origin for held, origin in self._held() if held == ref), None)
        is_withdrawn = any(lane.withdraw(ref) for lane in (self._reading, self._decoding, self._writing))
        if is_withdrawn and origin is not None:
            self._pool.give_back(origin)
        return is_withdrawn

    def _take_failed(self) -> Sequence[Failed]:
        taken, self._failed = self._failed, []
        return taken

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
                self._hold(outcome)
        return failed

    def _take_decoded(self) -> Iterator[Finished | Failed]:
        """Outcomes; a bad picture is drawn once more in float32, and not told of now."""
        for ref, (trajectory, outcome) in self._decoding.take():
            if self._drawn.get(ref) is not trajectory:  # discarded meanwhile
                continue
            del self._drawn[ref]
            bad = isinstance(outcome, Failed) and isinstance(outcome.error, BadPicture)
            exact = more_exact(trajectory.means, self._runtime.dtype) if bad else None
            if isinstance(outcome, Failed) and exact is not None:
                self._start_over(trajectory, exact, outcome.error)
            else:
                yield outcome

    def _write_on(self, ref: str, draft: Draft, drawer: Drawer) -> Draft | Failed:
        return self._recovery.with_room(partial(drawer.write, draft), ref, drawer.alone(Stage.ENCODE))

    def _take_written(self) -> Iterator[Wrote | Failed]:
        """What was written, and what has come a piece further."""
        for ref, outcome in self._writing.take():
            if isinstance(outcome, Failed) or outcome.text is not None:
                self.discard(ref)
            else:
                self._parked.add(ref)
            yield outcome if isinstance(outcome, Failed) else Wrote(ref=ref, text=outcome.text)

    def _read(self, ref: str, wish: Wish) -> None:
        """Let its prompt be read beside the steps."""
        self._wishes[ref] = wish
        self._parked.add(ref)
        self._post()

    def _read_one(self, ref: str, wish: Wish, drawer: Drawer) -> tuple[Wish, Trajectory | Failed]:
        start = partial(wish.start, ref, drawer)
        return wish, self._recovery.with_room(start, ref, drawer.alone(Stage.ENCODE))

    def _candidates(self) -> Sequence[Candidate]:
        return [
            Candidate(
                ref=ref,
                key=self._key(trajectory),
                most=self._most(trajectory),
                turn=trajectory.turn,
                flow=self._flow(trajectory),
            )
            for ref, trajectory in self._trajectories.items()
            if self._is_ready(trajectory)
        ]

    def _is_ready(self, trajectory: Trajectory) -> bool:
        return self._duty.is_ready(self._origin(trajectory.generation))

    def _key(self, trajectory: Trajectory) -> Hashable:
        """Equal for those that can share a forward pass."""
        return self._origin(trajectory.generation), trajectory.drawn_size, trajectory.means, trajectory.shape

    def _flow(self, trajectory: Trajectory) -> str:
        """Whom it shares a pass with fairly: a pass that is filled up takes as long whoever is in it."""
        return "" if self._known_of(trajectory).company_of(trajectory).padded else trajectory.flow

    def _most(self, trajectory: Trajectory) -> int:
        """How many may share a forward pass with it, itself among them, as far as is known by now."""
        return self._fitting.most(self._key(trajectory), self._known_of(trajectory).company_of(trajectory).most)

    def _advance_with_weights(self, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory | Failed]:
        if not trajectories:
            return ()
        origin = self._origin(trajectories[0].generation)
        self._pool.lend(origin)
        try:
            moved = self._advance(self._pool.drawer(origin), trajectories)
            device.finish(self._runtime)
        finally:
            self._pool.give_back(origin)
        return moved

    def _advance(self, drawer: Drawer, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory | Failed]:
        """Move all together; where that fails, in smaller parts."""
        first = trajectories[0]
        predict = partial(drawer.velocities, trajectories)
        if len(trajectories) == 1:
            velocities = self._recovery.with_room(predict, first.ref, drawer.alone(Stage.PREDICT))
        else:
            velocities = self._recovery.attempt(predict, *(trajectory.ref for trajectory in trajectories))
        if not isinstance(velocities, Failed):
            moves = zip(trajectories, velocities, strict=True)
            return [self._moved(drawer, trajectory, velocity) for trajectory, velocity in moves]
        if len(trajectories) == 1:
            return self._advance_otherwise(first, velocities)
        if isinstance(velocities.error, OutOfMemory) and not drawer.company_of(first).padded:
            self._fitting.halve(self._key(first), len(trajectories), first.drawn_size)
            return self._advance_in_parts(drawer, trajectories)
        # Each alone, so that a bad one takes no other with it.
        return [outcome for trajectory in trajectories for outcome in self._advance(drawer, [trajectory])]

    def _advance_in_parts(self, drawer: Drawer, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory | Failed]:
        """As many at a time as may fit; a part that does not makes those after it smaller too."""
        outcomes: list[Trajectory | Failed] = []
        rest = trajectories
        while rest:
            most = self._most(rest[0])
            outcomes += self._advance(drawer, rest[:most])
            rest = rest[most:]
        return outcomes

    def _advance_otherwise(self, trajectory: Trajectory, failed: Failed) -> Sequence[Trajectory | Failed]:
        """A picture that cannot even step alone: from its start by means that take less memory, if there are any."""
        if not isinstance(failed.error, OutOfMemory):
            return [failed]
        fills_up = self._known_of(trajectory).company_of(trajectory).padded
        means = with_less_memory(trajectory.means, Stage.PREDICT, fills_up=fills_up)
        if means is None:
            return [failed]
        self._start_over(trajectory, means, failed.error)
        return ()

    def _start_over(self, trajectory: Trajectory, means: Means, error: EngineError) -> None:
        """Its first steps would else be drawn one way and its last another, and that no machine would draw again."""
        log_means(trajectory.ref, means, error)
        self._trajectories.pop(trajectory.ref, None)
        wish = Wish(
            generation=trajectory.generation,
            pictures=trajectory.pictures,
            turn=trajectory.turn,
            flow=trajectory.flow,
            means=means,
        )
        self._read(trajectory.ref, wish)

    def _moved(self, drawer: Drawer, trajectory: Trajectory, velocity: Tensor) -> Trajectory:
        """One step further; before the last one its preview is made where it was asked for."""
        moved = trajectory.moved(velocity)
        if trajectory.ref in self._shown:
            self._shown.discard(trajectory.ref)
            preview = partial(drawer.preview, trajectory, velocity)
            if not moved.is_done and not isinstance(made := self._recovery.attempt(preview, trajectory.ref), Failed):
                self._previews[trajectory.ref] = made
        return moved

    def _tell(self, outcome: Trajectory | Failed) -> Sequence[Event]:
        if isinstance(outcome, Failed):
            self.discard(outcome.ref)
            return (outcome,)
        preview = self._previews.pop(outcome.ref, None)
        self._hold(outcome)
        return (Progressed(ref=outcome.ref, step=outcome.position, steps=outcome.steps, preview=preview),)

    def _hold(self, trajectory: Trajectory) -> None:
        """To be moved on or decoded; one that begins at a picture that nothing is drawn over is done as it begins."""
        if trajectory.is_done:
            self.discard(trajectory.ref)
            self._drawn[trajectory.ref] = trajectory
            self._parked.add(trajectory.ref)
            self._post()
        else:
            self._trajectories[trajectory.ref] = trajectory

    def _decode(self, trajectory: Trajectory, drawer: Drawer) -> tuple[Trajectory, Finished | Failed]:
        """Beside the steps. Where memory runs out, in tiles."""
        ref, means = trajectory.ref, trajectory.means
        alone = drawer.alone(Stage.DECODE)
        outcome = self._recovery.with_room(partial(drawer.finish, trajectory, means), ref, alone)
        if isinstance(outcome, Failed) and isinstance(outcome.error, OutOfMemory):
            tiled = with_less_memory(means, Stage.DECODE, fills_up=False)
            if tiled is not None:
                log_means(ref, tiled, outcome.error)
                outcome = self._recovery.with_room(partial(drawer.finish, trajectory, tiled), ref, alone)
        device.release_memory()
        return trajectory, outcome

    def _known_of(self, trajectory: Trajectory) -> Known:
        return self._known[trajectory.generation.model]

    def _origin(self, generation: Generation) -> Origin:
        return self._origins[generation.model]

    def _draw_once(self, model: str) -> None:
        self.admit(_WARM_REF, replace(_WARM, model=model))
        while self.active:
            for event in self.step():
                if isinstance(event, Failed):
                    raise event.error
