"""Warming: what was chosen for speed is tried at the start, and left out where it fails or comes out otherwise.

Every shape that gets kernels or a record of its own gets them here, and so do the kernels for any other size: no size
that is asked for later has to wait for a compiler. Each common size is held against the same pass made plainly, and
where the decoder is compiled, against the same picture decoded plainly.
What it does not know: how anything is made faster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from fluxserve.catalogue import Size
from fluxserve.engine import forward
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint, common_sizes, drawn_size
from fluxserve.engine.device import Runtime
from fluxserve.engine.faster.switch import Learning, Switch
from fluxserve.engine.forward import Company
from fluxserve.engine.means import USUAL, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.recovery import release_memory
from fluxserve.errors import DrawingFailed

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
#: A size whose numbers of tokens differ from those of common sizes, and from each other.
_UNCOMMON = Size(864, 608)
#: How far, of its length, a velocity may be from the plain one: rounding in float32 and in 16 bits, and what is lost
#: where tokens are in 8 bits.
_NEAR, _NEAR_IN_16_BITS, _NEAR_IN_8_BITS = 1e-3, 0.1, 0.3
#: How far a decoded picture may be from the plainly decoded one, root mean square, of 255.
_NEAR_PIXELS, _NEAR_PIXELS_IN_16_BITS = 1.0, 8.0


def warm(checkpoint: Checkpoint, network: Network, runtime: Runtime) -> Runtime:
    """The runtime with the speed that this device has shown; its numerics and cache are as they were."""
    runtime = _without_idle(network, runtime)
    speed = runtime.speed
    if speed == speed.plainly:
        return runtime
    tolerance = _NEAR_IN_8_BITS if speed.float8 else _NEAR if runtime.dtype == "float32" else _NEAR_IN_16_BITS
    began = time.monotonic()
    try:
        far = _farthest(checkpoint, network, tolerance)
        if speed.compiled and far <= tolerance:
            _decode_all(checkpoint, network, _NEAR_PIXELS if runtime.dtype == "float32" else _NEAR_PIXELS_IN_16_BITS)
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


def _without_idle(network: Network, runtime: Runtime) -> Runtime:
    """Products in 8 bits are left out where no layer has the widths for them: nothing is to be told that is not so."""
    from fluxserve.engine.faster import eighths

    if not runtime.speed.float8 or eighths.has_any(network.transformer):
        return runtime
    logger.warning("No layer of these weights multiplies in 8 bits", extra={"action": "speed_failed"})
    return replace(runtime, speed=replace(runtime.speed, float8=False))


def warm_company(
    checkpoint: Checkpoint, network: Network, company: Mapping[Size, Company], runtime: Runtime
) -> Set[Size]:
    """Passes of every number of pictures that share one, where passes are recorded or compiled; sizes where one fails.

    What was found of company at an earlier start was found by passes of an earlier process.
    """
    if not runtime.speed.makes_passes:
        return frozenset()
    with _learning(network.switches, Learning.COMPANY):
        return {size for size, allowed in company.items() if not _holds(checkpoint, network, size, allowed)}


def _holds(checkpoint: Checkpoint, network: Network, size: Size, company: Company) -> bool:
    try:
        picture = forward.random_picture(network, size, 0, checkpoint.rows_per_picture)
        for count in range(2, company.most + 1):
            forward.predict_usually(network, [picture] * count, size, company)
    except Exception:
        logger.exception(
            "Pictures of %s fail in company, and are drawn alone", size, extra={"action": "company_failed"}
        )
    else:
        return True
    release_memory()  # not before the error is gone, and what its frames held
    return False


def _farthest(checkpoint: Checkpoint, network: Network, tolerance: float) -> float:
    """Pass each common size, and one of another; the largest distance from the plain velocity.

    Nothing more is tried after one that is too large.
    """
    far = 0.0
    for what, size in _tried(checkpoint):
        with _learning(network.switches, what):
            far = max(far, _distance(checkpoint, network, size))
        if far > tolerance:
            break
    return far


def _decode_all(checkpoint: Checkpoint, network: Network, tolerance: float) -> None:
    """Decode each of them; raises DrawingFailed where a picture is too far from the plainly decoded one."""
    decoder = network.switches[-1]
    for what, size in _tried(checkpoint):
        noise = network.noise(0, size)
        with network.using(Stage.DECODE, USUAL), _learning(network.switches, what):
            usual = network.decode(noise, size)
            with decoder.off():
                plain = network.decode(noise, size)
        if (far := _apart(usual, plain)) > tolerance:
            raise DrawingFailed(f"The compiled decoder draws {size} {far:.1f} of 255 from the plain one.")


def _tried(checkpoint: Checkpoint) -> Sequence[tuple[Learning, Size]]:
    common = [(Learning.ALONE, size) for size in common_sizes(checkpoint)]
    return (*common, (Learning.NOTHING, drawn_size(checkpoint, _UNCOMMON)))


def _apart(one: Pixels, other: Pixels) -> float:
    """The root mean square of what two pictures of one size differ by, of 255."""
    import torch

    first, second = (torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).float() for pixels in (one, other))
    return float((first - second).square().mean().sqrt())


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
