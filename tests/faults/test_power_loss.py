"""Power is lost at any moment: what callers were told is there at the next start, whatever was not synced is gone.

R4. One life of a server is recorded; what its disk would hold at many moments of it is laid out and started from.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import power
import pytest
from servers import Server

from fluxserve.store.base import TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import State

POINTS, MANY = 12, 200
TASKS = 60
CALLERS = 4


@dataclass
class Life:
    """A recorded life, and when callers were told what: a task's id accepted, ready, cancelled."""

    folder: Path
    calls: list[power.Call]
    told: list[tuple[float, str, str]] = field(default_factory=list)

    def told_by(self, at: float) -> dict[str, str]:
        """What callers knew of each task, the last word."""
        return {task_id: word for when, task_id, word in sorted(self.told) if when <= at}


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    if reason := power.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("power")
    server = Server(data_dir=folder / "data", settings={"workers": "2", "fake_latency": "0.02"})
    record = folder / "record"
    server.wrapper = power.recording(record)
    told: list[tuple[float, str, str]] = []
    try:
        server.start()
        callers = [threading.Thread(target=_call, args=(server, number, told)) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        server.kill_tree()
    finally:
        server.close()
    return Life(folder=folder / "data", calls=power.calls(record, folder / "data"), told=told)


def _call(server: Server, number: int, told: list[tuple[float, str, str]]) -> None:
    """A caller's tasks, one after the other; every fifth is cancelled, the others awaited, some not."""
    with server.client() as client:
        for turn in range(TASKS // CALLERS):
            answer = client.post("/v1/flux-dev", json={"prompt": f"{number} {turn}", "width": 256, "height": 256})
            assert answer.status_code == 200
            task_id = answer.json()["id"]
            told.append((time.time(), task_id, "accepted"))
            if turn % 5 == 4:
                word = client.post(f"/v1/tasks/{task_id}/cancel").json()["status"]
                told.append((time.time(), task_id, "cancelled" if word == "Error" else "ready"))
            elif turn % 3:
                url = answer.json()["polling_url"]
                while client.get(f"{url}&wait=5").json()["status"] != "Ready":
                    pass
                told.append((time.time(), task_id, "ready"))


def moments(life: Life, number: int) -> list[float]:
    """Half of them just after somebody was told something, half anywhere between two calls."""
    rng = Random(4)
    first = min(when for when, _, _ in life.told)
    inside = [call.ended for call in life.calls if call.ended > first]
    after = [when for when, _, _ in life.told]
    return sorted(rng.choices(after, k=number // 2) + rng.choices(inside, k=number - number // 2))


def read(folder: Path, task_ids: Sequence[str]) -> tuple[list[str], dict[str, TaskRecord]]:
    """What is wrong with the books, and those tasks that are there."""

    async def look() -> tuple[list[str], dict[str, TaskRecord]]:
        store = SqliteStore(folder / "fluxserve.db")
        try:
            records = await store.get_many(task_ids)
            return await store.fsck(), {record.id: record for record in records if record is not None}
        finally:
            await store.close()

    return asyncio.run(look())


def broken_promises(life: Life, left: Path, at: float) -> list[str]:
    """What callers were told before and is not so on what is left."""
    told = life.told_by(at)
    try:
        faults, records = read(left, list(told))
    except Exception as error:  # noqa: BLE001 - a database that cannot be opened breaks every promise
        return [f"cannot be opened: {error!r}"]
    broken = list(faults)
    for task_id, word in told.items():
        record = records.get(task_id)
        if record is None:
            broken.append(f"{word} task {task_id} is not there")
        elif word == "ready" and record.state is not State.READY:
            broken.append(f"ready task {task_id} is {record.state}")
        elif word == "cancelled" and record.state is not State.CANCELLED:
            broken.append(f"cancelled task {task_id} is {record.state}")
    for record in records.values():
        if record.state is State.READY:
            name = record.object_name or ""
            drawn = list((left / "results").rglob(name))
            kept = list((life.folder / "results").rglob(name))
            if len(drawn) != 1 or drawn[0].read_bytes() != kept[0].read_bytes():
                broken.append(f"the picture of {record.id} is not whole")
    return broken


@pytest.fixture
def points(long: bool) -> int:
    return MANY if long else POINTS


@pytest.mark.parametrize("by_chance", [False, True], ids=["nothing unsynced is kept", "some of it is"])
def test_what_callers_were_told_is_true_after_power_was_lost(
    life: Life, points: int, by_chance: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, at in enumerate(moments(life, points)):
        left = tmp_path / "left"
        power.lost(life.calls, at, left, rng=Random(number) if by_chance else None)
        assert broken_promises(life, left, at) == [], f"moment {number}"
        shutil.rmtree(left)
    with capsys.disabled():
        print(f"\n  {points} moments, {len(life.told)} things told, {len(life.calls):,} calls on files: nothing lost")


def test_a_disk_that_syncs_nothing_is_found_out(life: Life, tmp_path: Path) -> None:
    """The same proof fails where it has to."""
    found = 0
    for number, at in enumerate(moments(life, POINTS)):
        left = tmp_path / f"left{number}"
        power.lost(life.calls, at, left, rng=Random(number), lies=True)
        found += bool(broken_promises(life, left, at))
    assert found > POINTS / 2


def test_a_server_goes_on_from_what_is_left(life: Life, tmp_path: Path) -> None:
    at = moments(life, POINTS)[POINTS // 2]
    server = Server(data_dir=tmp_path / "data", settings={"workers": "2"})
    power.lost(life.calls, at, server.data_dir, rng=None)
    try:
        server.start()
        for task_id, word in life.told_by(at).items():
            ended = server.wait(task_id)["status"]
            # A task that nobody had been told the end of may have been cancelled.
            assert ended == {"ready": "Ready", "cancelled": "Error"}.get(word, ended)
        assert server.command("fsck").returncode == 0
    finally:
        server.close()
