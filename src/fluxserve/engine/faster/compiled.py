"""Blocks and decoders compiled by torch: shapes that are warmed each on their own, all others at once for any size.

A transformer repeats two kinds of blocks, so each kind is compiled once and not each block. Which shapes are compiled
on their own is learnt at the start (`Switch.learning`), so that the kernels of a picture follow from its size alone,
and a size that was never seen needs no compiling. The compiler measures nothing: no kernel is chosen by its speed.
What it does not know: which sizes are warmed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxserve.engine.faster.switch import Learning, Switch
from fluxserve.engine.speed import USUAL_BACKEND, Speed

if TYPE_CHECKING:
    from torch.nn import Module

#: Kernels that torch may keep of one function: for each kind of block, number of rows and warmed shape.
_MOST_KERNELS = 512
#: Of the compiler: nothing is timed, and what is computed of a row does not depend on how many there are.
_EXACT = ("deterministic", "batch_invariant")


def compile_blocks(transformer: Module, switch: Switch, speed: Speed) -> None:
    """From now on the blocks of the transformer are compiled as they are met."""
    pair = Pair(switch, speed)
    for lists in ("transformer_blocks", "single_transformer_blocks"):
        for block in getattr(transformer, lists):
            setattr(block, "forward", partial(pair, block))  # noqa: B010 - a module's own forward comes first


def compile_decoder(vae: Module, switch: Switch, speed: Speed) -> None:
    """From now on the decoder of the autoencoder is compiled."""
    decoder: Module = vae.decoder  # type: ignore[assignment]
    pair = Pair(switch, speed)
    setattr(decoder, "forward", partial(pair, decoder))  # noqa: B010 - a module's own forward comes first


class Pair:
    """Modules' forward compiled twice: for each shape that was learnt on its own, and for all others at once."""

    def __init__(self, switch: Switch, speed: Speed) -> None:
        torch._dynamo.config.recompile_limit = _MOST_KERNELS
        torch._dynamo.config.accumulated_recompile_limit = 4 * _MOST_KERNELS
        # Else numbers that are equal by chance when first met (of tokens, and a width) are one number ever after.
        torch.fx.experimental._config.use_duck_shape = False
        options = _options(speed)
        self._own = torch.compile(_own, fullgraph=True, dynamic=False, backend=speed.backend, options=options)
        self._any = torch.compile(_any, fullgraph=True, dynamic=True, backend=speed.backend, options=options)
        self._switch = switch
        self._known: set[Hashable] = set()
        self._dtypes: set[torch.dtype] = set()

    def __call__(self, module: Module, *args: Any, **kwargs: Any) -> Any:
        """What the module's own forward answers. In numbers that were never learnt (float32) it is not compiled."""
        forward = type(module).forward
        if not self._switch.on:
            return forward(module, *args, **kwargs)
        tensors = [*_tensors((*args, *kwargs.values()))]
        shapes = (type(module), *(tuple(one.shape) for one in tensors))
        if self._switch.learns is Learning.ALONE:
            self._known.add(shapes)
            self._dtypes.add(tensors[0].dtype)
        if tensors[0].dtype not in self._dtypes:
            return forward(module, *args, **kwargs)
        return (self._own if shapes in self._known else self._any)(forward, module, *args, **kwargs)


def _tensors(values: tuple[object, ...]) -> Iterator[Tensor]:
    return (value for value in values if isinstance(value, Tensor))


def _options(speed: Speed) -> dict[str, str | int | bool | Callable[..., Any]] | None:
    """None for other backends, and what this release of torch knows of them for its own."""
    if speed.backend != USUAL_BACKEND:
        return None
    from torch._inductor import config

    wanted = _EXACT[:1] if speed.throughput else _EXACT
    return {name: True for name in wanted if hasattr(config, name)}


# torch keeps kernels by the function they are of, so each of a pair is a function of its own.


def _own(forward: Callable[..., Any], module: Module, *args: Any, **kwargs: Any) -> Any:
    return forward(module, *args, **kwargs)


def _any(forward: Callable[..., Any], module: Module, *args: Any, **kwargs: Any) -> Any:
    return forward(module, *args, **kwargs)
