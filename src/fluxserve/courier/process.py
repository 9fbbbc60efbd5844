"""The courier as a process: its limits, its signals, the pipe that tells of its server's end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys

from fluxserve import __version__
from fluxserve.courier.loop import Courier
from fluxserve.delivery.outbound import open_outbound
from fluxserve.settings import Settings


def run_courier(settings: Settings, *, server: str, courier_id: str, parented: bool) -> None:
    """Run errands for a server until it drains us or is gone. Raises ConfigurationError and WorkerRefused."""
    if parented:
        os.setpgrp()  # so that it can be ended as workers are
    _limit_itself()
    token = settings.worker_token.get_secret_value() if settings.worker_token else ""
    outbound = open_outbound(settings.outbound_allow, f"fluxserve/{__version__}")
    courier = Courier(
        outbound=outbound, settings=settings, server=server, courier_id=courier_id, token=token, parented=parented,
        own=outbound.allowing([endpoint.host for endpoint in settings.endpoints]),
    )  # fmt: skip
    asyncio.run(_work(courier, parented=parented))
    os._exit(0)  # a name server that never answers would keep its thread, and so this process


async def _work(courier: Courier, *, parented: bool) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, courier.drain)
    if parented:
        loop.add_reader(sys.stdin.fileno(), _watch_pipe)
    await courier.run()


def _watch_pipe() -> None:
    """Without its server it has nobody to report to, and the next server runs its errands again."""
    if not os.read(sys.stdin.fileno(), 4096):
        os._exit(0)


def _limit_itself() -> None:
    """As many connections as the system gives; no core of what it carries."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names limits that it then refuses
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
