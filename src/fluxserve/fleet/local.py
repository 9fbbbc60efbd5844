"""Local workers: one child process each, started, watched and started again.

A child reads its settings from its standard input and then watches that pipe: when it ends, the server is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fluxserve.settings import Settings

logger = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 30.0
#: A worker that lived this long starts again without delay.
HEALTHY_AFTER_S = 10.0
#: The exit status of a worker that cannot run as it is configured; starting it again would not help soon.
EXIT_CONFIGURATION = 78


@dataclass(slots=True)
class Child:
    """One slot of the fleet and the process in it."""

    slot: int
    worker_id: str = ""
    process: asyncio.subprocess.Process | None = None
    last_exit: int | None = None


class LocalFleet:
    """Keeps `count` workers running beside the server."""

    def __init__(self, settings: Settings, *, server: str, count: int, run_dir: Path) -> None:
        self._settings = settings
        self._server = server
        self._run_dir = run_dir
        self._children = [Child(slot) for slot in range(count)]
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self) -> None:
        """Begin to keep the workers alive."""
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self._children]

    @property
    def status(self) -> str:
        """Why no worker may be ready, as a sentence; empty without workers to keep."""
        if not self._children:
            return ""
        exits = [child.last_exit for child in self._children if child.last_exit is not None]
        if exits:
            return f"The worker ended with status {exits[-1]} and is being started again; its log says why."
        return "The worker is loading its weights."

    def kill(self, worker_id: str) -> None:
        """End a worker that hangs; its slot gets a new one."""
        for child in self._children:
            if child.worker_id == worker_id and child.process is not None and child.process.returncode is None:
                child.process.kill()

    async def _keep(self, child: Child) -> None:
        backoff = FIRST_BACKOFF_S
        while not self._stopping:
            began = time.monotonic()
            status = await self._run(child)
            child.last_exit = status
            lived = time.monotonic() - began
            backoff = FIRST_BACKOFF_S if lived > HEALTHY_AFTER_S else min(backoff * 2, LAST_BACKOFF_S)
            backoff = LAST_BACKOFF_S if status == EXIT_CONFIGURATION else backoff
            logger.warning(
                "A worker process ended",
                extra={"action": "worker_exit", "worker": child.worker_id, "status": status, "restart_in_s": backoff},
            )
            if not self._is_stopping():
                await asyncio.sleep(backoff)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _run(self, child: Child) -> int:
        """One life of a worker; returns its exit status."""
        child.worker_id = f"local-{child.slot}-{secrets.token_hex(4)}"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fluxserve", "worker", "--parented",
            "--server", self._server, "--worker-id", child.worker_id,
            stdin=asyncio.subprocess.PIPE,
            env=_environment(),
        )  # fmt: skip
        child.process = process
        assert process.stdin is not None  # noqa: S101 - for the type checker; a pipe was asked for
        settings = self._settings.model_dump(mode="json", exclude={"worker_token"})
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        try:
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            return await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise

    async def stop(self, patience: float) -> None:
        """Wait for the workers, which were told to drain; end those that take longer than `patience` seconds."""
        self._stopping = True
        living = [child.process for child in self._children if child.process and child.process.returncode is None]
        if living:
            await asyncio.wait([asyncio.create_task(process.wait()) for process in living], timeout=patience)
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)


def _environment() -> dict[str, str]:
    """The child's environment: settings come through the pipe alone, and no library may call home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}
    return kept | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
