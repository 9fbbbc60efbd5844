"""What makes a transformer and a decoder faster, each in a file: what is done follows from `speed` alone.

All of it is attached to the networks as their layers' own `forward`, as `apart` and `lora` do, and holds no copy of a
weight: weights may be moved or exchanged at any time. A pass that is not as usual (a fine-tune's, one in float32)
leaves out what was not made for it: see `Switch`.
What it does not know: checkpoints, pictures, steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.speed import Speed

if TYPE_CHECKING:
    from torch.nn import Module

_SWITCH = "faster"


def prepare(transformer: Module, speed: Speed) -> Switch:
    """Attach to a FLUX transformer what `speed` says; its rows are kept apart, and Python's own work is cut short."""
    from fluxserve.engine.apart import keep_apart
    from fluxserve.engine.faster.attention import attend
    from fluxserve.engine.faster.compiled import compile_blocks
    from fluxserve.engine.faster.fused import fuse
    from fluxserve.engine.faster.graphs import record_passes
    from fluxserve.engine.networks.shortcuts import take_shortcuts

    switch = Switch()
    setattr(transformer, _SWITCH, switch)
    if speed.fused:
        fuse(transformer)
    keep_apart(transformer, switch, speed)
    if speed.fused or speed.attention != "torch":
        attend(transformer, switch, speed.attention)
    take_shortcuts(transformer)
    if speed.compiled:
        compile_blocks(transformer, switch, speed)
    if speed.graphs:
        record_passes(transformer, switch)
    return switch


def prepare_decoder(vae: Module, speed: Speed) -> Switch:
    """The same for an autoencoder's decoder; tiny ones (`linear_tail`) are left as they are."""
    from fluxserve.engine.faster.compiled import compile_decoder
    from fluxserve.engine.faster.decoder import lay_channels_last

    switch = Switch()
    setattr(vae, _SWITCH, switch)
    if speed.channels_last:
        lay_channels_last(vae)
    if speed.compiled:
        compile_decoder(vae, switch, speed)
    return switch


def switch_of(network: Module) -> Switch:
    """Of a transformer or an autoencoder that was prepared."""
    switch: Switch = getattr(network, _SWITCH)
    return switch


@contextmanager
def plainly(network: Module, *, when: bool) -> Iterator[None]:
    """Inside, a pass is made without what is made for usual ones; one thread at a time."""
    if not when:
        yield
        return
    with switch_of(network).off():
        yield
