"""The memory plan of a checkpoint on this device.

What it does not know: how a plan is carried out (`weights`, `residence`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxserve.engine import plans, single_file
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.means import Stage
from fluxserve.engine.needs import needs
from fluxserve.engine.plans import Needs, Plan, gib

_TITLES = {Stage.ENCODE: "text encoders", Stage.PREDICT: "transformer", Stage.DECODE: "autoencoder"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A checkpoint's plan, what it needs, and what it may take of which device."""

    plan: Plan
    needs: Needs
    memory: int
    device: str

    @property
    def parts(self) -> str:
        """The bytes of each stage's networks as they are held, for people."""
        return ", ".join(f"{title} {gib(plans.weights(self.plan, self.needs, one))}" for one, title in _TITLES.items())

    @property
    def peaks(self) -> str:
        """What is expected, for people; by stages where they take turns."""
        by_stage = ", ".join(f"{stage} {gib(count)}" for stage, count in plans.peaks(self.plan, self.needs).items())
        stages = f" ({by_stage})" if self.plan.takes_turns else ""
        return f"expected peak {gib(self.peak)} of {gib(self.memory)} on {self.device}{stages}"

    @property
    def peak(self) -> int:
        """The expected one, in bytes."""
        return plans.peak(self.plan, self.needs)

    @property
    def weights(self) -> int:
        """Bytes of all weights as they are held, wherever they are."""
        return sum(plans.weights(self.plan, self.needs, stage) for stage in Stage)

    @property
    def at_home(self) -> int:
        """Bytes of those that stay in the machine's memory while the device draws with them."""
        return sum(plans.weights(self.plan, self.needs, stage) for stage in self.plan.at_home)

    @property
    def is_enough(self) -> bool:
        """Whether it fits: a plan that was named may not."""
        return self.peak <= self.memory

    @property
    def tells(self) -> str:
        """One line for people."""
        return f"plan {self.plan.name}: {self.plan.tells}; {self.peaks}"


def fit(checkpoint: Checkpoint, runtime: Runtime) -> Fit:
    """Raises MemoryTooSmall where no plan fits, CheckpointMissing or CheckpointRefused where a file cannot be read."""
    for piece in checkpoint.pieces.values():
        single_file.check_readable(piece)
    needed = needs(checkpoint, runtime.number_bytes)
    wanted, eighths = runtime.memory_plan, runtime.speed.float8
    plan = plans.choose(needed, runtime.kind, runtime.memory, wanted, checkpoint.name, eighths=eighths)
    return Fit(plan=plan, needs=needed, memory=runtime.memory, device=runtime.device)


def planned(runtime: Runtime, found: Fit) -> Runtime:
    """The runtime with a checkpoint's plan, and what of speed goes with it."""
    plan = found.plan
    speed = runtime.speed.for_weights(move=Stage.PREDICT in plan.at_home, stream=Stage.PREDICT in plan.streamed)
    return replace(runtime, plan=plan, speed=speed)
