"""A real worker behind a real gateway: tasks are cancelled at every stage, and their neighbours stay as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from gateway_house import PATIENCE_S, TOKEN, GatewayHouse, gateway_house

from builders import in_event_loop
from fluxserve.catalogue import Generation
from fluxserve.engine.base import NO_PICTURES, Event, Pixels, Progressed
from fluxserve.engine.fake import FakeEngine
from fluxserve.moderation.fake import FakeClassifier
from fluxserve.settings import Settings
from fluxserve.worker.loop import Worker

STEPS = 5
SETTINGS = Settings(fake_latency=1.0, fake_steps=STEPS)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched(FakeEngine):
    """Remembers how many steps each generation has made."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(SETTINGS, clock=clock)
        self.clock = clock
        self.made: dict[str, int] = {}

    def admit(
        self,
        ref: str,
        generation: Generation,
        waypoint: bytes | None = None,
        *,
        pictures: Mapping[str, Pixels] = NO_PICTURES,
        turn: float = 0.0,
        flow: str = "",
    ) -> None:
        """Take it in."""
        super().admit(ref, generation, waypoint, pictures=pictures, turn=turn, flow=flow)
        self.made[ref] = 0

    def step(self) -> Sequence[Event]:
        """Advance, and look who did."""
        events = super().step()
        self.made |= {event.ref: event.step for event in events if isinstance(event, Progressed)}
        return events


@asynccontextmanager
async def working(house: GatewayHouse, engine: Watched) -> AsyncIterator[None]:
    """A worker with this engine, connected to the house."""
    server = await asyncio.start_server(house.gateway.serve_remote, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    worker = Worker(
        engine=engine,
        settings=SETTINGS,
        server=f"tcp:{host}:{port}",
        worker_id="w1",
        token=TOKEN,
        parented=False,
        classifier=FakeClassifier(),
    )
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        server.close()


async def until(house: GatewayHouse, happens: Callable[[], bool]) -> None:
    """Wait, and let the others work."""
    async with asyncio.timeout(PATIENCE_S):
        while not happens():
            await house.store.lapsed(0.0)


async def until_made(house: GatewayHouse, engine: Watched, task_id: str, steps: int) -> None:
    """Wait until the engine has brought a task so far."""
    await until(house, lambda: engine.made.get(f"{task_id}/1", -1) >= steps)


async def pixels_of(house: GatewayHouse, engine: Watched, task_id: str) -> object:
    """Let a task be drawn to its end; the digest of its pixels."""
    await until_made(house, engine, task_id, 0)
    engine.clock.now += SETTINGS.fake_latency
    async with asyncio.timeout(PATIENCE_S):
        while (await house.state(task_id))[0] != "ready":
            pass
    (record,) = await house.store.get_many([task_id])
    assert record is not None
    assert record.drawn is not None
    return record.drawn.facts["pixels_sha256"]


async def cancel_one_of_three(house: GatewayHouse, engine: Watched, step: int | None) -> set[object]:
    """Cancel the second after `step` steps, None: before the engine knows it; the pixels of the others."""
    left, gone, right = await house.submit(3)
    if step is not None:
        for task_id in (left, gone, right):
            await until_made(house, engine, task_id, 0)
        engine.clock.now += step * SETTINGS.fake_latency / STEPS
        await until_made(house, engine, gone, step)
    (record,) = await house.store.get_many([gone])
    assert record is not None
    view = await house.service.cancel(gone, record.account_id)
    assert view is not None
    assert view.state == "cancelled"
    pixels = {await pixels_of(house, engine, task_id) for task_id in (left, right)}
    assert (await house.state(gone))[0] == "cancelled"
    return pixels


@pytest.mark.parametrize("step", [None, *range(STEPS)])
@in_event_loop
async def test_whenever_a_task_is_cancelled_its_neighbours_pixels_stay_and_its_worker_has_room_again(
    tmp_path: Path, step: int | None, long: bool
) -> None:
    engine = Watched(Clock())
    async with gateway_house(tmp_path) as house, working(house, engine):
        (alone,) = await house.submit()
        expected = await pixels_of(house, engine, alone)
        for _ in range(40 if long else 3):
            assert await cancel_one_of_three(house, engine, step) == {expected}
        await until(house, lambda: engine.active == 0 and len(house.service.views) == 0)
