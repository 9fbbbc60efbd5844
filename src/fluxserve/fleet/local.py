"""Local workers and the courier: one child process each, with all it starts, started, watched and started again.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxserve.settings import Settings
from fluxserve.worker.connection import LOCAL_PREFIX, worker_lock

logger = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 30.0
#: Processes that were killed are gone within this time.
REAPED_S = 2.0
#: The exit status of a worker that cannot run as it is configured; starting it again would not help soon.
EXIT_CONFIGURATION = 78
EXIT_NOT_STARTED = 71


@dataclass(slots=True)
class Child:
    """One slot of the fleet and the process in it; `slot` None: the courier's."""

    slot: int | None
    worker_id: str = ""
    process: asyncio.subprocess.Process | None = None
    was_ready: bool = False
    last_exit: int | None = None

    @property
    def lives(self) -> bool:
        """Its process runs."""
        return self.process is not None and self.process.returncode is None

    @property
    def command(self) -> str:
        """What it runs."""
        return "courier" if self.slot is None else "worker"


class LocalFleet:
    """Keeps `count` workers running beside the server, and a courier once it is needed.

    Where there are several `gpus`, each worker sees one of them.
    """

    def __init__(self, settings: Settings, *, server: str, count: int, run_dir: Path, gpus: Sequence[str] = ()) -> None:
        self._settings = settings
        self._server = server
        self._run_dir = run_dir
        self._gpus = gpus
        self._children = [Child(slot) for slot in range(count)]
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self) -> None:
        """Begin to keep the workers alive."""
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self._children]

    def need_courier(self) -> None:
        """There is something to call for: begin to keep a courier alive, where that is not somebody else's."""
        if self._settings.courier and not self._stopping and all(child.slot is not None for child in self._children):
            self._children.append(courier := Child(None))
            self._keepers.append(asyncio.create_task(self._keep(courier)))

    @property
    def is_starting(self) -> bool:
        """Whether there are workers to keep, and none has ended by now."""
        return bool(self._workers) and all(child.last_exit is None for child in self._workers)

    @property
    def _workers(self) -> Sequence[Child]:
        return [child for child in self._children if child.slot is not None]

    @property
    def status(self) -> str:
        """Why no worker may be ready, as a sentence; empty without workers to keep."""
        if not self._workers:
            return ""
        exits = [child.last_exit for child in self._workers if child.last_exit is not None]
        if exits:
            return f"The worker ended with status {exits[-1]} and is being started again; its log says why."
        return "The worker loads its weights and gets warm; where networks are compiled, the first start takes minutes."

    def arrived(self, worker_id: str) -> None:
        """The worker is connected and warm: whatever ends it from now on, its successor starts without delay."""
        for child in self._children:
            if child.worker_id == worker_id:
                child.was_ready = True

    def kill(self, worker_id: str) -> None:
        """End a worker that hangs; its slot gets a new one."""
        for child in self._children:
            if child.worker_id == worker_id:
                _kill(child)

    async def _keep(self, child: Child) -> None:
        backoff = FIRST_BACKOFF_S
        while not self._stopping:
            status = await self._run(child)
            if self._is_stopping():
                return
            child.last_exit = status
            backoff = _next_backoff(child, status, backoff)
            logger.warning(
                "A worker process ended",
                extra={"action": "worker_exit", "worker": child.worker_id, "status": status, "restart_in_s": backoff},
            )
            await asyncio.sleep(backoff)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _run(self, child: Child) -> int:
        """One life of a worker; returns its exit status."""
        name = child.command if child.slot is None else child.slot
        child.worker_id = f"{LOCAL_PREFIX}{name}-{secrets.token_hex(4)}"
        child.was_ready = False
        try:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fluxserve", child.command, "--parented",
                "--server", self._server, "--worker-id", child.worker_id,
                stdin=asyncio.subprocess.PIPE,
                env=_environment(child.slot, self._gpus),
            )  # fmt: skip
        except OSError:  # no memory or no process left: later there may be
            return EXIT_NOT_STARTED
        try:
            await self._tell_settings(process)
            return await process.wait()
        finally:
            _kill(child)
            child.process = None  # its number may soon be another's
            worker_lock(self._run_dir, child.worker_id).unlink(missing_ok=True)

    async def _tell_settings(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type checker; a pipe was asked for
        settings = self._settings.model_dump(mode="json", exclude={"admin_key", "worker_token"})
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            await process.stdin.drain()

    async def stop(self, patience: float, *, is_connected: Callable[[str], bool]) -> None:
        """Wait for the workers, which were told to drain; end those that take longer than `patience` seconds.

        One that is not connected holds nothing, and is ended at once.
        """
        self._stopping = True
        for child in self._children:
            if not is_connected(child.worker_id):
                _kill(child)
        await self._wait(patience)
        for child in self._children:
            _kill(child)
        await self._wait(REAPED_S)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _wait(self, patience: float) -> None:
        """Until all processes have ended, for at most `patience` seconds."""
        ends = [asyncio.create_task(child.process.wait()) for child in self._children if child.process and child.lives]
        if ends:
            await asyncio.wait(ends, timeout=patience)


def _kill(child: Child) -> None:
    """End the worker and whatever it has started; what it leaves behind when it dies by itself, too."""
    if child.process is None:
        return
    if child.lives:
        with contextlib.suppress(ProcessLookupError):
            child.process.kill()
    # The worker leads a group of its own as soon as it runs (see `worker.process`).
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone; macOS says so in its own way
        os.killpg(child.process.pid, signal.SIGKILL)


def _next_backoff(child: Child, status: int, backoff: float) -> float:
    """Longer and longer between the starts of a worker that never gets ready."""
    if status == EXIT_CONFIGURATION:
        return LAST_BACKOFF_S
    return FIRST_BACKOFF_S if child.was_ready else min(backoff * 2, LAST_BACKOFF_S)


def _environment(slot: int | None, gpus: Sequence[str]) -> dict[str, str]:
    """The child's environment: settings come through the pipe alone, no library may call home, and it sees its GPU."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}
    own = {"CUDA_VISIBLE_DEVICES": gpu_of(slot, gpus)} if gpus and slot is not None else {}
    return kept | own | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def gpu_of(slot: int, gpus: Sequence[str]) -> str:
    """The one for a slot of the fleet: workers that are more than GPUs share them evenly."""
    return gpus[slot % len(gpus)]
