"""The worker as a process: its lock, its signals, the pipe that tells of its server's end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine

from fluxserve import database, engine
from fluxserve.errors import ConfigurationError, FluxserveError
from fluxserve.moderation import pictures
from fluxserve.settings import Settings
from fluxserve.worker.connection import make_run_dir, worker_lock
from fluxserve.worker.loop import Worker
from fluxserve.worker.memory import share_heaps

logger = logging.getLogger(__name__)
#: The exit status of a worker whose engine, or own code, raised what nobody expects.
EXIT_BROKEN = 72
#: That of one that has grown too large: whoever keeps it starts it again.
EXIT_RECYCLED = 75


def run_worker(settings: Settings, *, server: str, worker_id: str, parented: bool) -> None:
    """Draw for a server until it drains us or is gone for too long; ends the process."""
    share_heaps()
    token = settings.worker_token.get_secret_value() if settings.worker_token else ""
    with contextlib.ExitStack() as stack:
        if parented:
            os.setpgrp()  # so that whatever this process starts can be ended with it
            lock = worker_lock(make_run_dir(settings.data_dir), worker_id)
            stack.enter_context(database.hold_lock(lock, what=f"The worker name {worker_id}"))
            stack.callback(lock.unlink, missing_ok=True)
        status = _status_of(_work(settings, server, worker_id, token, parented=parented))
    logging.shutdown()
    os._exit(status)  # an engine that hangs would keep the interpreter from ending for ever


def _status_of(work: Coroutine[None, None, int]) -> int:
    """Run to the end; raises our own errors, which say what to do."""
    try:
        return asyncio.run(work)
    except FluxserveError:
        raise
    except Exception as error:
        logger.error(  # noqa: TRY400 - one line, unless somebody looks closer
            "The worker broke and ends; at log level debug it says where",
            extra={"action": "broke", "error": type(error).__name__},
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        return EXIT_BROKEN


async def _work(settings: Settings, server: str, worker_id: str, token: str, *, parented: bool) -> int:
    classifier = pictures.create(pictures.suited_to(settings.engine)) if settings.moderation == "on" else None
    worker = Worker(
        engine=engine.create(settings), settings=settings, server=server, worker_id=worker_id, token=token,
        parented=parented, classifier=classifier,
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.drain)
    if parented:
        loop.add_reader(sys.stdin.fileno(), _watch_pipe, loop, worker)
    await worker.run()
    return EXIT_RECYCLED if worker.is_recycled else 0


def _watch_pipe(loop: asyncio.AbstractEventLoop, worker: Worker) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        worker.orphaned()


def settings_from_pipe() -> Settings:
    """The settings a server hands to the worker it started: one JSON line on standard input."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)  # unbuffered: what follows is watched by the event loop
        if not byte:
            raise ConfigurationError("The server that started this worker is gone.")
        line += byte
    return Settings(**json.loads(line))
