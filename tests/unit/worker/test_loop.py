"""The worker's loop against a server played by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO

import pytest
from msgspec import structs
from PIL import Image
from worker_house import PATIENCE_S, SETTINGS, TASK, heard, hired

from builders import in_event_loop
from fluxserve.catalogue import Generation
from fluxserve.engine.base import NO_PICTURES, Event, Finished, Pixels
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams
from fluxserve.worker.holding import PREVIEW_INTERVAL_S
from fluxserve.worker.loop import ALONE_S, Worker


@in_event_loop
async def test_a_worker_wants_no_more_than_its_engine_holds() -> None:
    engine = FakeEngine(Settings(fake_latency=60, fake_steps=4))
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        crowd = tuple(structs.replace(TASK, task_id=f"t{number}") for number in range(3))
        assert await wanted(reader) == engine.capacity
        writer.write(p.to_frame(p.Tasks(assignments=crowd)))
        writer.write(p.to_frame(p.Discard(task_id="t0", fence=1)))
        assert await wanted(reader) == engine.capacity - 2


async def wanted(reader: asyncio.StreamReader) -> int:
    """How much the worker asks for next."""
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(message := await p.read_from_worker(reader), p.Want):
            pass
    return message.count


@pytest.mark.parametrize("welcome", [
    p.Welcome(heartbeat=0.02, lease=600, kept=()),
    p.Welcome(heartbeat=60, lease=0.06, kept=()),
])  # fmt: skip
def test_a_worker_is_heard_as_often_as_its_server_asks(welcome: p.Welcome) -> None:
    """Its own settings would leave it silent for a minute."""

    async def play() -> None:
        async with hired(FakeEngine(SETTINGS), welcome) as (_, (reader, _)):
            for _ in range(3):
                await heard(reader, p.Heartbeat)

    asyncio.run(play())


@in_event_loop
async def test_a_worker_that_is_told_to_discard_a_task_asks_for_another() -> None:
    async with hired(FakeEngine(SETTINGS), p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        await heard(reader, p.Want)
        writer.write(p.to_frame(p.Discard(task_id="never heard of", fence=1)))
        await heard(reader, p.Want)


class Grows(FakeEngine):
    """An engine whose tensors stay on the device."""

    @property
    def device_memory(self) -> int:
        """Too much."""
        return 2**30


@in_event_loop
async def test_a_worker_that_has_grown_too_large_gives_back_what_waits_finishes_what_runs_and_ends() -> None:
    settings = SETTINGS.model_copy(update={"device_memory": 2**20})
    engine = Grows(Settings(fake_latency=0.2, fake_steps=2))
    crowd = tuple(structs.replace(TASK, task_id=f"t{number}") for number in range(engine.capacity + 2))
    welcome = p.Welcome(heartbeat=60, lease=600, kept=())
    async with hired(engine, welcome, settings) as (running, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=crowd)))
        told: list[p.FromWorker] = []
        async with asyncio.timeout(PATIENCE_S):
            while (message := await p.read_from_worker(reader)) is not None:
                told.append(message)
                if isinstance(message, p.Finished):
                    writer.write(p.to_frame(p.Settled(task_id=message.task_id, fence=1, accepted=True)))
            await running
    (returned,) = [message for message in told if isinstance(message, p.Returned)]
    finished = [message.task_id for message in told if isinstance(message, p.Finished)]
    assert len(finished) >= engine.capacity
    assert sorted([*finished, *(held.task_id for held in returned.held)]) == sorted(one.task_id for one in crowd)
    assert not any(isinstance(message, p.Want) for message in told[told.index(returned) :])


@in_event_loop
async def test_a_limit_below_what_the_networks_take_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    for limit, told in ((2**20 - 1, True), (2**20, False)):
        caplog.clear()
        settings = SETTINGS.model_copy(update={"device_memory": limit})
        async with hired(HoldsAMegabyte(Settings()), p.Welcome(heartbeat=60, lease=600, kept=()), settings):
            assert ("cost a new worker" in caplog.text) == told


class HoldsAMegabyte(FakeEngine):
    """An engine that takes memory before it draws."""

    @property
    def device_memory(self) -> int:
        """Of its networks."""
        return 2**20


class Spends(FakeEngine):
    """An engine that ran out of memory over its first task for good when that has made a step, and still draws it."""

    def step(self) -> Sequence[Event]:
        """The fake's."""
        told = super().step()
        self._spent_on |= {event.ref for event in told if event.ref == "t0/1"}
        return told


