"""What a device can do at most, measured: bytes a second in a large copy, operations a second in a large product.

No stage of a picture can be faster than its operations at the second rate, which is the floor that it is compared with.
What it does not know: networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fluxserve.engine import device
from fluxserve.engine.device import Runtime

if TYPE_CHECKING:
    from torch import Tensor

#: Elements of the copy; sides of the product. Large enough that caches hold neither and every core or unit has work.
_CPU_COPY, _GPU_COPY = 2**25, 2**29
_CPU_SIDE, _GPU_SIDE = 2048, 8192
#: Products in a row where one takes less than a clock can see.
_GPU_PRODUCTS = 8


def seconds_of(runtime: Runtime, act: Callable[[], object]) -> float:
    """How long it takes until the device has done it."""
    device.finish(runtime)
    began = time.perf_counter()
    act()
    device.finish(runtime)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Tensors to be copied and multiplied on a device, in the numbers it draws with."""

    runtime: Runtime
    source: Tensor
    target: Tensor
    factors: tuple[Tensor, Tensor]
    products: int

    @classmethod
    def on(cls, runtime: Runtime) -> Ceilings:
        """Made and used once."""
        import torch

        is_large = runtime.kind != "cpu"
        place, dtype = runtime.torch_device, runtime.torch_dtype
        source = torch.randn(_GPU_COPY if is_large else _CPU_COPY, device=place, dtype=dtype)
        side = _GPU_SIDE if is_large else _CPU_SIDE
        one, other = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(2))
        ceilings = cls(
            runtime=runtime,
            source=source,
            target=torch.empty_like(source),
            factors=(one, other),
            products=_GPU_PRODUCTS if is_large else 1,
        )
        ceilings.copy_rate()
        ceilings.product_rate()
        return ceilings

    def copy_rate(self) -> float:
        """Bytes a second, read and written."""
        return 2 * self.source.nbytes / seconds_of(self.runtime, lambda: self.target.copy_(self.source))

    def product_rate(self) -> float:
        """Operations a second."""
        one, other = self.factors

        def multiply() -> None:
            for _ in range(self.products):
                one @ other

        side: int = one.shape[0]
        return float(2 * side**3 * self.products / seconds_of(self.runtime, multiply))
