"""R24: whatever happens in whatever order, a server keeps its promises; a seed that fails fails again."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import pytest
from simulated import World

#: Lives by default and in the long run.
FEW, MANY = 25, 10_000


def lived(folder: Path, seed: int) -> World:
    """A life from its beginning to its end."""
    folder.mkdir(mode=0o700)
    world = World(folder, seed)

    async def live() -> None:
        try:
            await world.live()
        finally:
            await world.close()

    asyncio.run(live())
    return world


def test_whatever_happens_promises_are_kept(tmp_path: Path, long: bool, capsys: pytest.CaptureFixture[str]) -> None:
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for seed in range(MANY if long else FEW):
        try:
            world = lived(tmp_path / str(seed), seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        shutil.rmtree(world.house.folder)
        faults += world.faults.counts
        ends += world.ends
    with capsys.disabled():
        print(f"\n  {sum(ends.values())} tasks ended: {dict(ends)}; faults: {dict(faults)}")
    assert min(faults[name] for name in ("refused", "died before", "died after")) > 5
    assert ends.keys() >= {"ready", "error", "cancelled", "content_moderated"}


def test_a_seed_repeats_its_run(tmp_path: Path) -> None:
    one, other = (lived(tmp_path / name, 7) for name in ("one", "other"))
    assert one.trace == other.trace
    assert one.trace != lived(tmp_path / "third", 8).trace