async def until_it_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[p.FromWorker]:
    """All that the worker says; outcomes are settled."""
    told: list[p.FromWorker] = []
    async with asyncio.timeout(PATIENCE_S):
        while (message := await p.read_from_worker(reader)) is not None:
            told.append(message)
            if isinstance(message, p.Finished | p.Failed):
                writer.write(p.to_frame(p.Settled(task_id=message.task_id, fence=1, accepted=True)))
    return told


@pytest.mark.parametrize(("engine_class", "prompt"), [(Spends, "an apple"), (FakeEngine, "[[spend:2]]")])
@in_event_loop
async def test_a_worker_whose_process_is_spent_ends_what_spent_it_hands_on_all_else_and_makes_way(
    engine_class: type[FakeEngine], prompt: str
) -> None:
    now = [0.0]  # moved by waiting alone, so that all step together
    engine = engine_class(
        Settings(fake_latency=0.4, fake_steps=4),
        clock=lambda: now[0],
        wait=lambda seconds: now.__setitem__(0, now[0] + seconds),
    )
    stuck = structs.replace(TASK, task_id="t0", generation=replace(TASK.generation, prompt=prompt))
    crowd = [stuck, *(structs.replace(TASK, task_id=f"t{number}") for number in range(1, engine.capacity + 2))]
    welcome = p.Welcome(heartbeat=60, lease=600, kept=(), waypoint_interval=60)
    async with hired(engine, welcome) as (running, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=tuple(crowd))))
        told = await until_it_ends(reader, writer)
        await running
    (outcome,) = [message for message in told if isinstance(message, p.Finished | p.Failed)]
    assert outcome.task_id == "t0"
    assert isinstance(outcome, p.Failed) == (engine_class is FakeEngine)
    returned = [message for message in told if isinstance(message, p.Returned)]
    assert all(message.recycled for message in returned)
    handed_on = [held.task_id for message in returned for held in message.held]
    assert sorted(handed_on) == sorted(one.task_id for one in crowd[1:])
    begun = {held.task_id for held in returned[-1].held}
    written_down = [message for message in told[: told.index(returned[-1])] if isinstance(message, p.Waypoint)]
    assert {message.task_id for message in written_down} == begun == {f"t{n}" for n in range(1, engine.capacity)}
    assert engine.active == 0


class Brings(FakeEngine):
    """An engine that waits for its weights."""

    is_bringing = True


@pytest.mark.parametrize(("engine", "is_heard"), [(Brings, True), (FakeEngine, False)])
def test_an_engine_with_nothing_to_tell_is_heard_of_only_while_it_waits_for_its_weights(
    engine: type[FakeEngine], *, is_heard: bool
) -> None:
    worker = Worker(
        engine=engine(Settings()), settings=SETTINGS, server="unix:nowhere", worker_id="w1", parented=False
    )  # fmt: skip
    worker._hear(())
    assert (worker._heard_at > 0) == is_heard


class Swaps(FakeEngine):
    """An engine whose weights have to come for its first step, and then go again."""

    is_bringing = True
    away: Mapping[str, float] = {"f": 3.0}

    def step(self) -> Sequence[Event]:
        """Nothing at first, for longer than the engine steps on by itself."""
        if self.away:
            self._wait(2 * ALONE_S)
            self.away = {}
            return ()
        return super().step()


@in_event_loop
async def test_a_worker_tells_when_weights_have_come_and_how_long_it_waited_for_them() -> None:
    async with hired(Swaps(SETTINGS), p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=(TASK,))))
        told: list[p.FromWorker] = []
        async with asyncio.timeout(PATIENCE_S):
            while not (told and isinstance(told[-1], p.Finished)):
                message = await p.read_from_worker(reader)
                assert message is not None
                told.append(message)
    (weights,) = [message for message in told if isinstance(message, p.Weights)]
    assert weights.away == {}
    assert weights.waited > 0


class Warns(FakeEngine):
    """An engine whose weights cannot do every prompt justice."""

    def step(self) -> Sequence[Event]:
        """Say so with each picture."""
        told = super().step()
        return [
            replace(event, warnings=("no photographs",)) if isinstance(event, Finished) else event for event in told
        ]


