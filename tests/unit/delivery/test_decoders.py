"""Decoders as processes: warm, bounded, replaced when they die, and never in anybody's way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from builders import in_event_loop
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.decoding import Decoded, Unreadable
from fluxserve.errors import DecodersBusy
from sample_pictures import PNG, file_of, text_of


@asynccontextmanager
async def decoders(*, wall_s: float = 15.0, max_waiting: int = 64) -> AsyncIterator[Decoders]:
    """Decoders, ended at the end."""
    made = Decoders(wall_s=wall_s, max_waiting=max_waiting)
    try:
        yield made
    finally:
        await made.close()


async def read(them: Decoders, text: str = PNG) -> Decoded:
    """The picture in the text."""
    return await them.decode(text, max_area=None, with_mask=False)


@in_event_loop
async def test_a_process_is_kept_warm_and_ends_with_its_server() -> None:
    async with decoders() as them:
        assert them.pids == ()
        first = await read(them)
        (pid,) = them.pids
        assert await read(them) == first
        with pytest.raises(Unreadable, match="no PNG"):
            await read(them, "aGVsbG8=")
        assert them.pids == (pid,)
    assert pid not in children()


@in_event_loop
async def test_it_holds_no_file_of_its_server_and_none_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXSERVE_WORKER_TOKEN", "secret")
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        async with decoders() as them:
            await read(them)
            (pid,) = them.pids
            assert not any(str(tmp_path) in name for name in files_of(pid))
            assert "FLUXSERVE" not in shown(pid, "environ")
            assert "1500000000" in shown(pid, "limits")


def files_of(pid: int) -> list[str]:
    """What the process holds open."""
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def shown(pid: int, name: str) -> str:
    """What the system tells of the process."""
    return Path(f"/proc/{pid}/{name}").read_text(errors="replace")


@in_event_loop
async def test_one_that_was_killed_from_outside_costs_nobody_a_picture() -> None:
    async with decoders() as them:
        await read(them)
        (pid,) = them.pids
        os.kill(pid, signal.SIGKILL)
        assert (await read(them)).picture.width == 256
        assert pid not in them.pids


@in_event_loop
async def test_one_that_dies_over_its_picture_twice_refuses_that_picture_alone() -> None:
    large = text_of(file_of(Image.effect_noise((4000, 4000), 80).convert("RGB"), "JPEG"))

    async with decoders() as them:
        await read(them)
        doomed = asyncio.create_task(read(them, large))
        killed = 0
        while not doomed.done():  # whatever takes it, until it is given up
            for pid in children():
                if pid not in them.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    killed += 1
            await asyncio.sleep(0.01)
        with pytest.raises(Unreadable, match="cannot be read"):
            await doomed
        assert killed >= 2
        assert (await read(them)).picture.width == 256


def children() -> list[int]:
    """The processes that this one has started, but for what Python keeps beside those of other tests."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in pids if "resource_tracker" not in shown(int(pid), "cmdline")]


@in_event_loop
async def test_what_takes_too_long_is_our_fault_and_is_ended() -> None:
    async with decoders(wall_s=0.0) as them:
        with pytest.raises(DecodersBusy, match="too long"):
            await read(them)
        assert them.pids == ()
    assert children() == []


@in_event_loop
async def test_too_many_that_wait_are_refused_at_once_and_the_others_are_read() -> None:
    async with decoders(max_waiting=3) as them:
        answers = await asyncio.gather(*(read(them) for _ in range(5)), return_exceptions=True)
        assert [isinstance(answer, DecodersBusy) for answer in answers] == [False, False, False, True, True]
        assert (await read(them)).picture.width == 256


@in_event_loop
async def test_a_caller_that_goes_away_leaves_no_answer_for_the_next() -> None:
    async with decoders() as them:
        await read(them)
        (pid,) = them.pids
        going = asyncio.create_task(read(them, text_of(file_of(Image.new("RGB", (3000, 3000)), "PNG"))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        going.cancel()
        with suppress(asyncio.CancelledError):
            await going
        assert (await read(them)).picture.width == 256
        assert pid not in them.pids
