"""Retention: pictures go first, tasks later, leftovers too; nothing that is still needed goes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, NOW, in_event_loop
from fluxserve.delivery.storage import new_object_name
from fluxserve.service.housekeeping import BATCH, ORPHAN_AGE_S
from fluxserve.settings import Settings
from fluxserve.tasks.task import State


@in_event_loop
async def test_a_picture_goes_after_its_retention_and_its_task_stays(house: House) -> None:
    task = await house.ready(await house.key())
    house.time += house.settings.picture_retention
    await house.sweeper.sweep()
    assert house.pictures() == [task.object_name]

    house.time += 1
    await house.sweeper.sweep()

    assert house.pictures() == []
    view = await house.service.look(task.id)
    assert view is not None
    assert view.record is not None
    assert (view.state, view.record.object_name) == (State.READY, None)


@in_event_loop
async def test_a_finished_task_goes_after_its_retention_and_polls_know_it_no_more(house: House) -> None:
    key = await house.key(grant=10_000)
    task = await house.ready(key)
    waiting = await house.submit(key)
    house.time += house.settings.task_retention
    await house.sweeper.sweep()
    assert await house.service.look(task.id) is not None

    house.time += 1
    await house.sweeper.sweep()

    assert await house.service.look(task.id) is None
    assert await house.service.look(waiting.id) is not None
    assert [entry.balance for entry in await house.keyring.entries()] == [5000]


@in_event_loop
async def test_an_unfinished_task_never_goes(house: House) -> None:
    task = await house.submit(await house.key())
    await house.claim()
    house.time += 10 * house.settings.task_retention
    await house.sweeper.sweep()
    view = await house.service.look(task.id)
    assert view is not None
    assert view.state is State.RUNNING


@in_event_loop
async def test_one_sweep_takes_everything_however_much_it_is(house: House) -> None:
    key = await house.key()
    for _ in range(BATCH // 100 + 3):
        await asyncio.gather(*[house.submit(key) for _ in range(100)])
    while records := await house.service.claim("w1", ("flux-dev",), 100, {}):
        await asyncio.gather(
            *[house.service.complete(record.id, record.fence, record.generation, b"p", DRAWN) for record in records]
        )
    assert len(house.pictures()) == 800
    house.time += house.settings.task_retention + 1
    await house.sweeper.sweep()
    assert house.pictures() == []
    assert await house.store.old_pictures(house.time + 1, 10) == []


@in_event_loop
async def test_a_picture_that_belongs_to_no_task_goes_when_it_is_old_enough(house: House) -> None:
    task = await house.ready(await house.key())
    orphan, fresh = new_object_name("jpeg"), new_object_name("png")
    for name in (orphan, fresh):
        house.storage.put(name, b"left behind")
    for name, age in ((orphan, ORPHAN_AGE_S + 1), (fresh, ORPHAN_AGE_S - 1), (task.object_name or "", 10**6)):
        written = house.time - age
        os.utime(house.folder / "pictures" / name, (written, written))

    await house.sweeper.sweep()

    assert house.pictures() == sorted([fresh, task.object_name or ""])


@in_event_loop
async def test_a_picture_that_was_deleted_by_hand_stops_no_sweep(house: House) -> None:
    task = await house.ready(await house.key())
    (house.folder / "pictures" / (task.object_name or "")).unlink()
    house.time += house.settings.picture_retention + 1
    await house.sweeper.sweep()
    assert await house.store.old_pictures(house.time, 10) == []


@in_event_loop
async def test_a_picture_that_cannot_be_deleted_keeps_no_other_and_goes_when_it_can(house: House) -> None:
    key = await house.key()
    tasks = [await house.ready(key) for _ in range(3)]
    stuck = house.folder / "pictures" / (tasks[0].object_name or "")
    stuck.unlink()
    stuck.mkdir()
    house.time += house.settings.picture_retention + 1
    await house.sweeper.sweep()
    assert await house.store.old_pictures(house.time, 10) == []
    assert not any((house.folder / "pictures" / (task.object_name or "")).is_file() for task in tasks)
    stuck.rmdir()
    house.storage.put(tasks[0].object_name or "", b"still there")
    os.utime(stuck, (NOW, NOW))
    house.time = NOW + ORPHAN_AGE_S + house.settings.lease * 2 + 1
    await house.sweeper.sweep()
    assert house.pictures() == []


@in_event_loop
async def test_the_sweeper_goes_on_when_a_picture_cannot_be_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, sweep_interval=0.001))
    task = await house.ready(await house.key())
    picture = tmp_path / "pictures" / (task.object_name or "")
    picture.unlink()
    (picture / "a folder in its place").mkdir(parents=True)
    house.time += house.settings.picture_retention + 1
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await house.sweeper.run()
    assert "could not be deleted" in caplog.text
    await house.store.close()
