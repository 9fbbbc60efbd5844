"""Where the parts of a checkpoint are and in which numbers they compute, while one stage uses them.

Parts that a stage does not need can be moved off the device: they come back when they are needed, bit by bit the
same. In float32 a part computes with exactly the weights it has, and gets back exactly those.
What it does not know: pictures, and what made this necessary.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fluxserve.engine.means import Means, Stage
from fluxserve.engine.recovery import is_out_of_memory, release_memory

if TYPE_CHECKING:
    import torch

    from fluxserve.engine.weights import Parts

#: Pixels of a tile, one way: small enough to save memory, large enough that a decoder sees what it decodes.
TILE = 512


class Residence:
    """The parts of one checkpoint. Stages may run beside each other; one stage at a time uses its own parts."""

    def __init__(self, parts: Parts, vae_factor: int) -> None:
        self._parts = parts
        self._vae_factor = vae_factor
        #: Whoever is alone has them all and then uses his own.
        self._in_use = {stage: threading.RLock() for stage in Stage}
        self._away: set[Stage] = set()

    @contextlib.contextmanager
    def using(self, stage: Stage, means: Means) -> Iterator[None]:
        """Inside, the parts of `stage` are on the device, and compute by these means."""
        with self._in_use[stage], contextlib.ExitStack() as stack:
            if stage in self._away:
                self._move(stage, self._parts.device)
                self._away.discard(stage)
            if means.exact:
                for module in self._modules(stage):
                    stack.enter_context(_in_float32(module))
            if means.tiled and stage is Stage.DECODE:
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
        with contextlib.ExitStack() as stack:
            for lock in self._in_use.values():  # always in this order, so that no two wait for each other
                stack.enter_context(lock)
            for other in Stage:
                if other is not stage:
                    self._send_away(other)
            release_memory()
            yield

    def _send_away(self, stage: Stage) -> None:
        """As much of it as the machine has room for. One that could not come back whole is not all away either."""
        self._away.add(stage)  # first: where moving stops halfway, all of it comes back
        try:
            self._move(stage, "cpu")
        except Exception as error:
            if not is_out_of_memory(error):
                raise

    def _move(self, stage: Stage, device: torch.device | str) -> None:
        for module in self._modules(stage):
            for tensor in _tensors(module):
                tensor.data = tensor.data.to(device)

    def _modules(self, stage: Stage) -> Sequence[torch.nn.Module]:
        parts = self._parts
        return {
            Stage.ENCODE: (
                parts.text_encoder,
                parts.text_encoder_2,
                *(() if parts.redux is None else parts.redux.modules),
                *(() if parts.depth is None else (parts.depth.network,)),
            ),
            Stage.PREDICT: (parts.transformer,),
            Stage.DECODE: (parts.vae,),
        }[stage]

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


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@contextlib.contextmanager
def _in_float32(module: torch.nn.Module) -> Iterator[None]:
    """The tensors it had are kept meanwhile, so that giving them back cannot fail."""
    own = [(tensor, tensor.data) for tensor in _tensors(module) if tensor.is_floating_point()]
    try:
        for tensor, data in own:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in own:
            tensor.data = data
