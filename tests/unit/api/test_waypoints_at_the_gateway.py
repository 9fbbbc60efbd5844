"""Waypoints between workers and server: written down under a claim, handed to the worker that goes on."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from gateway_house import ByHand, GatewayHouse, gateway_house

from builders import HARMLESS, generation, in_event_loop
from fluxserve.delivery.storage import LocalStorage
from fluxserve.engine.waypoint import Waypoint, encode
from fluxserve.service.service import Lost
from fluxserve.store.base import NewWaypoint
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker import protocol as p

STEPS = generation().steps


def waypoint(held: p.Held, step: int = 5, *, fingerprint: str = "f1") -> p.Waypoint:
    """What a worker sends of its claim; every task here is of one generation."""
    reached = Waypoint(
        fingerprint=fingerprint,
        step=step,
        sigmas=tuple(1 - number / STEPS for number in range(STEPS + 1)),
        shape=(1, 16, 4),
        latents=struct.pack("<64f", *range(step, step + 64)),
    )
    return p.Waypoint(task_id=held.task_id, fence=held.fence, data=encode(reached, generation()))


async def begin(house: GatewayHouse, name: str = "w1", *, count: int = 1, **about: str) -> tuple[ByHand, list[p.Held]]:
    """A worker that draws so many new tasks."""
    worker = await house.connect(name, capacity=count, **about)
    worker.send(p.Want(count=count))
    await house.submit(count)
    held = await worker.gets(count)
    for one in held:
        worker.send(p.Progress(task_id=one.task_id, fence=one.fence, step=0, steps=STEPS))
    return worker, held


async def until_kept(house: GatewayHouse, steps: list[int]) -> None:
    """The steps of all waypoints, as they are written down."""
    async with asyncio.timeout(5.0):
        while sorted(kept.step for kept in await house.store.waypoints()) != steps:
            pass


async def hang_up(house: GatewayHouse, worker: ByHand) -> None:
    """The worker is gone, and its lease too."""
    held = [p.Held(task_id=one.task_id, fence=one.fence) for one in worker.assigned]
    worker.writer.close()
    async with asyncio.timeout(5.0):
        while house.gateway.is_connected("w1"):
            await house.store.waypoints()
    await house.service.release([Lost(task_id=one.task_id, fence=one.fence) for one in held])


def files(house: GatewayHouse) -> list[str]:
    return list(house.waypoint_storage.names_older_than(float("inf")))


@in_event_loop
async def test_a_worker_is_told_how_often_to_write_down(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        assert worker.welcome is not None
        assert worker.welcome.waypoint_interval == house.settings.waypoint_interval


@in_event_loop
async def test_the_next_worker_of_the_fingerprint_gets_what_the_last_one_wrote(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        assert worker.assigned[0].waypoint is None
        for step in (5, 9):
            worker.send(waypoint(held, step))
        await until_kept(house, [9])
        await hang_up(house, worker)
        other = await house.connect("w2")
        other.send(p.Want(count=1))
        (again,) = await other.gets(1)
        assert (again.task_id, again.fence) == (held.task_id, 2)
        assert other.assigned[0].waypoint == waypoint(held, 9).data


@in_event_loop
async def test_a_worker_of_another_fingerprint_gets_the_tasks_behind(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        worker.send(waypoint(held))
        await until_kept(house, [5])
        await hang_up(house, worker)
        stranger = await house.connect("w2", capacity=2, fingerprint="f2")
        stranger.send(p.Want(count=2))
        (behind,) = await house.submit()
        assert [one.task_id for one in await stranger.gets(1)] == [behind]
        assert await stranger.settle_down() == 1
        friend = await house.connect("w3")
        friend.send(p.Want(count=1))
        assert [one.task_id for one in await friend.gets(1)] == [held.task_id]


@in_event_loop
async def test_tasks_with_and_without_waypoints_come_in_one_claim(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, held = await begin(house, count=4)
        for number, one in enumerate(held[:2]):
            worker.send(waypoint(one, 5 + number))
        await until_kept(house, [5, 6])
        await hang_up(house, worker)
        other = await house.connect("w2", capacity=4)
        other.send(p.Want(count=4))
        await other.gets(4)
        data = {one.task_id: one.waypoint for one in other.assigned}
        assert data == {
            held[0].task_id: waypoint(held[0], 5).data,
            held[1].task_id: waypoint(held[1], 6).data,
            held[2].task_id: None,
            held[3].task_id: None,
        }


@in_event_loop
async def test_progress_is_not_lost_when_the_next_worker_takes_the_task_in(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        worker.send(waypoint(held, 9))
        await until_kept(house, [9])
        await hang_up(house, worker)
        other = await house.connect("w2")
        other.send(p.Want(count=1))
        (again,) = await other.gets(1)
        other.send(p.Progress(task_id=again.task_id, fence=again.fence, step=0, steps=STEPS))
        other.send(p.Want(count=0))
        await other.settle_down()
        view = house.service.views.get(held.task_id)
        assert view is not None
        assert view.progress == 9 / STEPS


@pytest.mark.parametrize("spoilt", [b"", b"\xff" * 2000, waypoint(p.Held(task_id="", fence=0), fingerprint="f2").data])
@in_event_loop
async def test_nonsense_costs_the_worker_its_waypoint_and_nothing_else(tmp_path: Path, spoilt: bytes) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        worker.send(p.Waypoint(task_id=held.task_id, fence=held.fence, data=spoilt))
        worker.send(finished(held))
        assert await worker.next(p.Settled) == p.Settled(task_id=held.task_id, fence=1, accepted=True)
        assert files(house) == []


def finished(held: p.Held) -> p.Finished:
    return p.Finished(
        task_id=held.task_id,
        fence=held.fence,
        picture=b"picture",
        drawn_by="hand",
        duration=1.0,
        facts={},
        scores=HARMLESS,
    )


@in_event_loop
async def test_only_the_holder_of_a_task_writes_it_down(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        other = await house.connect("w2")
        other.send(waypoint(held, 9))
        worker.send(waypoint(p.Held(task_id=held.task_id, fence=2), 9))
        worker.send(waypoint(p.Held(task_id="unknown", fence=1), 9))
        worker.send(waypoint(held, 5))
        await until_kept(house, [5])
        await other.settle_down()
        await until_kept(house, [5])
        assert len(files(house)) == 1


@in_event_loop
async def test_the_end_of_a_task_leaves_nothing_of_its_waypoint(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        for step in range(1, 20):
            worker.send(waypoint(held, step))
        worker.send(finished(held))
        await worker.next(p.Settled)
        await house.gateway.write_down_all(5.0)
        assert await house.store.waypoints() == []
        assert files(house) == []


@in_event_loop
async def test_a_task_whose_drawing_failed_has_ended_and_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, (held,) = await begin(house)
        worker.send(waypoint(held))
        worker.send(p.Failed(task_id=held.task_id, fence=1, code="BadPicture", message="One colour."))
        await worker.next(p.Settled)
        await house.gateway.write_down_all(5.0)
        assert await house.store.waypoints() == []
        assert files(house) == []
        assert await house.store.active() == []


class Slow(SqliteStore):
    """A store that keeps waypoints when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.written: list[int] = []

    async def keep_waypoints(self, waypoints: Sequence[NewWaypoint]) -> list[bool]:
        """Wait, then write down."""
        self.written += [new.waypoint.step for new in waypoints]
        self.asked.set()
        await self.go_on.wait()
        return await super().keep_waypoints(waypoints)


