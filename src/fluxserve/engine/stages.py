"""How fast each stage of a picture is here, beside what the device can do at most.

Stages run as the engine runs them for one picture alone, by what was chosen for speed once it is warm, one after the
other, in rounds that begin with the device's ceilings: whatever else the machine does hits all of them, and what counts
is the median. Operations are those of the plain way, so that a floor does not depend on how anything is computed.
What it does not know: tasks, how a report is printed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, InputPicture, Size
from fluxserve.catalogue.recipes import Edit
from fluxserve.engine import device, first_block, flops, forward, networks, step_cache, weights
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.ceilings import Ceilings, seconds_of
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.device import Runtime
from fluxserve.engine.forward import ALONE, Row
from fluxserve.engine.marks import mark_of
from fluxserve.engine.means import USUAL, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.planning import fit, planned
from fluxserve.engine.step_cache import Rest, Velocity
from fluxserve.engine.trajectory import Conditioning, Inputs
from fluxserve.engine.warming import warm
from fluxserve.settings import StepCacheChoice

if TYPE_CHECKING:
    from torch import Tensor

_PROMPT = "A paper boat floating on calm water at sunrise."
LOOK, FORETELL, FILE = "look", "foretell", "file"
#: Told what begins now.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The picture that is measured; `references`: how many of its own size it is drawn beside."""

    size: Size
    steps: int
    references: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A stage: its seconds in each round, its operations, how often a picture goes through it.

    `flop` 0: none worth counting.
    """

    name: str
    seconds: tuple[float, ...]
    flop: int
    times: int

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.flop / self.median

    def of_floor(self, product_rate: float) -> float:
        """The share of the seconds that the operations take at this rate."""
        return self.rate / product_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured: each stage, and the medians of the ceilings, in bytes and operations a second.

    `runtime`: with the speed that held when it was tried.
    """

    checkpoint: Checkpoint
    runtime: Runtime
    wish: Wish
    drawn: Size
    stages: tuple[Measured, ...]
    copy_rate: float
    product_rate: float

    @property
    def seconds(self) -> float:
        """Of a picture, one stage after the other."""
        return sum(stage.times * stage.median for stage in self.stages)

    @property
    def flop(self) -> int:
        """Of a picture."""
        return sum(stage.times * stage.flop for stage in self.stages)


def measure(
    checkpoint: Checkpoint,
    runtime: Runtime,
    wish: Wish,
    *,
    rounds: int,
    at_random: bool = False,
    tell: Tell = lambda _: None,
) -> Report:
    """Load the checkpoint, with numbers drawn at random where it has none, get warm and go through the stages.

    Raises MemoryTooSmall before anything is loaded, CheckpointRefused or OutOfMemory.
    """
    import torch

    runtime = planned(runtime, fit(checkpoint, runtime))
    device.apply(runtime)
    with torch.inference_mode():
        tell(f"loading {checkpoint.name}")
        parts = weights.load(checkpoint.path, runtime, checkpoint.pieces, checkpoint.beside, at_random=at_random)
        network = networks.create(checkpoint, parts)
        tell(f"warming: {', '.join(runtime.speed.words) or 'plain'}")
        runtime = warm(checkpoint, network, runtime)
        course = _Course(checkpoint, network, wish, runtime.speed.step_cache)
        counts = {name: course.flop_of(name) for name in course.stages}
        ceilings = Ceilings.on(runtime)
        copies, products = [], []
        seconds: dict[str, list[float]] = {name: [] for name in course.stages}
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            copies.append(ceilings.copy_rate())
            products.append(ceilings.product_rate())
            for name, act in course.stages.items():
                seconds[name].append(seconds_of(runtime, act))
    stages = tuple(
        Measured(name=name, seconds=tuple(seconds[name]), flop=counts[name], times=course.times(name))
        for name in course.stages
    )
    return Report(
        checkpoint=checkpoint,
        runtime=runtime,
        wish=wish,
        drawn=course.drawn,
        stages=stages,
        copy_rate=statistics.median(copies),
        product_rate=statistics.median(products),
    )


