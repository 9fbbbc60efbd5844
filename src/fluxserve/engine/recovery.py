"""What becomes of an error while a picture is drawn: an outcome of that picture, and an engine that goes on.

What it does not know: networks, what is tried next.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TypeVar

from fluxserve.engine import device
from fluxserve.engine.base import Failed
from fluxserve.errors import DrawingFailed, EngineError, OutOfMemory

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
#: torch has no class of its own for these: its CPU allocator, Apple's, cuBLAS and oneDNN that cannot allocate.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a primitive",
)


def attempt(ref: str, act: Callable[[], _T]) -> _T | Failed:
    """What `act` returns, or how it failed. A device that stopped working is not a failure of one picture: raised."""
    try:
        return act()
    except EngineError as error:
        failed = error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this one picture's, and the log has it
        failed = _translated(ref, error)
    # Not before: an error holds the frames it came through, and these hold tensors.
    if isinstance(failed, OutOfMemory):
        release_memory()
    return Failed(ref=ref, error=failed)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the device or on this machine."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back what nothing holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    device.release_memory()


def _translated(ref: str, error: Exception) -> EngineError:
    import torch

    if is_out_of_memory(error):
        return OutOfMemory("The device ran out of memory.")
    if isinstance(error, torch.AcceleratorError):
        raise error
    logger.error("Drawing failed", extra={"action": "drawing_failed", "ref": ref}, exc_info=error)
    return DrawingFailed("The engine could not draw this picture.")
