"""The server's side of decoding: a few processes (see `decoder`), started when they are needed and kept warm.

Each takes one picture at a time, and one that dies or takes too long is replaced. Where too many wait already, the next
is refused at once.
What it does not know: fields, tasks, what a picture is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

import msgspec

from fluxserve.delivery.decoding import HEADER, Answer, Decoded, Job, Refused, Unreadable
from fluxserve.errors import DecodersBusy

logger = logging.getLogger(__name__)
COUNT = 2
#: Pictures that wait for a process, at most.
MAX_WAITING = 64
WALL_S = 15.0
#: Two pictures of 20 megapixels that cannot be compressed.
_MAX_ANSWER = 130_000_000
#: Read and written in pieces of about this size.
_BUFFER = 2**20
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
Process = asyncio.subprocess.Process


class _Died(Exception):
    """The process ended before it answered, or what it answered is nonsense."""


class Decoders:
    """Up to COUNT processes. Used from the event loop only."""

    def __init__(self, *, wall_s: float = WALL_S, max_waiting: int = MAX_WAITING) -> None:
        self._wall_s = wall_s
        self._max_waiting = max_waiting
        self._places = asyncio.Semaphore(COUNT)
        self._waiting = 0
        self._idle: list[Process] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that wait for a picture."""
        return tuple(process.pid for process in self._idle)

    async def decode(
        self, content: str | bytes, *, max_area: int | None, with_mask: bool, measures: bool = False
    ) -> Decoded:
        """The picture in a text of base64, or in a file. Raises Unreadable, the caller's fault, and DecodersBusy.

        `measures`: by its header alone, without pixels.
        """
        if self._waiting >= self._max_waiting:
            raise DecodersBusy("Too many pictures wait to be read. Try again in a moment.")
        self._waiting += 1
        try:
            async with self._places:
                is_text = isinstance(content, str)
                file = content.encode("ascii", "replace") if isinstance(content, str) else content
                answer = await self._ask(
                    Job(content=file, is_text=is_text, max_area=max_area, with_mask=with_mask, measures=measures)
                )
        finally:
            self._waiting -= 1
        if isinstance(answer, Refused):
            raise Unreadable(answer.reason)
        return answer

    async def _ask(self, job: Job) -> Answer:
        """A process that is ended from outside says nothing about the picture, so that one is tried once more."""
        for _ in range(2):
            process = await self._take()
            try:
                async with asyncio.timeout(self._wall_s):
                    answer = await _converse(process, job)
            except TimeoutError:
                await _end(process)
                logger.warning("A picture took too long to read", extra={"action": "decoder_slow"})
                raise DecodersBusy("Pictures take too long to be read at the moment. Try again later.") from None
            except _Died:
                status = await _end(process)
                logger.warning("A decoder ended over a picture", extra={"action": "decoder_died", "status": status})
                if status == -signal.SIGXCPU:
                    break
            except BaseException:  # the caller has gone: what the process would answer is nobody's
                await _end(process)
                raise
            else:
                self._idle.append(process)
                return answer
        return Refused(reason="This picture takes too long to read, or cannot be read at all")

    async def _take(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fluxserve.delivery.decoder",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                env=_environment(), limit=_BUFFER, start_new_session=True,
            )  # fmt: skip
        except OSError:  # no memory or no process left: later there may be
            raise DecodersBusy("No process can be started to read pictures. Try again later.") from None

    async def close(self) -> None:
        """End them all."""
        while self._idle:
            await _end(self._idle.pop())


async def _converse(process: Process, job: Job) -> Answer:
    assert process.stdin is not None  # noqa: S101 - for the type checker; pipes were asked for
    assert process.stdout is not None  # noqa: S101 - the same
    body = _encode(job)
    try:
        process.stdin.write(HEADER.pack(len(body)))
        process.stdin.write(body)
        await process.stdin.drain()
        (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
        if length > _MAX_ANSWER:
            raise _Died
        return _decoder.decode(await process.stdout.readexactly(length))
    except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
        raise _Died from None


async def _end(process: Process) -> int:
    """Kill it if it still lives; its exit status."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.kill()
    return await process.wait()


def _environment() -> dict[str, str]:
    """Ours without what it may not know: settings, some of which are secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}
