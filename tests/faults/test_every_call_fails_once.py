"""The n-th call fails, for every n of a task's life: it ends all the same, the books are right and nothing is left.

R25. Calls are statements of the database, calls of the system on files, calls of the engine, and messages between the
server and its worker and courier, whose connection is then cut before or after the message.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from failing import Calls, failing_files
from life import Faults, Life, World, whole_world

from builders import in_event_loop

#: Lives that go on at once.
ABREAST = 24
KINDS = {
    "database": ("database", False),
    "disk": ("files", False),
    "engine": ("engine", False),
    "message lost": ("connection", False),
    "message delivered": ("connection", True),
}


async def lived(folder: Path, of: str, delivers: bool, failing: list[range]) -> list[tuple[Calls, str]]:
    """One life for each of the ranges of calls that fail."""
    room = asyncio.Semaphore(ABREAST)
    all_calls = [Calls(which) for which in failing]
    folders = [folder / str(number) for number in range(len(failing))]
    for place in folders:
        place.mkdir(mode=0o700, parents=True)

    async def live(place: Path, calls: Calls, world: World) -> tuple[Calls, str]:
        async with room:
            try:
                (status,) = await Life(place, world, faults=Faults(of, calls, delivers)).live()
            except Exception as error:  # noqa: BLE001 - the other lives go on, and then it is told
                status = f"{calls.failing} {calls.failed}: {error!r} {traceback.format_exc()}"
            return calls, status

    files = failing_files(dict(zip(folders, all_calls, strict=True))) if of == "files" else nullcontext()
    with files:
        async with whole_world() as world:
            return await asyncio.gather(*map(live, folders, all_calls, [world] * len(failing)))


@pytest.mark.parametrize("kind", KINDS)
@in_event_loop
async def test_whichever_call_fails_a_task_ends_and_the_books_are_right(
    tmp_path: Path, kind: str, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    of, delivers = KINDS[kind]
    ((whole, status),) = await lived(tmp_path / "whole", of, delivers, [range(0)])
    assert status == "Ready"
    count = len(whole.made)
    assert count > 5
    bursts = (1, 3) if long else (1,)
    lives = [range(n, n + burst) for burst in bursts for n in range(count)]
    ends = await lived(tmp_path, of, delivers, lives)
    assert [problem for _, problem in ends if problem not in ("Ready", "Error")] == []
    hit = sum(bool(calls.failed) for calls, _ in ends)
    assert hit > 0.4 * len(lives)  # how many heartbeats and steps there are, and with them calls, the clock decides
    with capsys.disabled():
        told = Counter(status for _, status in ends)
        print(f"\n  {kind}: {count} calls in a life, {hit} lives with a fault; they ended: {dict(told)}")
