"""The fake engine: cheap deterministic pictures without torch, for trials of everything around the engine.

A picture is a few coloured tiles that follow from model, prompt, seed, size and input pictures; the first of these
stands in its upper left quarter. Previews show the tiles come out of grey. A picture takes `fake_latency` seconds,
spread evenly over its steps; all admitted generations run side by side, and those that move at once are told of in the
order of their turns. Time comes from the clock that it is given.

Directives in a prompt make failures; STEP counts from 0, the default, and is reached and reported first:

    [[crash]] [[crash:STEP]]    the process ends at once, as if killed
    [[hang]] [[hang:STEP]]      `step` never returns
    [[error]] [[error:STEP]]    the generation fails for good (DrawingFailed)
    [[oom]] [[oom:STEP]]        the generation fails with OutOfMemory
    [[spend]] [[spend:STEP]]    the same, and the process is to be replaced
    [[black]]                   the finished picture is a bad one (BadPicture)
    [[magenta]]                 the finished picture, and each preview of it, is magenta: 255, 0, 254

For the models of FLUX.2 it also writes: what it is asked, in capitals.

What it does not know: networks, tasks, files.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from PIL import Image

from fluxserve import __version__
from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine import waypoint as waypoints
from fluxserve.engine.base import NO_PICTURES, Event, Failed, Finished, Pixels, Progressed, Wrote
from fluxserve.engine.waypoint import Waypoint
from fluxserve.errors import BadPicture, DrawingFailed, EngineError, Fact, OutOfMemory, WaypointRefused
from fluxserve.settings import Settings

DRAWN_BY = "fluxserve-fake"
FINGERPRINT = f"fake-{__version__}"
CAPACITY = 8
#: Exit status of a process that a prompt told to crash.
CRASH_STATUS = 70
#: Longest wait inside one `step`, in seconds: a stop or a cancelled task is noticed this soon.
LONGEST_WAIT = 0.02
MAGENTA = "[[magenta]]"
_TILES = 4
#: What there is to show in a preview.
_SKETCHED = Size(64, 64)
_ERRORS = {
    "error": DrawingFailed("The prompt asked for it."),
    "oom": OutOfMemory("The device ran out of memory."),
    "spend": OutOfMemory("The device ran out of memory."),
    "black": BadPicture("The picture came out in one colour."),
}
_DIRECTIVE = re.compile(r"\[\[(crash|hang|error|oom|spend)(?::(\d{1,4}))?\]\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trajectory:
    """One picture on its way: `done` steps of `steps`, begun at `begun` on the engine's clock."""

    generation: Generation
    steps: int
    begun: float
    turn: float
    pictures: Mapping[str, Pixels]
    done: int = 0

    @property
    def is_done(self) -> bool:
        return self.done >= self.steps

    @property
    def waypoint(self) -> Waypoint:
        """Its only latent is the number of steps made."""
        return Waypoint(
            fingerprint=FINGERPRINT,
            step=self.done,
            sigmas=tuple(1 - step / self.steps for step in range(self.steps + 1)),
            shape=(1, 1, 1),
            latents=struct.pack("<f", self.done),
        )

    def resumed(self, saved: bytes, latency: float) -> _Trajectory:
        """Further on its way, as if begun so much earlier; raises WaypointRefused."""
        reached = waypoints.decode(saved, self.generation, FINGERPRINT)
        moved = replace(self, done=reached.step, begun=self.begun - latency * reached.step / self.steps)
        if moved.waypoint != reached:
            raise WaypointRefused("It is of another size or another noise schedule.")
        return moved


