"""What becomes of an error while a picture is drawn: an outcome of that picture, and an engine that goes on.

On a CPU the kernels of oneDNN are made when a shape first needs them. A thread that once had no memory to make one
makes none ever after, however much memory there is: what was made before works, all else fails. So from then on
attempts are made in a spare thread, so that what ran out of memory can be ended, and whoever keeps the process
replaces it. The spare one is started while there is memory for its stack.
What it does not know: networks, what is tried next.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fluxserve.engine import device
from fluxserve.engine.base import Failed
from fluxserve.engine.device import Runtime
from fluxserve.errors import DrawingFailed, EngineError, OutOfMemory

logger = logging.getLogger(__name__)
_T = TypeVar("_T")
#: What oneDNN says when it cannot make a kernel.
_NO_KERNEL = "could not create a primitive"
#: torch has no class of its own for these: its CPU allocator, Apple's, cuBLAS and oneDNN that cannot allocate.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    _NO_KERNEL,
)


class Recovery:
    """Attempts what may fail for some pictures and must not end the others."""

    def __init__(self, runtime: Runtime) -> None:
        self._surroundings = device.surroundings(runtime)
        self._spare = ThreadPoolExecutor(
            1, thread_name_prefix="fluxserve-spare", initializer=device.apply, initargs=(runtime,)
        )
        self._spare.submit(threading.get_ident).result()
        self._spent_on: set[str] = set()
        #: Attempts are made in the lanes too.
        self._lock = threading.Lock()

    @property
    def spent_on(self) -> frozenset[str]:
        """Refs for which a thread of this process could make no kernel; empty: all its threads are sound."""
        with self._lock:
            return frozenset(self._spent_on)

    def attempt(self, act: Callable[[], _T], ref: str, *beside: str) -> _T | Failed:
        """What `act` returns for `ref` and those `beside` it, or how it failed.

        A device that stopped working is not a failure of one picture: raised.
        """
        try:
            return self._spare.submit(self._surrounded, act).result() if self.spent_on else act()
        except EngineError as error:
            failed = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this one picture's, and the log has it
            failed = _translated(ref, error)
            if isinstance(error, RuntimeError) and _NO_KERNEL in str(error):
                with self._lock:
                    self._spent_on |= {ref, *beside}
        # Not before: an error holds the frames it came through, and these hold tensors.
        if isinstance(failed, OutOfMemory):
            release_memory()
        return Failed(ref=ref, error=failed)

    def with_room(self, act: Callable[[], _T], ref: str, alone: Callable[[Callable[[], _T]], _T] | None) -> _T | Failed:
        """As `attempt`; where memory runs out, again with the device for itself, if there is a way (`alone`).

        Whatever else was at work may have taken it.
        """
        outcome = self.attempt(act, ref)
        if isinstance(outcome, Failed) and isinstance(outcome.error, OutOfMemory) and alone is not None:
            return self.attempt(lambda: alone(act), ref)
        return outcome

    def _surrounded(self, act: Callable[[], _T]) -> _T:
        with self._surroundings():
            return act()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the device or on this machine."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def unless_out_of_memory(act: Callable[[], _T]) -> _T | None:
    """What `act` returns; None where memory ran out for it, which is then given back."""
    try:
        return act()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Not before: an error holds the frames it came through, and these hold tensors.
    release_memory()
    return None


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
