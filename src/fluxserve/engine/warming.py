"""Warming: what was chosen for speed is tried at the start, and left out where it fails or comes out otherwise.

Every shape that gets kernels or a record of its own gets them here, and so do the kernels for any other size: no size
that is asked for later has to wait for a compiler. Each common size is held against the same pass made plainly.
What it does not know: how anything is made faster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fluxserve.catalogue import Size
from fluxserve.engine import forward
from fluxserve.engine.checkpoints import Checkpoint, common_sizes, drawn_size
from fluxserve.engine.device import Runtime
from fluxserve.engine.faster.switch import Learning, Switch
from fluxserve.engine.forward import Company
from fluxserve.engine.means import USUAL, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.recovery import release_memory

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
#: A size whose numbers of tokens differ from those of common sizes, and from each other.
_UNCOMMON = Size(864, 608)
#: How far, of its length, a velocity may be from the plain one: rounding in float32 and in 16 bits, and what is lost
#: where tokens are in 8 bits.
_NEAR, _NEAR_IN_16_BITS, _NEAR_IN_8_BITS = 1e-3, 0.1, 0.3


def warm(checkpoint: Checkpoint, network: Network, runtime: Runtime) -> Runtime:
    """The runtime with the speed that this device has shown; its numerics and cache are as they were."""
    speed = runtime.speed
    if speed == speed.plainly:
        return runtime
    tolerance = _NEAR_IN_8_BITS if speed.float8 else _NEAR if runtime.dtype == "float32" else _NEAR_IN_16_BITS
    began = time.monotonic()
    try:
        far = _farthest(checkpoint, network, tolerance, decodes=speed.compiled)
    except Exception:
        logger.exception("What was chosen for speed fails here", extra={"action": "speed_failed"})
        far = None
    holds = far is not None and far <= tolerance
    if not holds:
        for switch in network.switches:
            switch.on = False
        release_memory()
    logger.log(
        logging.INFO if holds else logging.WARNING,
        "Warmed: %s" if holds else "Drawn plainly, without %s",
        ", ".join(speed.words),
        extra={"action": "warmed", "seconds": round(time.monotonic() - began, 1), "off_by": far},
    )
    return runtime if holds else replace(runtime, speed=speed.plainly)


def warm_company(checkpoint: Checkpoint, network: Network, company: Mapping[Size, Company], runtime: Runtime) -> None:
    """Passes of every number of pictures that share one, where passes are recorded or compiled.

    What was found of company at an earlier start was found by passes of an earlier process.
    """
    if not (runtime.speed.graphs or runtime.speed.compiled):
        return
    with _learning(network.switches, Learning.COMPANY):
        for size, allowed in company.items():
            picture = forward.random_picture(network, size, 0, checkpoint.rows_per_picture)
            for count in range(2, allowed.most + 1):
                forward.predict_usually(network, [picture] * count, size, allowed)


def _farthest(checkpoint: Checkpoint, network: Network, tolerance: float, *, decodes: bool) -> float:
    """Pass, and perhaps decode, each common size, and one of another; the largest distance from the plain velocity.

    Nothing more is tried after one that is too large.
    """
    far = 0.0
    uncommon = drawn_size(checkpoint, _UNCOMMON)
    for what, size in (*((Learning.ALONE, one) for one in common_sizes(checkpoint)), (Learning.NOTHING, uncommon)):
        with _learning(network.switches, what):
            far = max(far, _distance(checkpoint, network, size))
            if far > tolerance:
                break
            if decodes:
                with network.using(Stage.DECODE, USUAL):
                    network.decode(network.noise(0, size), size)
    return far


def _distance(checkpoint: Checkpoint, network: Network, size: Size) -> float:
    """Of the usual pass from the plain one, in lengths of that."""
    rows = forward.random_picture(network, size, 1, checkpoint.rows_per_picture)
    usual = _velocity(network, rows, size)
    with network.switches[0].off():
        plain = _velocity(network, rows, size)
    distance = float((usual - plain).norm() / plain.norm())
    return distance if distance == distance else float("inf")  # no number is nowhere near


def _velocity(network: Network, rows: forward.Rows, size: Size) -> Tensor:
    return forward.predict_usually(network, [rows], size, forward.ALONE)[0][0]


@contextmanager
def _learning(switches: Sequence[Switch], what: Learning) -> Iterator[None]:
    with ExitStack() as stack:
        for switch in switches:
            stack.enter_context(switch.learning(what))
        yield