class FakeEngine:
    """Implements the engine seam; see the room's docstring for pictures and directives."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._latency = settings.fake_latency
        self._steps = settings.fake_steps
        self._clock = clock
        self._wait = wait
        self._end_process = end_process
        self._trajectories: dict[str, _Trajectory] = {}
        self._shown: set[str] = set()
        self._spent_on: set[str] = set()
        self._drafts: dict[str, str] = {}

    @property
    def models(self) -> tuple[str, ...]:
        """Every model of the catalogue."""
        return tuple(MODELS)

    @property
    def left_out(self) -> Sequence[str]:
        """It has no weights."""
        return ()

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """One for all: the pictures depend on the code alone."""
        return dict.fromkeys(MODELS, FINGERPRINT)

    @property
    def capacity(self) -> int:
        """How many generations are worth holding at once."""
        return CAPACITY

    @property
    def active(self) -> int:
        """Generations admitted and not yet finished, and what is being written."""
        return len(self._trajectories) + len(self._drafts)

    @property
    def device_memory(self) -> int:
        """It has no device."""
        return 0

    @property
    def is_bringing(self) -> bool:
        """It has no weights."""
        return False

    @property
    def away(self) -> Mapping[str, float]:
        """It has no weights."""
        return {}

    @property
    def spent_on(self) -> Set[str]:
        """Refs whose prompts said so."""
        return self._spent_on

    def warm(self) -> None:
        """Nothing to load."""

    def admit(
        self,
        ref: str,
        generation: Generation,
        waypoint: bytes | None = None,
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        turn: float = 0.0,
        flow: str = "",  # noqa: ARG002 - all step at once, so there is nothing to share
    ) -> None:
        """Take a generation in, or up again."""
        steps = self._steps or generation.steps
        begun = _Trajectory(generation=generation, steps=steps, begun=self._clock(), turn=turn, pictures=pictures)
        self._trajectories[ref] = begun
        if waypoint is not None:
            try:
                self._trajectories[ref] = begun.resumed(waypoint, self._latency)
            except WaypointRefused as error:
                waypoints.log_refused(ref, error)

    @property
    def writes(self) -> tuple[str, ...]:
        """As in checkpoints, only where a language model reads prompts."""
        return tuple(model for model in MODELS if model.startswith("flux-2"))

    def write(self, ref: str, model: str, system: str, user: str, most: int) -> None:  # noqa: ARG002 - of others
        """Said with the next step."""
        self._drafts[ref] = user[:most]

    def save(self, ref: str) -> bytes | None:
        """Where `ref` stands as a waypoint; None where there is nothing to go on from."""
        trajectory = self._trajectories.get(ref)
        if trajectory is None or not trajectory.waypoint.is_sound:
            return None
        return waypoints.encode(trajectory.waypoint, trajectory.generation)

    def discard(self, ref: str) -> None:
        """Forget `ref`."""
        self._trajectories.pop(ref, None)
        self._drafts.pop(ref, None)
        self._shown.discard(ref)

    def show(self, ref: str) -> None:
        """Let the next step of `ref` be shown."""
        if ref in self._trajectories:
            self._shown.add(ref)

    def step(self) -> Sequence[Event]:
        """Advance all that are due, waiting a moment for the first; each tells its newest step at most once."""
        if self._drafts:
            return [self._write(ref, user) for ref, user in list(self._drafts.items())]
        self._wait_for_the_first()
        now = self._clock()
        return [
            event
            for ref, trajectory in sorted(self._trajectories.items(), key=lambda held: held[1].turn)
            for event in self._advance(ref, trajectory, now)
        ]

    def _write(self, ref: str, user: str) -> Event:
        kind, _ = _directive(user)
        if kind:
            return next(iter(self._misbehave(ref, kind)))
        self.discard(ref)
        return Wrote(ref=ref, text=user.upper())

    def _wait_for_the_first(self) -> None:
        moments = [self._next_moment(trajectory) for trajectory in self._trajectories.values()]
        delay = min(moments, default=0.0) - self._clock()
        if moments and delay > 0:
            self._wait(min(delay, LONGEST_WAIT))

    def _next_moment(self, trajectory: _Trajectory) -> float:
        return trajectory.begun + self._latency * (trajectory.done + 1) / trajectory.steps

    def _advance(self, ref: str, trajectory: _Trajectory, now: float) -> Sequence[Event]:
        kind, at = _directive(trajectory.generation.prompt)
        if kind and trajectory.done >= at:
            return self._misbehave(ref, kind)
        due = self._due(trajectory, now)
        moved = replace(trajectory, done=min(due, at) if kind else due)
        if moved.done == trajectory.done:
            return ()
        self._trajectories[ref] = moved
        progressed = Progressed(ref=ref, step=moved.done, steps=moved.steps, preview=self._preview(ref, moved))
        return (progressed, self._finish(ref, moved)) if moved.is_done else (progressed,)

    def _preview(self, ref: str, moved: _Trajectory) -> Pixels | None:
        if ref not in self._shown:
            return None
        self._shown.discard(ref)
        return None if moved.is_done else _sketch(moved)

    def _due(self, trajectory: _Trajectory, now: float) -> int:
        if self._latency == 0:
            return trajectory.steps
        # The hair on top makes a clock that was set to exactly a step's moment reach that step.
        share = (now - trajectory.begun) / self._latency + 1e-9
        return max(trajectory.done, min(math.floor(share * trajectory.steps), trajectory.steps))

    def _misbehave(self, ref: str, kind: str) -> Sequence[Event]:
        if kind == "crash":
            self._end_process(CRASH_STATUS)
        while kind == "hang":
            self._wait(1.0)
        if kind == "spend":
            self._spent_on.add(ref)
        return (self._fail(ref, _ERRORS[kind]),)

    def _fail(self, ref: str, error: EngineError) -> Failed:
        self.discard(ref)
        return Failed(ref=ref, error=error)

    def _finish(self, ref: str, trajectory: _Trajectory) -> Finished | Failed:
        generation = trajectory.generation
        if "[[black]]" in generation.prompt:
            return self._fail(ref, _ERRORS["black"])
        drawn = _draw(generation, trajectory.pictures)
        self.discard(ref)
        facts: dict[str, Fact] = {
            "pixels_sha256": pixels_of.sha256(drawn),
            "drawn_at": str(generation.size),
            "steps": generation.steps,
            "fingerprint": FINGERPRINT,
        }
        return Finished(ref=ref, pixels=drawn, drawn_by=DRAWN_BY, facts=facts)


def _directive(prompt: str) -> tuple[str, int]:
    """What the prompt tells the engine to do wrong and at which step; an empty word: nothing."""
    found = _DIRECTIVE.search(prompt)
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def _draw(generation: Generation, pictures: Mapping[str, Pixels]) -> Pixels:
    """Tiles whose colours follow from the generation, and the first of its pictures."""
    size = generation.size
    if MAGENTA in generation.prompt:
        return _magenta(size)
    drawn = _tiles(generation).resize((size.width, size.height), Image.Resampling.NEAREST)
    for picture in generation.pictures[:1]:
        shown = pixels_of.to_image(pictures[picture.name])
        drawn.paste(shown.resize((size.width // 2, size.height // 2), Image.Resampling.NEAREST))
    return pixels_of.from_image(drawn)


def _magenta(size: Size) -> Pixels:
    return Pixels(size=size, data=bytes([255, 0, 254]) * size.area)


def _sketch(trajectory: _Trajectory) -> Pixels:
    """The tiles in the shape that was asked for, as far out of grey as the picture is done."""
    if MAGENTA in trajectory.generation.prompt:
        return _magenta(pixels_of.preview_size(trajectory.generation.size, _SKETCHED))
    grey = Image.new("RGB", (_TILES, _TILES), (128, 128, 128))
    tiles = Image.blend(grey, _tiles(trajectory.generation), trajectory.done / trajectory.steps)
    size = pixels_of.preview_size(trajectory.generation.size, _SKETCHED)
    return pixels_of.from_image(tiles.resize((size.width, size.height), Image.Resampling.NEAREST))


def _tiles(generation: Generation) -> Image.Image:
    names = "".join(f"\n{picture.name} {picture.sha256}" for picture in generation.pictures)
    recipe = f"{generation.model}\n{generation.seed}\n{generation.size}\n{generation.prompt}{names}"
    colours = hashlib.shake_256(recipe.encode("utf-8", "surrogatepass")).digest(3 * _TILES * _TILES)
    return Image.frombytes("RGB", (_TILES, _TILES), colours)