@in_event_loop
async def test_what_the_weights_say_about_a_prompt_is_handed_over_with_the_picture() -> None:
    async with hired(Warns(SETTINGS), p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=(TASK,))))
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(message := await p.read_from_worker(reader), p.Finished):
                assert message is not None
        assert message.warnings == ("no photographs",)


class Slow(FakeEngine):
    """An engine that takes its time for a picture of many steps."""

    def __init__(self) -> None:
        super().__init__(Settings(fake_latency=2.0, fake_steps=50))


@in_event_loop
async def test_a_task_that_is_to_be_shown_sends_small_pictures_of_itself_and_its_neighbour_none() -> None:
    neighbour = structs.replace(TASK, task_id="t2")
    async with hired(Slow(), p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Show(task_id="never heard of", fence=1)))
        writer.write(p.to_frame(p.Tasks(assignments=(TASK, neighbour))))
        writer.write(p.to_frame(p.Show(task_id="t1", fence=1)))
        told: list[p.FromWorker] = []
        async with asyncio.timeout(4 * PATIENCE_S):
            while len([message for message in told if isinstance(message, p.Finished)]) < 2:
                message = await p.read_from_worker(reader)
                assert message is not None
                told.append(message)
    previews = [message for message in told if isinstance(message, p.Preview)]
    assert {(preview.task_id, preview.fence) for preview in previews} == {("t1", 1)}
    assert 2 <= len(previews) <= 2.0 / PREVIEW_INTERVAL_S + 1
    for preview in previews:
        with Image.open(BytesIO(preview.picture)) as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= 256
    own, beside = (message.picture for message in told if isinstance(message, p.Finished))
    assert own == beside


class BreaksAtAdmission(FakeEngine):
    """An engine with a defect."""

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
        """Raise."""
        raise ZeroDivisionError(ref, generation, waypoint, pictures, turn, flow)


class BreaksAtAStep(FakeEngine):
    """An engine with a defect."""

    def step(self) -> Sequence[Event]:
        """Raise."""
        raise ZeroDivisionError


@pytest.mark.parametrize("engine", [BreaksAtAdmission, BreaksAtAStep])
def test_a_broken_engine_ends_its_worker_and_hangs_up(engine: type[FakeEngine]) -> None:
    async def play() -> None:
        async with hired(engine(SETTINGS), p.Welcome(heartbeat=60, lease=600, kept=())) as (running, (reader, writer)):
            writer.write(p.to_frame(p.Tasks(assignments=(TASK,))))
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(running, PATIENCE_S)
            async with asyncio.timeout(PATIENCE_S):
                while await p.read_from_worker(reader) is not None:
                    pass

    asyncio.run(play())


