"""Where and how the networks run: device, number format, threads, and how much steps together.

What it does not know: checkpoints, pictures.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fluxserve.errors import ConfigurationError
from fluxserve.settings import Settings

if TYPE_CHECKING:
    import torch

#: Weights up to this many bytes are a tiny network: more threads than one only slow it down.
TINY_WEIGHTS = 256 * 2**20
#: Image tokens that step together: what fills a core, and what fills a large GPU with a 12B network.
_BUDGETS = {"cpu": 512}
_GPU_BUDGET = 4608


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings with every `auto` resolved on this machine."""

    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: int
    token_budget: int

    @property
    def torch_device(self) -> torch.device:
        """As torch names it."""
        import torch

        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch names it."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


def resolve(settings: Settings, weight_bytes: int) -> Runtime:
    """What the settings mean here, for networks of `weight_bytes` in all. Raises ConfigurationError."""
    device = _device() if settings.device == "auto" else settings.device
    if not _is_there(device):
        raise ConfigurationError(f"device = {device}: torch finds no such device here. Use auto or cpu.")
    on_cpu = device == "cpu"
    auto_dtype: Literal["float32", "bfloat16"] = "float32" if on_cpu else "bfloat16"
    return Runtime(
        device=device,
        dtype=auto_dtype if settings.dtype == "auto" else settings.dtype,
        threads=settings.threads or (1 if weight_bytes <= TINY_WEIGHTS else _cores()),
        token_budget=settings.token_budget or _BUDGETS.get(device, _GPU_BUDGET),
    )


def apply(runtime: Runtime) -> None:
    """Make torch run this way in the whole process, with repeatable kernels."""
    import torch

    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def release_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc).

    Each size of picture leaves holes of other lengths: after 29 sizes decoded on a CPU a process held 1.0 GB without
    this and 0.56 GB with it. Takes some milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(device: str) -> bool:
    import torch

    kind, _, index = device.partition(":")
    if kind == "cuda":
        return int(index or 0) < torch.cuda.device_count()
    return kind == "cpu" or torch.backends.mps.is_available()


def _cores() -> int:
    """Cores this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
