"""Frames of the worker protocol: what is sent arrives, and whatever else arrives does no harm."""

from __future__ import annotations

import asyncio
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import generation
from fluxserve.catalogue import Size
from fluxserve.errors import WorkerProtocolError
from fluxserve.worker import protocol as p

HELD = (p.Held(task_id="t1", fence=1), p.Held(task_id="t2", fence=2**40))
FROM_WORKER: list[p.FromWorker] = [
    p.Hello(
        version=p.VERSION, worker_id="w1", pid=4711, models=("flux-dev",), engine="fake", capacity=8, want=16,
        fingerprints={"flux-dev": "f", "flux-schnell": ""}, token="secret", orphan=True, held=HELD,
        classifier="open_nsfw",
    ),
    p.Hello(version=1, worker_id="w", pid=1, models=(), engine="fake", fingerprints={}, capacity=0),
    p.Want(count=3),
    p.Progress(task_id="t1", fence=2, step=3, steps=28),
    p.Waypoint(task_id="t1", fence=2, data=bytes(range(256)) * 100),
    p.Waypoint(task_id="t1", fence=2, data=b""),
    p.Preview(task_id="t1", fence=2, picture=bytes(range(256))),
    p.Heartbeat(held=HELD),
    p.Heartbeat(held=()),
    p.Finished(
        task_id="t1", fence=1, picture=bytes(range(256)) * 100, drawn_by="fluxserve-mini", duration=0.125,
        facts={"text": "Ünïcödé 🍎", "int": 7, "float": 0.5, "flag": True, "none": None}, warnings=("no photographs",),
        scores={"sexual": 0.25},
    ),
    p.Failed(task_id="t1", fence=1, code="OutOfMemory", message=""),
    p.Withheld(task_id="t1", fence=1, scores={"sexual": 0.75}, about="input_picture"),
    p.Returned(held=HELD),
    p.Returned(held=HELD, recycled=True),
]  # fmt: skip
FROM_SERVER: list[p.FromServer] = [
    p.Welcome(heartbeat=5.0, lease=30.0, kept=HELD),
    p.Welcome(heartbeat=5.0, lease=30.0, kept=(), waypoint_interval=0.0, tells_prompts=True),
    p.Refused(reason="The worker token is wrong."),
    p.Tasks(
        assignments=(
            p.Assignment(
                task_id="t1", fence=1, turn=1.5, flow="k", generation=generation(seed=2**64 - 1, prompt="\u2028 🍎\x00")
            ),
            p.Assignment(
                task_id="t2",
                fence=1,
                turn=1e12,
                flow="",
                generation=generation(size=Size(3136, 1344)),
                waypoint=b"\0\xff",
                refuse_from={"sexual": 0.4},
            ),
        )
    ),
    p.Tasks(assignments=()),
    p.Settled(task_id="t1", fence=1, accepted=False),
    p.Discard(task_id="t1", fence=1),
    p.Show(task_id="t1", fence=1),
    p.Drain(),
]


def stream(*parts: bytes, ended: bool = True) -> asyncio.StreamReader:
    """A reader that gets these bytes."""
    reader = asyncio.StreamReader()
    for part in parts:
        reader.feed_data(part)
    if ended:
        reader.feed_eof()
    return reader


async def read_all_from_worker(data: bytes, limit: int = p.MAX_FRAME) -> list[p.FromWorker]:
    """Every message up to the end of the stream."""
    reader, messages = stream(data), []
    while (message := await p.read_from_worker(reader, limit=limit)) is not None:
        messages.append(message)
    return messages


def frame(body: bytes) -> bytes:
    """A frame around any body."""
    return struct.pack(">I", len(body)) + body


def test_every_message_of_a_worker_arrives_as_it_was_sent() -> None:
    data = b"".join(p.to_frame(message) for message in FROM_WORKER)
    assert asyncio.run(read_all_from_worker(data)) == FROM_WORKER


def test_every_message_of_the_server_arrives_as_it_was_sent() -> None:
    async def read() -> list[p.FromServer]:
        reader, messages = stream(*[p.to_frame(message) for message in FROM_SERVER]), []
        while (message := await p.read_from_server(reader)) is not None:
            messages.append(message)
        return messages

    assert asyncio.run(read()) == FROM_SERVER


def test_a_message_may_arrive_in_single_bytes() -> None:
    async def read() -> p.FromWorker | None:
        reader = stream(ended=False)
        waiting = asyncio.create_task(p.read_from_worker(reader))
        for byte in p.to_frame(FROM_WORKER[0]):
            reader.feed_data(bytes([byte]))
            await asyncio.sleep(0)
        return await waiting

    assert asyncio.run(read()) == FROM_WORKER[0]


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, -1])
def test_a_stream_that_ends_inside_a_frame_is_a_worker_that_is_gone(cut: int) -> None:
    whole = p.to_frame(FROM_WORKER[0])
    assert asyncio.run(read_all_from_worker(whole + whole[:cut])) == [FROM_WORKER[0]]


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_a_network_that_breaks_is_the_end_of_the_stream_on_both_sides(number: int) -> None:
    async def read() -> None:
        for read_message in (p.read_from_server, p.read_from_worker):
            reader = stream(b"\0\0", ended=False)
            reader.set_exception(OSError(number, "as the system says it"))
            assert await read_message(reader) is None

    asyncio.run(read())


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(WorkerProtocolError, match="over the limit"):
        asyncio.run(read_all_from_worker(struct.pack(">I", p.MAX_FRAME + 1)))
    with pytest.raises(WorkerProtocolError, match="over the limit"):
        asyncio.run(read_all_from_worker(frame(b"x" * 101), limit=100))
    small = p.to_frame(p.Want(count=1))
    assert asyncio.run(read_all_from_worker(small, limit=len(small) - 4)) == [p.Want(count=1)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x81\xa4type\xa5nobody"[:11],
        b"\x81\xa4type\xa6nobody",
        b"\x81\xa4type\xa4want",
        b"\x82\xa4type\xa4want\xa5count\xa13",
        b"\x82\xa4type\xa4want\xa5count\xc3",
        b"\x81\xa4type\xa2\xff\xfe",
        b"\x82\xa4type\xa4want\xa1x" + b"\x91" * 200_000,
        p.to_frame(p.Drain())[4:],
        p.to_frame(p.Want(count=1))[4:] + b"more",
    ],
)
def test_a_frame_that_holds_no_message_is_an_error_of_the_protocol(body: bytes) -> None:
    with pytest.raises(WorkerProtocolError, match="holds no message"):
        asyncio.run(read_all_from_worker(frame(body)))


@given(st.binary(max_size=400))
def test_any_bytes_are_messages_the_end_or_an_error_of_the_protocol(data: bytes) -> None:
    try:
        asyncio.run(read_all_from_worker(data, limit=2000))
    except WorkerProtocolError:
        return


@given(st.sampled_from(FROM_WORKER), st.data())
def test_a_message_with_a_changed_byte_does_no_harm(message: p.FromWorker, data: st.DataObject) -> None:
    body = bytearray(p.to_frame(message)[4:])
    body[data.draw(st.integers(0, min(len(body) - 1, 300)))] = data.draw(st.integers(0, 255))
    try:
        asyncio.run(read_all_from_worker(frame(bytes(body))))
    except WorkerProtocolError:
        return