class Stepped(FakeEngine):
    """An engine that steps when it is told to, and remembers what it holds."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.refs: list[set[str]] = []
        self._held: set[str] = set()

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
        self._held.add(ref)

    def discard(self, ref: str) -> None:
        """Forget it."""
        super().discard(ref)
        self._held.discard(ref)

    def step(self) -> Sequence[Event]:
        """One step, told of before and after."""
        self.refs.append(set(self._held))
        self.begun.release()
        self.go_on.acquire()
        return super().step()


@in_event_loop
async def test_a_discarded_task_is_in_no_step_after_the_one_under_way_and_hands_nothing_in() -> None:
    engine = Stepped(SETTINGS)
    others = tuple(structs.replace(TASK, task_id=name) for name in ("t2", "t3"))
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=(TASK, *others))))
        await asyncio.to_thread(engine.begun.acquire, timeout=PATIENCE_S)
        writer.write(p.to_frame(p.Discard(task_id="t1", fence=1)))
        await heard(reader, p.Want)  # that of its arrival
        await heard(reader, p.Want)  # that of the discard, which it has read
        for _ in range(100):
            engine.go_on.release()
        outcomes: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(outcomes) < 2:
                message = await p.read_from_worker(reader)
                outcomes += [message.task_id] if isinstance(message, p.Finished) else []
    assert sorted(outcomes) == ["t2", "t3"]
    assert "t1/1" in engine.refs[0]
    assert all("t1/1" not in refs for refs in engine.refs[1:])


@in_event_loop
async def test_a_task_that_is_discarded_before_the_engine_had_room_for_it_never_gets_there() -> None:
    engine = Stepped(SETTINGS)
    crowd = tuple(structs.replace(TASK, task_id=f"t{number}") for number in range(engine.capacity + 1))
    last = crowd[-1].task_id
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=crowd)))
        await asyncio.to_thread(engine.begun.acquire, timeout=PATIENCE_S)
        writer.write(p.to_frame(p.Discard(task_id=last, fence=1)))
        await heard(reader, p.Want)
        await heard(reader, p.Want)
        for _ in range(100):
            engine.go_on.release()
        async with asyncio.timeout(PATIENCE_S):
            for _ in crowd[:-1]:
                await heard(reader, p.Finished)
    assert all(f"{last}/1" not in refs for refs in engine.refs)


# Turns


class Parking(Stepped):
    """An engine with room for a few, which nothing ever leaves; it remembers the turns that it was told."""

    def __init__(self, capacity: int = 2) -> None:
        super().__init__(Settings(fake_latency=60, fake_steps=50))
        self.turns: dict[str, tuple[float, str]] = {}
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        """As it was told."""
        return self._capacity

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
        self.turns[ref.partition("/")[0]] = turn, flow


async def in_the_engine(engine: Parking, streams: Streams, *arrivals: dict[str, float]) -> list[set[str]]:
    """What it holds at each step, where one group of tasks, by turn, arrives before each."""
    reader, writer = streams
    await heard(reader, p.Want)
    held: list[set[str]] = []
    for number, arriving in enumerate(arrivals):
        tasks = tuple(
            structs.replace(TASK, task_id=name, turn=turn, flow=f"flow of {name}") for name, turn in arriving.items()
        )
        writer.write(p.to_frame(p.Tasks(assignments=tasks)))
        writer.write(p.to_frame(p.Discard(task_id="never heard of", fence=1)))
        await heard(reader, p.Want)  # so it has read what came before
        if number:
            engine.go_on.release()
        await asyncio.to_thread(engine.begun.acquire, timeout=PATIENCE_S)
        held.append({ref.partition("/")[0] for ref in engine.refs[-1]})
    engine.go_on.release()
    return held


@in_event_loop
async def test_a_worker_takes_in_at_the_next_step_what_comes_before_all_that_it_draws() -> None:
    engine = Parking()
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, streams):
        held = await in_the_engine(engine, streams, {"c": 300, "a": 100, "b": 200}, {"between": 150, "short": 10})
        assert held == [{"a", "b"}, {"a", "b", "short"}]
        assert engine.turns == {
            name: (turn, f"flow of {name}") for name, turn in (("a", 100), ("b", 200), ("short", 10))
        }


@in_event_loop
async def test_a_full_worker_takes_in_together_the_short_tasks_that_share_a_step() -> None:
    engine = Parking(6)
    long = {name: 100.0 + number for number, name in enumerate("abcdef")}
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, streams):
        held = await in_the_engine(engine, streams, long, {"s": 10, "t": 20, "u": 30, "v": 40})
        assert held == [set(long), {*long, "s", "t", "u"}]


@in_event_loop
async def test_a_worker_lets_no_more_tasks_wait_in_its_engine_than_it_has_room_for() -> None:
    engine = Parking()
    async with hired(engine, p.Welcome(heartbeat=60, lease=600, kept=())) as (_, streams):
        held = await in_the_engine(engine, streams, {"a": 100, "b": 200}, {"c": 30}, {"d": 20}, {"e": 10})
        assert held == [{"a", "b"}, {"a", "b", "c"}, {"a", "b", "c", "d"}, {"a", "b", "c", "d"}]


@in_event_loop
async def test_a_worker_that_is_ended_in_the_instant_of_its_welcome_ends() -> None:
    """News for its heartbeats comes then, and an end that meets it must not be missed."""
    for turns in range(30):
        async with asyncio.timeout(PATIENCE_S) as limit:
            async with hired(FakeEngine(SETTINGS), p.Welcome(heartbeat=60, lease=600, kept=())):
                for _ in range(turns):  # of the event loop, in which the welcome goes its way
                    await asyncio.sleep(0)
        assert not limit.expired(), turns
