"""What a worker writes down of what it draws, and goes on from, against a server played by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest
from msgspec import structs
from worker_house import PATIENCE_S, TASK, hired

from builders import in_event_loop
from fluxserve.engine import waypoint
from fluxserve.engine.base import Event
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.holding import Holding


async def said(reader: asyncio.StreamReader) -> list[p.FromWorker]:
    """Everything up to the picture."""
    heard_so_far: list[p.FromWorker] = []
    async with asyncio.timeout(PATIENCE_S):
        while not (heard_so_far and isinstance(heard_so_far[-1], p.Finished)):
            message = await p.read_from_worker(reader)
            assert message is not None
            heard_so_far.append(message)
    return heard_so_far


def waypoints_in(messages: list[p.FromWorker]) -> list[bytes]:
    return [message.data for message in messages if isinstance(message, p.Waypoint)]


def steps_in(messages: list[p.FromWorker]) -> list[int]:
    return [message.step for message in messages if isinstance(message, p.Progress)]


class EachStep(FakeEngine):
    """An engine that makes one step at a time, as fast as it is asked."""

    def __init__(self, steps: int = 5) -> None:
        self.time = 0.0
        super().__init__(Settings(fake_steps=steps, fake_latency=1.0), clock=lambda: self.time, wait=lambda _: None)
        self._share = 1.0 / steps

    def step(self) -> Sequence[Event]:
        """The next one."""
        self.time += self._share
        return super().step()


@in_event_loop
async def test_a_worker_writes_down_each_step_but_the_last_where_its_server_asks_for_it() -> None:
    engine = EachStep()
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=(), waypoint_interval=0)) as (_, streams):
        streams[1].write(p.to_frame(p.Tasks(assignments=(TASK,))))
        messages = await said(streams[0])
    fingerprint = engine.fingerprints[TASK.generation.model]
    reached = [waypoint.decode(data, TASK.generation, fingerprint).step for data in waypoints_in(messages)]
    assert reached == [1, 2, 3, 4]


@pytest.mark.parametrize("interval", [None, 3600])
def test_a_worker_writes_nothing_down_before_its_time(interval: float | None) -> None:
    async def play() -> None:
        welcome = p.Welcome(heartbeat=60, lease=600, kept=(), waypoint_interval=interval)
        async with hired(EachStep(), welcome) as (_, streams):
            streams[1].write(p.to_frame(p.Tasks(assignments=(TASK,))))
            assert waypoints_in(await said(streams[0])) == []

    asyncio.run(play())


@in_event_loop
async def test_a_worker_goes_on_from_the_waypoint_that_comes_with_its_task() -> None:
    welcome = p.Welcome(heartbeat=60, lease=600, kept=(), waypoint_interval=0)
    async with hired(EachStep(), welcome) as (_, streams):
        streams[1].write(p.to_frame(p.Tasks(assignments=(TASK,))))
        first = await said(streams[0])
    data = waypoints_in(first)[2]
    async with hired(EachStep(), welcome) as (_, streams):
        streams[1].write(p.to_frame(p.Tasks(assignments=(structs.replace(TASK, waypoint=data),))))
        second = await said(streams[0])
    assert steps_in(second) == [0, 4, 5]
    assert waypoints_in(second) == waypoints_in(first)[3:]
    assert isinstance(first[-1], p.Finished)
    assert isinstance(second[-1], p.Finished)
    assert second[-1].picture == first[-1].picture


@in_event_loop
async def test_a_worker_whose_task_comes_with_nonsense_draws_it_from_the_start() -> None:
    async with hired(EachStep(), p.Welcome(heartbeat=60, lease=600, kept=())) as (_, streams):
        streams[1].write(p.to_frame(p.Tasks(assignments=(structs.replace(TASK, waypoint=b"nonsense"),))))
        messages = await said(streams[0])
    assert steps_in(messages)[:2] == [0, 1]
    assert isinstance(messages[-1], p.Finished)


class Large(EachStep):
    """An engine whose waypoints take a megabyte each."""

    def __init__(self) -> None:
        super().__init__(steps=100)
        self.is_done = threading.Event()

    def save(self, ref: str) -> bytes | None:
        """As it is, and much more."""
        saved = super().save(ref)
        return None if saved is None else saved + bytes(2**20)

    def step(self) -> Sequence[Event]:
        """Tell when there is nothing more to do."""
        events = super().step()
        if not self.active:
            self.is_done.set()
        return events


@in_event_loop
async def test_a_worker_writes_nothing_down_while_its_server_does_not_take_what_was_sent() -> None:
    """Else a server that stands still would fill the worker's memory."""
    engine = Large()
    crowd = tuple(structs.replace(TASK, task_id=f"t{number}") for number in range(8))
    welcome = p.Welcome(heartbeat=60, lease=600, kept=(), waypoint_interval=0)
    async with hired(engine, welcome) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=crowd)))
        assert await asyncio.to_thread(engine.is_done.wait, 60)
        messages: list[p.FromWorker] = []
        for _ in crowd:
            messages += await said(reader)
    assert 1 <= len(waypoints_in(messages)) <= 100  # of 792; the system's own buffers take some


@pytest.mark.parametrize(
    ("moved", "now", "interval", "due"),
    [
        (True, 104.9, 5.0, False),
        (True, 105.0, 5.0, True),
        (False, 500.0, 5.0, False),
        (True, 100.0, 0.0, True),
        (False, 100.0, 0.0, False),
    ],
)
def test_what_has_moved_is_written_down_once_its_interval_is_over(
    moved: bool, now: float, interval: float, due: bool
) -> None:
    assert Holding(TASK, saved_at=100.0, has_moved=moved).is_due(now, interval) is due
