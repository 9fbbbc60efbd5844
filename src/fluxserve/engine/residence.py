"""Where the parts of a checkpoint are and in which numbers they compute, while one stage uses them.

Parts that a stage does not need can be moved off the device: they come back when they are needed, bit by bit the
same. In float32 a part computes with exactly the weights it has, and gets back exactly those.
What it does not know: pictures, and what made this necessary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fluxserve.engine.means import Means, Stage
from fluxserve.engine.recovery import is_out_of_memory, release_memory

if TYPE_CHECKING:
    import torch

    from fluxserve.engine.weights import Parts

#: Pixels of a tile, one way: small enough to save memory, large enough that a decoder sees what it decodes.
TILE = 512
_STAGES = {
    Stage.ENCODE: ("text_encoder", "text_encoder_2"),
    Stage.PREDICT: ("transformer",),
    Stage.DECODE: ("vae",),
}


@contextlib.contextmanager
def using(parts: Parts, stage: Stage, means: Means) -> Iterator[None]:
    """Inside, the parts of `stage` are on the device, and compute by these means."""
    modules = [_at_hand(parts, name) for name in _STAGES[stage]]
    with contextlib.ExitStack() as stack:
        if means.exact:
            for module in modules:
                stack.enter_context(_in_float32(module))
        if means.tiled and stage is Stage.DECODE:
            stack.enter_context(_in_tiles(parts))
        yield


def make_room(parts: Parts, stage: Stage) -> bool:
    """Move what `stage` does not need to the machine's own memory; False where there is nothing to move."""
    names = [name for other, names in _STAGES.items() if other is not stage for name in names]
    here = [name for name in names if name not in parts.away]
    if parts.device.type != "cuda" or not here:
        return False
    try:
        for name in here:
            parts.away.add(name)  # first: where moving stops halfway, all of it comes back
            _move(_module(parts, name), "cpu")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    release_memory()
    return True


def _at_hand(parts: Parts, name: str) -> torch.nn.Module:
    module = _module(parts, name)
    if name in parts.away:
        _move(module, parts.device)
        parts.away.discard(name)
    return module


def _module(parts: Parts, name: str) -> torch.nn.Module:
    module: torch.nn.Module = getattr(parts, name)
    return module


def _move(module: torch.nn.Module, device: torch.device | str) -> None:
    for tensor in _tensors(module):
        tensor.data = tensor.data.to(device)


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


@contextlib.contextmanager
def _in_tiles(parts: Parts) -> Iterator[None]:
    vae = parts.vae
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // parts.vae_factor
    vae.use_tiling = True
    try:
        yield
    finally:
        vae.use_tiling = False
