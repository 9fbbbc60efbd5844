"""The courier's loop: errands come, each is run beside the others, and its report goes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time

from fluxserve.delivery.outbound import Call, Outbound
from fluxserve.errors import OutboundFailed, UrlRefused, WorkerProtocolError, WorkerRefused
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams, dial

logger = logging.getLogger(__name__)
#: More than the server has under way.
CAPACITY = 2048
REDIAL_S = 0.2
#: Told to end, it waits so long for what is under way; what is cut short is run again by the next one.
LAST_ERRANDS_S = 2.0
#: The problem of an errand whose URL is never called.
REFUSED = "refused"


class Courier:
    """One outbound client and one server."""

    def __init__(
        self,
        *,
        outbound: Outbound,
        settings: Settings,
        server: str,
        courier_id: str,
        token: str = "",
        parented: bool,
        own: Outbound | None = None,
    ) -> None:
        """`parented`: it ends with its server; else it waits for one. `own`: for addresses that the operator chose."""
        self._outbound = outbound
        self._own = own or outbound
        self._settings = settings
        self._server = server
        self._id = courier_id
        self._token = token
        self._parented = parented
        self._draining = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()

    def drain(self) -> None:
        """End soon."""
        self._draining.set()

    async def run(self) -> None:
        """Until told to end, or until its server is gone. Raises WorkerRefused."""
        lost_at = time.monotonic()
        while not self._draining.is_set():
            try:
                streams = await dial(self._server)
            except OSError:
                if self._parented and time.monotonic() - lost_at > self._settings.orphan_grace:
                    return
            else:
                await self._converse(streams)
                lost_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REDIAL_S):
                    await self._draining.wait()

    async def _converse(self, streams: Streams) -> None:
        reader, writer = streams
        parts: list[asyncio.Task[None]] = []
        try:
            writer.write(
                p.to_frame(
                    p.CourierHello(
                        version=p.VERSION, worker_id=self._id, pid=os.getpid(), capacity=CAPACITY, token=self._token
                    )
                )
            )
            welcome = await p.read_from_server(reader)
            if isinstance(welcome, p.Refused):
                raise WorkerRefused(f"The server refused this courier: {welcome.reason}")
            if not isinstance(welcome, p.Welcome):
                return
            parts = [
                asyncio.create_task(part)
                for part in (self._beat(writer, welcome), self._listen(reader, writer), self._finish())
            ]
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*parts, *self._errands):
                task.cancel()
            for outcome in await asyncio.gather(*parts, *self._errands, return_exceptions=True):
                if isinstance(outcome, WorkerProtocolError):
                    logger.warning("The server cannot be understood", extra={"action": "cut_off"})
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await p.read_from_server(reader)) is not None:
            match message:
                case p.Errands(errands=errands):
                    for errand in errands:
                        task = asyncio.create_task(self._report(errand, writer))
                        self._errands.add(task)
                        task.add_done_callback(self._errands.discard)
                case p.Drain():
                    self.drain()
                case _:
                    raise WorkerProtocolError("A message that is not for a courier.")

    async def _finish(self) -> None:
        await self._draining.wait()
        if self._errands:
            await asyncio.wait(set(self._errands), timeout=LAST_ERRANDS_S)

    @staticmethod
    async def _beat(writer: asyncio.StreamWriter, welcome: p.Welcome) -> None:
        while True:
            writer.write(p.to_frame(p.Heartbeat(held=())))
            await asyncio.sleep(min(welcome.heartbeat, welcome.lease / 3))

    async def _report(self, errand: p.Errand, writer: asyncio.StreamWriter) -> None:
        report = await run(self._own if errand.own else self._outbound, errand)
        with contextlib.suppress(OSError):
            writer.write(p.to_frame(report))
            await writer.drain()


async def run(outbound: Outbound, errand: p.Errand) -> p.Report:
    """Run one errand; whatever happens is a report."""
    call = Call(
        method=errand.method, url=errand.url, limit=errand.limit, timeout=errand.timeout,
        headers=[(name.encode(), value.encode()) for name, value in errand.headers],
        body=errand.body, secure=errand.secure, whole=errand.whole, redirects=errand.redirects,
    )  # fmt: skip
    try:
        answer = await outbound.call(call)
    except UrlRefused:
        return p.Report(number=errand.number, problem=REFUSED)
    except OutboundFailed as error:
        return p.Report(number=errand.number, problem=error.kind)
    except Exception:  # one errand must not take the others along
        logger.exception("An errand met a defect of fluxserve", extra={"action": "errand_broke"})
        return p.Report(number=errand.number, problem="no_answer")
    return p.Report(
        number=errand.number,
        status=answer.status,
        body=answer.body,
        retry_after=answer.headers.get("retry-after", "")[:100],
    )
