"""The process in which files of callers are decoded: `python -m fluxserve.delivery.decoder`.

It has no more than it needs: its standard input and output, so much memory, so much time of a processor for each
picture, and no file that it may write. Whatever a file does to it, the server lives on and starts another one (see
`decoders`).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import suppress
from typing import BinaryIO

import msgspec

from fluxserve.delivery.decoding import HEADER, Answer, Job, Refused, Unreadable
from fluxserve.delivery.pictures import decode, decode_file, file_of, measure_file

MEMORY = 1_500_000_000
CPU_S = 10
_encode = msgspec.msgpack.Encoder().encode
_job = msgspec.msgpack.Decoder(Job).decode


def main() -> None:
    """Decode what comes until nothing comes any more."""
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while (body := _read_frame(source)) is not None:
        _allow_cpu(CPU_S)
        answer = _encode(_answer(_job(body)))
        target.write(HEADER.pack(len(answer)))
        target.write(answer)
        target.flush()


def _answer(job: Job) -> Answer:
    try:
        if job.measures:
            file = file_of(job.content) if job.is_text else job.content
            return measure_file(file, max_area=job.max_area, with_mask=job.with_mask)
        read = decode if job.is_text else decode_file
        return read(job.content, max_area=job.max_area, with_mask=job.with_mask)
    except Unreadable as error:
        return Refused(reason=str(error))
    except MemoryError:
        return Refused(reason="This picture takes too much memory to read")


def _read_frame(source: BinaryIO) -> bytes | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = source.read(length)
    return body if len(body) == length else None


def _limit(kind: int, most: int) -> None:
    with suppress(ValueError, OSError):  # macOS names limits that it then refuses
        resource.setrlimit(kind, (most, most))


def _allow_cpu(seconds: int) -> None:
    """From now on; past it the system ends this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard))


if __name__ == "__main__":
    main()
