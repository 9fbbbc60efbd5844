"""The engine seam: what every engine offers the worker, as one small protocol.

An engine is stepped from one thread. It is given generations, advances them a step at a time and answers with
events. It raises nothing for a single task: a task that cannot be drawn becomes a `Failed` event. An exception
out of `step` means that the engine itself is broken and the process has to go.
What it does not know: tasks, leases, accounts, files; a `ref` is the caller's own name for a generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from fluxserve.catalogue import Generation, Size
from fluxserve.errors import EngineError, Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """A drawn picture: `data` holds height x width x 3 bytes, RGB, row by row from the top."""

    size: Size
    data: bytes


NO_PICTURES: Mapping[str, Pixels] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """`ref` has made `step` of `steps` steps; `preview` is what it is heading for, where `show` asked for that."""

    ref: str
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """`ref` is drawn. `drawn_by` names the weights; `facts` and `warnings` go into the result's `details`."""

    ref: str
    pixels: Pixels
    drawn_by: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """`ref` could not be drawn."""

    ref: str
    error: EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrote:
    """`ref`, which is to be written, has come further; `text` once it is there."""

    ref: str
    text: str | None = None


Event = Progressed | Finished | Failed | Wrote


class Engine(Protocol):
    """Draws generations, many at a time, one step at a time."""

    @property
    def models(self) -> tuple[str, ...]:
        """Public names of the models this engine can draw."""

    @property
    def left_out(self) -> Sequence[str]:
        """Once warm: what is wrong with weights that it draws nothing with, and what to do about it."""

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """By model, once warm: equal fingerprints promise equal pixels."""

    @property
    def capacity(self) -> int:
        """How many generations are worth holding at once: enough to choose from at every step."""

    @property
    def active(self) -> int:
        """Generations admitted and not yet finished, and what is being written."""

    @property
    def device_memory(self) -> int:
        """Bytes that it holds on a device with memory of its own; 0 on a CPU."""

    @property
    def is_bringing(self) -> bool:
        """Weights are on their way to the device; meanwhile it may have nothing else to tell of, and is sound."""

    @property
    def away(self) -> Mapping[str, float]:
        """By fingerprint, the weights that are not on the device now, and in how many seconds they come."""

    @property
    def spent_on(self) -> Set[str]:
        """Refs over which its process ran out of memory for good; empty: it is sound.

        Once it is not, those are to be ended here, by whatever means are left, all else is to be drawn elsewhere, and
        the process is to be replaced.
        """

    def warm(self) -> None:
        """Load the weights and draw once; raises ConfigurationError or EngineError."""

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
        """Take a generation in, or up again where `waypoint` says; its first event comes from a later `step`.

        `pictures` are those that the generation names, by their names.

        The lowest `turn` is in the next step, those that can step with it join in the order of their turns, and the
        others stay parked as they are; among equal turns who was admitted first. What is done in company is shared
        fairly between `flow`s: names for those it is drawn for, which say nothing else.
        A waypoint that does not fit is left aside, with a line in the log: the generation then starts over.
        """

    @property
    def writes(self) -> tuple[str, ...]:
        """Once warm: the models whose language model can also answer."""

    def write(self, ref: str, model: str, system: str, user: str, most: int) -> None:
        """Let the language model of the model's checkpoint answer `user`, as `system` says, in at most `most` tokens.

        Its events are `Wrote`, some on the way, or `Failed`. Equal words are answered alike.
        """

    def save(self, ref: str) -> bytes | None:
        """Where `ref` stands, written down for any engine of its fingerprint (see `waypoint`).

        None where there is nothing worth keeping: it is unknown, has made no step, or its numbers ran out of range.
        """

    def show(self, ref: str) -> None:
        """Let the next `Progressed` of `ref` carry a preview, unless it is the last; unknown refs are ignored.

        The picture that is drawn in the end stays the same.
        """

    def step(self) -> Sequence[Event]:
        """Advance one batch by one step and tell what happened, if anything. Does nothing when idle.

        Prompts are read and pictures decoded beside the steps; where only that is left to do it waits a moment for it.
        """

    def discard(self, ref: str) -> None:
        """Forget `ref`; unknown refs are ignored."""
