"""Memory plans: how a checkpoint is held on a device that may be too small for all of it, and what each plan takes.

A plan's expected peak is a sum for each stage: the weights that are on the device while it is at work, and what its
work takes beside them. The first plan that fits is taken; they are in the order of their speed.
What it does not know: torch, files, devices other than by their memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fluxserve.engine.means import Stage
from fluxserve.errors import MemoryTooSmall

#: One that is at work and the next one, which is on its way.
_BLOCKS_AT_ONCE = 2
_SHOWN_IN_GIB = 2**29

#: Where weights are while nobody uses them; see `Plan`.
Placement = Literal["resident", "encoder-blocks", "turns", "blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Numbers of some layers: all; those of matrices among them, their rows, and the largest matrix."""

    elements: int = 0
    matrices: int = 0
    rows: int = 0
    largest: int = 0

    def bytes(self, number: int, *, eighths: bool) -> int:
        """In memory; `number`: bytes of one that is not held in 8 bits."""
        if not eighths:
            return self.elements * number
        return (self.elements - self.matrices) * number + self.matrices + self.rows * number


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The networks of a stage: blocks that follow each other, and the rest. `working`: bytes that a picture takes."""

    rest: Count = field(default_factory=Count)
    blocks: Sequence[Count] = ()
    working: int = 0

    @property
    def largest(self) -> int:
        """Elements of the largest matrix."""
        return max((one.largest for one in self.blocks), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a checkpoint takes; `number`: bytes of a number as it is computed in, `tile`: what decoding in tiles takes.

    A picture is one of about a megapixel, alone in its pass.
    """

    stages: Mapping[Stage, Layers]
    number: int
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the networks of a checkpoint are held.

    `placement`: all of them on the device; all, but each block of the text encoders is brought as it is needed;
    encoders and transformer take turns; or they do, and their blocks are brought as they are needed.
    `float8`: the matrices of the transformer's blocks are held in 8 bits. `int8`: they are multiplied in 8 bits, too,
    which takes less time on a CPU. `tiled`: large pictures are decoded in tiles.
    """

    placement: Placement = "resident"
    float8: bool = False
    int8: bool = False
    tiled: bool = False

    @property
    def name(self) -> str:
        """As the setting calls it."""
        words = (
            "float8" if self.float8 else "int8" if self.int8 else "",
            self.placement if self.placement != "resident" else "",
        )
        return "-".join(filter(None, (*words, "tiled" if self.tiled else ""))) or "resident"

    @property
    def streamed(self) -> frozenset[Stage]:
        """The stages whose blocks are brought as they are needed."""
        streamed: Mapping[Placement, tuple[Stage, ...]] = {
            "encoder-blocks": (Stage.ENCODE,),
            "blocks": (Stage.ENCODE, Stage.PREDICT),
        }
        return frozenset(streamed.get(self.placement, ()))

    @property
    def at_home(self) -> frozenset[Stage]:
        """The stages whose weights are kept in the machine's memory, and brought to the device."""
        return self.streamed or (frozenset({Stage.ENCODE, Stage.PREDICT}) if self.takes_turns else frozenset())

    @property
    def takes_turns(self) -> bool:
        """Whether one stage at a time is at work, and encoders and transformer are never both on the device."""
        return self.placement in ("turns", "blocks")

    def holds_eighths(self, stage: Stage) -> bool:
        """Whether matrices of a stage are held in 8 bits."""
        return (self.float8 or self.int8) and stage is Stage.PREDICT

    def keeps_out(self, stage: Stage) -> frozenset[Stage]:
        """The stages whose networks are off the device while `stage` is at work. Autoencoders are small: they stay."""
        large = {Stage.ENCODE, Stage.PREDICT}
        if not self.takes_turns:
            return frozenset()
        return frozenset({Stage.ENCODE} if stage is Stage.DECODE else large - {stage})

    @property
    def words(self) -> tuple[str, ...]:
        """What changes bits."""
        named = {"weights in 8 bits": self.float8, "products in 8 bits": self.int8, "decoded in tiles": self.tiled}
        return tuple(word for word, is_so in named.items() if is_so)

    @property
    def tells(self) -> str:
        """For people."""
        placed = {
            "resident": "everything on the device",
            "encoder-blocks": "text encoders brought block by block",
            "turns": "text encoders and transformer in turns on the device",
            "blocks": "text encoders and transformer brought block by block",
        }
        return ", ".join((placed[self.placement], *self.words))


