"""Passes of a transformer's first block only, with what all the others added in the last whole pass.

The first block sees the latents and the noise level as they are now; the others' part changes slowly from step to step.
What it does not know: which steps are passed so (`step_cache`), pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fluxserve.engine.step_cache import Rest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_DOUBLE, _SINGLE = "transformer_blocks", "single_transformer_blocks"


@contextmanager
def whole(transformer: Module) -> Iterator[Rest]:
    """Inside, one pass is made; what is yielded then holds what its later blocks added to its pictures' tokens."""
    rest, after_first = Rest(), []

    def keep(_: Module, __: object, output: tuple[Tensor, Tensor]) -> None:
        after_first.append(output[1])

    def subtract(_: Module, inputs: tuple[Tensor, ...]) -> None:
        rest.added = inputs[0] - after_first.pop()

    hooks = (
        _blocks(transformer)[0].register_forward_hook(keep),
        transformer.norm_out.register_forward_pre_hook(subtract),  # type: ignore[union-attr]
    )
    try:
        yield rest
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def short(transformer: Module, added: Tensor) -> Iterator[None]:
    """Inside, passes end after the first block, and get this (rows, tokens, width); rows that only fill up get any."""
    from torch.nn import ModuleList

    def add(_: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        import torch

        missing = inputs[0].shape[0] - added.shape[0]
        rows = torch.cat([added, added[:1].expand(missing, -1, -1)]) if missing else added
        return inputs[0] + rows, *inputs[1:]

    own = {name: transformer._modules[name] for name in (_DOUBLE, _SINGLE)}
    hook = transformer.norm_out.register_forward_pre_hook(add)  # type: ignore[union-attr]
    transformer._modules.update({_DOUBLE: ModuleList(_blocks(transformer)[:1]), _SINGLE: ModuleList()})
    try:
        yield
    finally:
        transformer._modules.update(own)
        hook.remove()


def _blocks(transformer: Module) -> list[Module]:
    return list(getattr(transformer, _DOUBLE))
