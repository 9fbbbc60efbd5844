"""How much memory this process holds, and whether that is more than it may.

What it does not know: what the memory is for.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from fluxserve.settings import Settings

#: glibc's own number for the option (malloc.h).
_M_ARENA_MAX = -8
#: glibc's allocator keeps a heap for each thread that ever waited for another's, and what is free in one is of no use
#: to the others: a worker grew by 20 KiB a picture for its first hundreds. Two cost nothing, and stay as they are.
_HEAPS = 2


def share_heaps() -> bool:
    """Let the threads of this process share two heaps, before it has any; False where its allocator is another."""
    if "MALLOC_ARENA_MAX" in os.environ:  # somebody else has decided
        return False
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    return option is not None and bool(option(_M_ARENA_MAX, _HEAPS))


def resident() -> int:
    """Bytes of this process in the machine's memory; 0 where the system does not tell (only Linux does)."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def excess(settings: Settings, *, device: int) -> dict[str, int]:
    """What is over its limit, by the name of the setting; `device`: bytes that the engine holds on its device."""
    held = {"worker_memory": (resident(), settings.worker_memory), "device_memory": (device, settings.device_memory)}
    return {name: size for name, (size, limit) in held.items() if limit and size > limit}
