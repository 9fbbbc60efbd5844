"""How much memory this process holds, and whether that is more than it may.

What it does not know: what the memory is for.
"""

from __future__ import annotations

import os
from pathlib import Path

from fluxserve.settings import Settings


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
