"""Fine-tunes on the server: which file a request means, read in threads of its own.

Files may be large, and reading them must not keep pictures waiting, which other threads read.
What it does not know: what is in a file.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fluxserve.engine.finetunes import Finetunes

_THREADS = 2


class FinetuneHashes:
    """Of the files in `folder`; None: there are none."""

    def __init__(self, folder: Path | None) -> None:
        self._finetunes = Finetunes(folder)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fluxserve-finetunes")

    async def sha256(self, name: str | None) -> str | None:
        """Of the file of this name, as it is now; None for no name. Raises UnknownFinetune."""
        if name is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._finetunes.sha256, name)
