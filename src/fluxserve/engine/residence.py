"""Where the parts of a checkpoint are and in which numbers they compute, while one stage uses them.

The plan of the parts says which of them are at home in the machine's memory, and which stages take turns. Others that
a stage does not need can be moved off the device too. They come back when they are needed, bit by bit the same. In
float32 a part computes with exactly the weights it has, and gets back exactly those.
What it does not know: pictures, and what made this necessary.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from fluxserve.engine.means import Means, Stage
from fluxserve.engine.moving import Homes, tensors_of, waiting
from fluxserve.engine.needs import TILE
from fluxserve.engine.recovery import is_out_of_memory, release_memory

if TYPE_CHECKING:
    from torch import Tensor

    from fluxserve.engine.weights import Parts


class Residence:
    """The parts of one checkpoint. Stages may run beside each other; one stage at a time uses its own parts."""

    def __init__(self, parts: Parts, vae_factor: int) -> None:
        self._parts = parts
        self._plan = parts.plan
        self._vae_factor = vae_factor
        #: Whoever is alone has them all and then uses his own.
        self._in_use = {stage: threading.RLock() for stage in Stage}
        self._homes = {
            stage: Homes(parts.networks_of(stage), parts.device, streamed=stage in self._plan.streamed)
            for stage in self._plan.at_home
        }
        self._away: set[Stage] = set(self._homes)

    @contextlib.contextmanager
    def using(self, stage: Stage, means: Means) -> Iterator[None]:
        """Inside, the parts of `stage` are on the device, and compute by these means."""
        with contextlib.ExitStack() as stack:
            for one in Stage if self._plan.takes_turns else (stage,):  # always in this order: see `alone`
                stack.enter_context(self._in_use[one])
            for other in self._plan.keeps_out(stage) - self._away:
                self._send_away(other)
            if stage in self._away:
                self._bring(stage)
                self._away.discard(stage)
            stack.enter_context(self._computing(stage, means))
            yield

    @contextlib.contextmanager
    def _computing(self, stage: Stage, means: Means) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if stage in self._homes:
                stack.enter_context(self._homes[stage].at_work(exact=means.exact))
            if means.exact:
                stack.enter_context(_in_float32(list(self._tensors(stage))))
            if (means.tiled or self._plan.tiled) and stage is Stage.DECODE:
                stack.enter_context(self._in_tiles())
            yield

    @property
    def is_movable(self) -> bool:
        """Whether parts can be taken off the device: there is another memory than its own."""
        return self._parts.device.type == "cuda"

    @contextlib.contextmanager
    def alone(self, stage: Stage) -> Iterator[None]:
        """Inside, no other stage is at work, and what only those need is in the machine's own memory.

        Waits for those that are: a step, a picture, a prompt. They come back when they are needed next.
        """
        with self._all_in_use():
            for other in Stage:
                if other is not stage:
                    self._send_away(other)
            release_memory()
            yield

    def leave(self) -> None:
        """All off the device, into the machine's memory; waits for whoever is at work. Raises what torch does."""
        with self._all_in_use():
            for stage in Stage:
                self._away.add(stage)
                if stage in self._homes:
                    self._homes[stage].give_up()
                else:
                    self._move(stage, waiting)

    def come(self) -> None:
        """Back to the device, but for what is brought when it is needed."""
        with self._all_in_use():
            for stage in self._away - self._homes.keys():
                self._bring(stage)
                self._away.discard(stage)

    @contextlib.contextmanager
    def _all_in_use(self) -> Iterator[None]:
        """Inside, nobody else uses any part."""
        with contextlib.ExitStack() as stack:
            for lock in self._in_use.values():  # always in this order, so that no two wait for each other
                stack.enter_context(lock)
            yield

    def _send_away(self, stage: Stage) -> None:
        """As much of it as the machine has room for. One that could not come back whole is not all away either."""
        self._away.add(stage)  # first: where moving stops halfway, all of it comes back
        if stage in self._homes:
            self._homes[stage].give_up()
            return
        try:
            self._move(stage, lambda tensor: tensor.to("cpu"))
        except Exception as error:
            if not is_out_of_memory(error):
                raise

    def _bring(self, stage: Stage) -> None:
        if stage in self._homes:
            self._homes[stage].bring()
        else:
            self._move(stage, lambda tensor: tensor.to(self._parts.device))

    def _move(self, stage: Stage, moved: Callable[[Tensor], Tensor]) -> None:
        for tensor in self._tensors(stage):
            tensor.data = moved(tensor.data)

    def _tensors(self, stage: Stage) -> Iterator[Tensor]:
        """Those of its parts, but of blocks that are brought as they are needed."""
        if stage in self._homes:
            yield from self._homes[stage].tensors
        else:
            for module in self._parts.networks_of(stage):
                yield from tensors_of(module)

    @contextlib.contextmanager
    def _in_tiles(self) -> Iterator[None]:
        vae = self._parts.vae
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // self._vae_factor
        if hasattr(vae, "spatial_scale_factor"):  # AutoencoderTiny's own is right only for eight pixels to a latent
            vae.spatial_scale_factor = self._vae_factor
        vae.use_tiling = True
        try:
            yield
        finally:
            vae.use_tiling = False


@contextlib.contextmanager
def _in_float32(tensors: Sequence[Tensor]) -> Iterator[None]:
    """The tensors it had are kept meanwhile, so that giving them back cannot fail."""
    own = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point()]
    try:
        for tensor, data in own:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in own:
            tensor.data = data
