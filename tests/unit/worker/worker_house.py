"""A worker that was let in by a server played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from builders import generation
from fluxserve.engine.base import Engine
from fluxserve.moderation.pictures import Classifier
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams
from fluxserve.worker.loop import Worker

SETTINGS = Settings(heartbeat=60, lease=600)
PATIENCE_S = 5.0
TASK = p.Assignment(task_id="t1", fence=1, turn=1.0, flow="k", generation=generation())


@asynccontextmanager
async def hired(
    engine: Engine,
    welcome: p.Welcome,
    settings: Settings = SETTINGS,
    classifier: Classifier | None = None,
) -> AsyncIterator[tuple[asyncio.Task[None], Streams]]:
    """A worker that was let in: its running loop, and the server's end of its connection."""
    arrived: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda *streams: arrived.put_nowait(streams), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    worker = Worker(
        engine=engine, settings=settings, server=f"tcp:{host}:{port}", worker_id="w1", parented=False,
        classifier=classifier,
    )  # fmt: skip
    running = asyncio.create_task(worker.run())
    reader, writer = await asyncio.wait_for(arrived.get(), PATIENCE_S)
    try:
        assert isinstance(await p.read_from_worker(reader), p.Hello)
        writer.write(p.to_frame(welcome))
        yield running, (reader, writer)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, ZeroDivisionError):
            await running
        writer.close()
        server.close()


async def heard(reader: asyncio.StreamReader, kind: type[p.FromWorker]) -> None:
    """Read until the worker says this."""
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(await p.read_from_worker(reader), kind):
            pass