RESIDENT = Plan()
#: Blocks are brought at every step, which half the bytes make twice as fast; else full numbers go first.
_ORDER: Sequence[tuple[Placement, bool]] = (
    ("resident", False),
    ("resident", True),
    ("encoder-blocks", False),
    ("encoder-blocks", True),
    ("turns", False),
    ("turns", True),
    ("blocks", True),
    ("blocks", False),
)
PLANS: Mapping[str, Plan] = {
    plan.name: plan
    for placement, float8 in _ORDER
    for tiled in (False, True)
    if (plan := Plan(placement=placement, float8=float8, tiled=tiled))
} | {plan.name: plan for plan in (Plan(int8=True), Plan(int8=True, tiled=True))}


def possible(kind: str) -> Iterator[Plan]:
    """Those that a kind of device can be held by, fastest first: only a GPU has another memory than the machine's."""
    for plan in PLANS.values():
        has_place = kind == "cuda" or plan.placement == "resident"
        if (
            has_place and (kind == "cpu" or not plan.int8) and not (plan.float8 and kind == "mps")
        ):  # Apple's GPUs hold no numbers of 8 bits
            yield plan


def peaks(plan: Plan, needs: Needs) -> Mapping[Stage, int]:
    """The expected bytes on the device while each stage is at work."""
    working = {stage: _working(plan, needs, stage) for stage in Stage}
    held = {
        stage: sum(_held(plan, needs, other) for other in Stage if other not in plan.keeps_out(stage))
        for stage in Stage
    }
    if plan.takes_turns:
        return {stage: held[stage] + working[stage] for stage in Stage}
    return {stage: held[stage] + sum(working.values()) for stage in Stage}  # they may be at work beside each other


def peak(plan: Plan, needs: Needs) -> int:
    """The largest of `peaks`."""
    return max(peaks(plan, needs).values())


def choose(needs: Needs, kind: str, memory: int, wanted: str, name: str, *, eighths: bool = False) -> Plan:
    """The plan called `wanted`, or the first that fits for `auto`. Raises MemoryTooSmall; `name`: of the checkpoint.

    `eighths`: only such as hold the transformer in 8 bits.
    """
    plans = [plan for plan in possible(kind) if plan.float8 or not eighths]
    if wanted != "auto":
        plan = PLANS[wanted]
        if plan not in plans:
            names = ", ".join(one.name for one in plans)
            where = f"speed = float8-dynamic on {kind}" if eighths else kind
            raise MemoryTooSmall(f"memory_plan = {wanted} is no plan for {where}: choose auto or one of {names}.")
        return plan
    plans = [plan for plan in plans if not plan.int8]  # it draws other pictures: only where it is named
    for plan in plans:
        if peak(plan, needs) <= memory:
            return plan
    least = min(plans, key=lambda one: peak(one, needs))
    raise MemoryTooSmall(
        f"{name} does not fit: the plan that takes least ({least.name}) takes {gib(peak(least, needs))} of memory on "
        f"{kind}, and {gib(memory)} may be used. Choose smaller weights, or raise memory_budget if that is set."
    )


def gib(count: int) -> str:
    """For people."""
    return f"{count / 2**30:.1f} GiB" if count >= _SHOWN_IN_GIB else f"{count / 2**20:.0f} MiB"


def weights(plan: Plan, needs: Needs, stage: Stage) -> int:
    """Bytes of the networks of a stage, wherever they are."""
    layers = needs.stages[stage]
    eighths = plan.holds_eighths(stage)
    return sum(one.bytes(needs.number, eighths=eighths) for one in (layers.rest, *layers.blocks))


def _held(plan: Plan, needs: Needs, stage: Stage) -> int:
    """Bytes of them on the device, where it is one of those that are there."""
    if stage not in plan.streamed:
        return weights(plan, needs, stage)
    layers, eighths = needs.stages[stage], plan.holds_eighths(stage)
    blocks = (one.bytes(needs.number, eighths=eighths) for one in layers.blocks)
    rest = layers.rest.bytes(needs.number, eighths=eighths)
    return rest + _BLOCKS_AT_ONCE * max(blocks, default=0)


def _working(plan: Plan, needs: Needs, stage: Stage) -> int:
    layers = needs.stages[stage]
    if stage is Stage.DECODE and plan.tiled:
        return min(needs.tile, layers.working)
    cast = layers.largest * needs.number if plan.float8 and stage is Stage.PREDICT else 0  # for each product
    return layers.working + cast
