"""Hostile pictures and the processes that read them: each is read or refused in time, and nobody dies of it (S2)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

import pytest
from PIL import Image

from builders import in_event_loop
from fluxserve.delivery.decoders import COUNT, WALL_S, Decoders
from fluxserve.delivery.decoding import File, Unreadable
from hostile_pictures import bombs, good_files, packing, pieces, spoilt

SEED = 20_261_201
#: The quickest of ten times counts: other work on the machine is not the bomb's.
BOMB_S, TIMES = 0.1, 10


@asynccontextmanager
async def decoders() -> AsyncIterator[Decoders]:
    """Decoders, one of which has read a picture already; ended at the end."""
    made = Decoders()
    try:
        await made.decode(good_files()[0], max_area=None, with_mask=False)
        yield made
    finally:
        await made.close()


def check(file: File) -> None:
    """What comes out is a plain picture, and what it says of itself is so."""
    with Image.open(BytesIO(file.png), formats=("PNG",)) as image:
        assert (image.mode, image.size, image.info) == ("RGB", (file.width, file.height), {})
        assert hashlib.sha256(image.tobytes()).hexdigest() == file.sha256


@in_event_loop
async def test_a_spoilt_picture_is_read_or_refused_in_time_and_no_process_dies_of_it(
    long: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rng, good = random.Random(SEED), good_files()
    files = iter([(spoilt(rng, good), rng.random() < 0.5) for _ in range(10_000 if long else 250)])
    became: Counter[str] = Counter()
    longest = 0.0

    async def feed(them: Decoders) -> None:
        nonlocal longest
        for file, with_mask in files:
            began = time.perf_counter()
            try:
                found = await them.decode(file, max_area=None, with_mask=with_mask)
            except Unreadable as refused:
                became[str(refused).partition(";")[0]] += 1
            else:
                became["read"] += 1
                for one in filter(None, (found.picture, found.mask)):
                    check(one)
            longest = max(longest, time.perf_counter() - began)

    with caplog.at_level(logging.WARNING):
        async with decoders() as them:
            await asyncio.gather(*(feed(them) for _ in range(COUNT)))
            assert len(them.pids) == COUNT
    print(f"\n  {became.total()} spoilt pictures; the slowest took {longest:.2f} s")
    print(*(f"  {count:6} {reason}\n" for reason, count in became.most_common()), sep="")
    assert [record.message for record in caplog.records] == []  # a decoder that ends is told of
    assert longest < WALL_S
    assert became["read"] > became.total() / 10  # the damage gets past the first look
    assert became["This picture is damaged or cut off"] > became.total() / 10


@in_event_loop
async def test_what_is_spoilt_and_blown_up_here_is_read_without_that() -> None:
    *still, moving = good_files()
    for file in (*still, moving):
        assert b"".join(pieces(file)) == file
    async with decoders() as them:
        for file in (*still, *(packing(kind, 100) for kind in (b"zTXt", b"iTXt", b"iCCP"))):
            check((await them.decode(file, max_area=None, with_mask=False)).picture)
        with pytest.raises(Unreadable, match="move"):
            await them.decode(moving, max_area=None, with_mask=False)


@in_event_loop
async def test_a_bomb_is_refused_before_it_goes_off() -> None:
    took: dict[str, float] = {}
    async with decoders() as them:
        pids = them.pids
        for name, (bomb, reason) in bombs().items():
            for _ in range(TIMES):
                began = time.perf_counter()
                with pytest.raises(Unreadable, match=reason):
                    await them.decode(bomb, max_area=None, with_mask=True)
                took[name] = min(took.get(name, math.inf), time.perf_counter() - began)
        assert them.pids == pids
    print(*(f"\n  {1e3 * seconds:5.1f} ms {name}" for name, seconds in took.items()), sep="")
    assert len(took) >= 12
    assert {name: seconds for name, seconds in took.items() if seconds > BOMB_S} == {}