@in_event_loop
async def test_what_was_sent_before_a_worker_died_is_written_down_before_its_task_goes_on(tmp_path: Path) -> None:
    """A local worker's death shows in its closed connection, and its tasks go back at once."""
    async with gateway_house(tmp_path, Slow, local=True) as house:
        assert isinstance(house.store, Slow)
        other = await house.connect("local-2")
        worker, (held,) = await begin(house, "local-1")
        worker.send(waypoint(held, 5))
        await house.store.asked.wait()
        for step in (6, 7):
            worker.send(waypoint(held, step))
        worker.writer.close()
        async with asyncio.timeout(5.0):
            while house.gateway.is_connected("local-1"):
                await house.store.waypoints()
        assert await house.state(held.task_id) == ("running", 1)
        house.store.go_on.set()
        other.send(p.Want(count=1))
        await other.gets(1)
        assert other.assigned[0].waypoint == waypoint(held, 7).data
        assert house.store.written == [5, 7]  # of those that came while one was written, the newest


class SlowToOpen(LocalStorage):
    """A storage whose files are opened when it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.loop = asyncio.get_running_loop()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    def open(self, object_name: str) -> object:  # type: ignore[override]
        """Wait, then open."""
        self.loop.call_soon_threadsafe(self.asked.set)
        asyncio.run_coroutine_threadsafe(self.go_on.wait(), self.loop).result(5.0)
        return super().open(object_name)


@in_event_loop
async def test_a_task_that_is_cancelled_while_its_waypoint_is_read_reaches_no_worker(tmp_path: Path) -> None:
    storage = SlowToOpen(tmp_path / "waypoints")
    async with gateway_house(tmp_path, waypoint_storage=storage) as house:
        worker, (held,) = await begin(house)
        worker.send(waypoint(held))
        await until_kept(house, [5])
        await hang_up(house, worker)
        other = await house.connect("w2")
        other.send(p.Want(count=1))
        await asyncio.wait_for(storage.asked.wait(), 5.0)
        (record,) = await house.store.get_many([held.task_id])
        assert record is not None
        await house.service.cancel(held.task_id, record.account_id)
        storage.go_on.set()
        assert await other.next(p.Discard) == p.Discard(task_id=held.task_id, fence=2)
        assert await other.settle_down() == 0