class _Course:
    """The stages of one picture over one network, each run once by now."""

    def __init__(self, checkpoint: Checkpoint, network: Network, wish: Wish, cache: StepCacheChoice) -> None:
        self._checkpoint = checkpoint
        self._network = network
        self._steps = wish.steps
        self._cache = cache
        self._made = sum(step_cache.is_made(cache, step, wish.steps) for step in range(wish.steps))
        self.drawn = drawn_size(checkpoint, wish.size)
        self._generation = _generation(wish)
        self._pictures = {picture.name: _gradient(picture.size) for picture in self._generation.pictures}
        inputs = self._look()
        self._row = Row(
            latents=network.noise(0, self.drawn),
            sigma=1.0,
            guidance=self._generation.guidance,
            conditioning=self._encode(),
            inputs=inputs,
        )
        self._rest = Rest()
        velocity = self._predict()
        self._velocities = [Velocity(sigma=sigma, velocity=velocity) for sigma in (1.0, 0.9)]
        if self._foretold:
            self._foretell()
        self._picture = self._decode()
        self._file()
        self._beside = 0 if inputs.tokens is None else inputs.tokens.shape[1]

    @property
    def _foretold(self) -> int:
        """How many steps are."""
        return self._steps - self._made

    @property
    def stages(self) -> Mapping[str, Callable[[], object]]:
        """By name, in their order."""
        looks = {LOOK: self._look} if self._pictures else {}
        foretells = {FORETELL: self._foretell} if self._foretold else {}
        return {
            Stage.ENCODE: self._encode,
            **looks,
            Stage.PREDICT: self._predict,
            **foretells,
            Stage.DECODE: self._decode,
            FILE: self._file,
        }

    def times(self, name: str) -> int:
        """How often a picture goes through the stage."""
        return {Stage.PREDICT: self._made, FORETELL: self._foretold}.get(name, 1)

    def flop_of(self, name: str) -> int:
        """The operations of a stage, computed plainly: kernels of a compiler's own are not counted."""
        if name == Stage.PREDICT:
            return flops.of_step(self._checkpoint, self.drawn, self._beside)
        if name == FILE:
            return 0
        with ExitStack() as plainly:
            for switch in self._network.switches:
                plainly.enter_context(switch.off())
            return flops.counted(self.stages[name])

    def _encode(self) -> Conditioning:
        with self._network.using(Stage.ENCODE, USUAL):
            return self._network.encode(_PROMPT)

    def _look(self) -> Inputs:
        return self._network.look(self._generation, self._pictures, self.drawn, USUAL)

    def _predict(self) -> Tensor:
        with self._network.using(Stage.PREDICT, USUAL):
            if self._cache != "first-block":
                return self._pass()
            with first_block.whole(self._network.transformer) as self._rest:
                return self._pass()

    def _foretell(self) -> Tensor:
        added = self._rest.added
        if added is None:  # of `taylor` no pass leaves anything
            return step_cache.foretold(self._velocities, 0.8)
        with self._network.using(Stage.PREDICT, USUAL), first_block.short(self._network.transformer, added):
            return self._pass()

    def _pass(self) -> Tensor:
        rows = [self._row] * self._checkpoint.rows_per_picture
        return forward.predict(self._network, [rows], self.drawn, ALONE)[0][0]

    def _decode(self) -> Pixels:
        with self._network.using(Stage.DECODE, USUAL):
            return self._network.decode(self._row.latents, self.drawn)

    def _file(self) -> bytes:
        fitted = pixels_of.fit(self._picture, self._generation.size)
        mark = mark_of(self._generation, self._checkpoint.name, tells_prompt=False)
        return pixels_of.encode(fitted, self._generation.output_format, mark)


def _generation(wish: Wish) -> Generation:
    names = [f"input_image_{number}" for number in range(wish.references)]
    return Generation(
        model="", prompt=_PROMPT, size=wish.size, seed=0, steps=wish.steps, guidance=3.5, output_format="jpeg",
        recipe=Edit(), pictures=tuple(InputPicture(name=name, size=wish.size, sha256="") for name in names),
    )  # fmt: skip


def _gradient(size: Size) -> Pixels:
    count = 3 * size.area
    return Pixels(size=size, data=(bytes(range(256)) * (count // 256 + 1))[:count])
