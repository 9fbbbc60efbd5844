"""Waypoints on the server: checked, kept within their budget, read for the next worker, gone with their tasks."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, REASON, in_event_loop
from fluxserve.delivery.storage import new_object_name
from fluxserve.engine.waypoint import Waypoint, encode
from fluxserve.errors import StoreUnavailable
from fluxserve.service.housekeeping import ORPHAN_AGE_S
from fluxserve.service.service import Lost
from fluxserve.settings import Settings
from fluxserve.store.base import NewWaypoint, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import MAX_ATTEMPTS, State

STEPS = 28
#: A little more than a waypoint of these tests takes.
SIZE = 1300
MINE = dict.fromkeys(("flux-dev",), "f1")
OTHERS = dict.fromkeys(("flux-dev",), "f2")


def written(task: TaskRecord, step: int = 5, *, fingerprint: str = "f1") -> bytes:
    """What a worker sends."""
    reached = Waypoint(
        fingerprint=fingerprint,
        step=step,
        sigmas=tuple(1 - number / STEPS for number in range(STEPS + 1)),
        shape=(1, 16, 4),
        latents=struct.pack("<64f", *range(step, step + 64)),
    )
    return encode(reached, task.generation)


async def keep(house: House, task: TaskRecord, step: int = 5, *, data: bytes | None = None) -> bytes:
    """A worker of f1 writes its claim down."""
    data = written(task, step) if data is None else data
    await house.service.keep_waypoint(task.id, task.fence, task.generation, "f1", data)
    return data


async def running(house: House) -> TaskRecord:
    """A claimed task."""
    await house.submit(await house.key())
    return await house.claim()


def files(house: House) -> list[str]:
    """Every stored waypoint."""
    return sorted(house.waypoint_storage.names_older_than(float("inf")))


async def steps_kept(house: House) -> list[int]:
    """As they are written down."""
    return [kept.step for kept in await house.store.waypoints()]


async def progress(house: House, task: TaskRecord) -> float:
    """What a poll shows."""
    view = await house.service.look(task.id)
    assert view is not None
    return view.progress


@in_event_loop
async def test_what_a_worker_wrote_down_is_what_the_next_one_gets(house: House) -> None:
    task = await running(house)
    first = await keep(house, task, 5)
    assert await house.service.read_waypoint(task, MINE) == first
    second = await keep(house, task, 9)
    await house.service.release([Lost(task_id=task.id, fence=task.fence)])
    again = await house.claim("w2")
    assert again.id == task.id
    assert await house.service.read_waypoint(again, MINE) == second
    assert len(files(house)) == 1


@in_event_loop
async def test_a_worker_of_another_kind_gets_nothing_to_go_on_from(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    task = await running(house)
    data = await keep(house, task)
    for fingerprints in (OTHERS, {}, {"flux-schnell": "f1"}):
        assert await house.service.read_waypoint(task, fingerprints) is None
    assert caplog.text.count("Task starts over") == 3
    assert await house.service.read_waypoint(task, MINE) == data


@in_event_loop
async def test_a_task_is_kept_for_workers_of_its_kind_for_as_long_as_the_setting_says(house: House) -> None:
    task = await running(house)
    await keep(house, task)
    await house.service.release([Lost(task_id=task.id, fence=task.fence)])
    house.time += house.settings.waypoint_patience - 1
    assert await house.service.claim("w2", ("flux-dev",), 1, OTHERS) == []
    house.time += 1
    assert len(await house.service.claim("w2", ("flux-dev",), 1, OTHERS)) == 1


@pytest.mark.parametrize("restarted", [False, True])
@in_event_loop
async def test_progress_never_falls_below_the_waypoint(house: House, restarted: bool) -> None:
    task = await running(house)
    await keep(house, task, 7)
    house.service.advance(task.id, 9, STEPS)
    assert await progress(house, task) == 9 / STEPS
    if restarted:
        house.begin_anew()
        assert [record.id for record in await house.service.start()] == [task.id]
        assert await progress(house, task) == 7 / STEPS
    await house.service.release([Lost(task_id=task.id, fence=task.fence)])
    assert await progress(house, task) == 7 / STEPS
    await house.claim()
    assert await progress(house, task) == 7 / STEPS
    house.service.advance(task.id, 8, STEPS)
    assert await progress(house, task) == 8 / STEPS


@in_event_loop
async def test_a_new_server_knows_what_the_last_one_kept(house: House) -> None:
    task = await running(house)
    data = await keep(house, task)
    await house.store.close()
    house.open()
    await house.service.start()
    await house.service.release([Lost(task_id=task.id, fence=task.fence)])
    assert await house.service.read_waypoint(await house.claim(), MINE) == data


# What is refused


@pytest.mark.parametrize("kind", ["empty", "cut off", "of another step", "of another task", "of another fingerprint"])
@in_event_loop
async def test_a_waypoint_that_is_not_what_it_should_be_is_not_kept(
    house: House, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = await running(house)
    kept = await keep(house, task, 5)
    other = replace(task, generation=replace(task.generation, seed=task.generation.seed + 1))
    spoilt = {
        "empty": b"",
        "cut off": written(task, 9)[:-1],
        "of another step": written(task, 9).replace(b'"step":"9"', b'"step":"8"'),
        "of another task": written(other, 9),
        "of another fingerprint": written(task, 9, fingerprint="f2"),
    }[kind]
    await keep(house, task, data=spoilt)
    assert caplog.text.count("A waypoint was not kept") == 1
    assert await steps_kept(house) == [5]
    assert await house.service.read_waypoint(task, MINE) == kept


@in_event_loop
async def test_a_waypoint_of_a_lost_claim_leaves_no_file(house: House) -> None:
    task = await running(house)
    kept = await keep(house, task, 5)
    await house.service.release([Lost(task_id=task.id, fence=task.fence)])
    again = await house.claim()
    await keep(house, task, 9)
    assert len(files(house)) == 1
    assert await house.service.read_waypoint(again, MINE) == kept


@pytest.mark.parametrize("damage", ["gone", "cut off", "one byte changed", "a folder"])
@in_event_loop
async def test_a_damaged_file_means_a_line_in_the_log_and_a_task_that_starts_over(
    house: House, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = await running(house)
    data = await keep(house, task)
    (name,) = files(house)
    path = house.folder / "waypoints" / name
    path.unlink()
    if damage == "cut off":
        path.write_bytes(data[:-9])
    elif damage == "one byte changed":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "a folder":
        path.mkdir()
    assert await house.service.read_waypoint(task, MINE) is None
    assert caplog.text.count("its waypoint is of no use") == 1
    assert await steps_kept(house) == []
    assert await house.service.read_waypoint(task, MINE) is None
    await keep(house, task, 9)
    assert await steps_kept(house) == [9]


# The end


@pytest.mark.parametrize("end", ["complete", "fail", "cancel", "give up"])
@in_event_loop
async def test_the_end_of_a_task_deletes_its_file(house: House, end: str) -> None:
    other = await running(house)
    await keep(house, other)
    task = await running(house)
    await keep(house, task)
    assert len(files(house)) == 2
    if end == "complete":
        assert await house.service.complete(task.id, task.fence, task.generation, b"picture", DRAWN)
    elif end == "fail":
        assert await house.service.fail(task.id, task.fence, REASON)
    elif end == "cancel":
        assert await house.service.cancel(task.id, task.account_id)
    else:
        for _ in range(MAX_ATTEMPTS):
            await house.service.release([Lost(task_id=task.id, fence=task.fence, suspected=True)])
            claims = await house.service.claim("w2", ("flux-dev",), 1, MINE)
            task = claims[0] if claims else task
    view = await house.service.look(task.id)
    assert view is not None
    assert view.state.is_final
    assert [kept.task_id for kept in await house.store.waypoints()] == [other.id]
    assert len(files(house)) == 1


@in_event_loop
async def test_whoever_takes_the_place_of_a_cancelled_task_goes_on_where_it_stood(house: House) -> None:
    key = await house.key()
    leader = await house.submit(key, {"seed": 1})
    follower = await house.submit(key, {"seed": 1})
    task = await house.claim()
    assert task.id == leader.id
    data = await keep(house, task, 14)
    assert await house.service.cancel(task.id, task.account_id)
    again = await house.claim("w2")
    assert again.id == follower.id
    assert await progress(house, again) == 14 / STEPS
    assert await house.service.read_waypoint(again, MINE) == data
    assert await house.service.complete(again.id, again.fence, again.generation, b"picture", DRAWN)
    assert (await house.store.waypoints(), files(house)) == ([], [])


# The budget and the disk


def small(tmp_path: Path, *, waypoints: int) -> House:
    """A house whose budget is so many waypoints of these tests."""
    return House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, waypoint_budget=waypoints * SIZE))


@in_event_loop
async def test_over_the_budget_the_oldest_waypoints_go_and_their_tasks_start_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    house = small(tmp_path, waypoints=3)
    tasks = [await running(house) for _ in range(5)]
    for task in (*tasks[:3], tasks[0]):  # the first is written down again: now the second is the oldest
        await keep(house, task)
    assert len(files(house)) == 3
    await keep(house, tasks[3])
    assert {kept.task_id for kept in await house.store.waypoints()} == {tasks[index].id for index in (0, 2, 3)}
    await keep(house, tasks[4])
    assert {kept.task_id for kept in await house.store.waypoints()} == {tasks[index].id for index in (0, 3, 4)}
    assert len(files(house)) == 3
    assert caplog.text.count("Waypoint dropped") == 2
    assert await house.service.read_waypoint(tasks[1], MINE) is None
    assert not house.service.has_waypoint(tasks[1].id)
    await house.store.close()


@in_event_loop
async def test_what_is_written_at_once_stays_within_the_budget(tmp_path: Path) -> None:
    house = small(tmp_path, waypoints=3)
    tasks = [await running(house) for _ in range(8)]
    await asyncio.gather(*[keep(house, task, step) for step in (3, 4) for task in tasks])
    assert len(files(house)) == 3
    assert sum((house.folder / "waypoints" / name).stat().st_size for name in files(house)) <= 3 * SIZE
    assert len(await house.store.waypoints()) == 3
    await house.store.close()


@in_event_loop
async def test_a_waypoint_over_the_whole_budget_is_not_kept_and_takes_no_other_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = small(tmp_path, waypoints=1)
    task, large = await running(house), await running(house)
    await keep(house, task)
    huge = Waypoint(
        fingerprint="f1",
        step=1,
        sigmas=(1.0, 0.5, 0.0),
        shape=(1, 1000, 1),
        latents=struct.pack("<1000f", *range(1000)),
    )
    await keep(house, large, data=encode(huge, large.generation))
    assert [record.reason for record in caplog.records] == ["It alone is over the budget."]  # type: ignore[attr-defined]
    assert [kept.task_id for kept in await house.store.waypoints()] == [task.id]
    await house.store.close()


@in_event_loop
async def test_without_a_budget_workers_are_not_asked_to_write_anything_down(tmp_path: Path) -> None:
    house = small(tmp_path, waypoints=0)
    assert house.service.waypoint_interval is None
    await house.store.close()


@in_event_loop
async def test_the_last_room_on_the_disk_is_for_pictures(tmp_path: Path) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0))
    task = await running(house)
    full = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=2**62))
    await keep(full, task)
    assert files(full) == []
    for one in (house, full):
        await one.store.close()


class Busy(SqliteStore):
    """A store that cannot take waypoints."""

    async def keep_waypoints(self, waypoints: Sequence[NewWaypoint]) -> list[bool]:
        """Refuse."""
        raise StoreUnavailable(f"Another program holds the database: {len(waypoints)} waypoints lost.")


@in_event_loop
async def test_a_store_in_trouble_costs_a_waypoint_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0), Busy)
    task = await running(house)
    await keep(house, task)
    assert "A waypoint was not kept" in caplog.text
    assert files(house) == []
    assert await house.service.complete(task.id, task.fence, task.generation, b"picture", DRAWN)
    await house.store.close()


@in_event_loop
async def test_a_folder_that_cannot_be_written_costs_a_waypoint_and_nothing_else(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    task = await running(house)
    (house.folder / "waypoints" / "tmp").rmdir()
    await keep(house, task)
    assert "A waypoint was not kept" in caplog.text
    view = await house.service.look(task.id)
    assert view is not None
    assert view.state is State.RUNNING


# Leftovers


@in_event_loop
async def test_files_that_nothing_refers_to_are_swept_when_they_are_old(house: House) -> None:
    task = await running(house)
    await keep(house, task)
    (kept,) = files(house)
    orphan, fresh = new_object_name("safetensors"), new_object_name("safetensors")
    for name, age in ((kept, 10**6), (orphan, ORPHAN_AGE_S + 1), (fresh, ORPHAN_AGE_S - 1)):
        if name != kept:
            house.waypoint_storage.put(name, b"left behind")
        os.utime(house.folder / "waypoints" / name, (house.time - age, house.time - age))
    await house.sweeper.sweep()
    assert files(house) == sorted([kept, fresh])
