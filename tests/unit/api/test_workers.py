"""The server's side of the worker protocol: who gets which tasks, and that no task is forgotten at a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from gateway_house import GatewayHouse, gateway_house

from builders import HARMLESS, in_event_loop, new_key
from fluxserve.errors import StoreUnavailable
from fluxserve.store.base import ClaimRequest, Completion, Drawn, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker import protocol as p


def finished(held: p.Held) -> p.Finished:
    """The claim's picture."""
    return p.Finished(
        task_id=held.task_id,
        fence=held.fence,
        picture=b"picture",
        drawn_by="hand",
        duration=1.0,
        facts={},
        scores=HARMLESS,
    )


async def until_state(house: GatewayHouse, task_id: str, state: str, fence: int) -> None:
    """Wait for what is written down behind the gateway."""
    async with asyncio.timeout(5.0):
        while await house.state(task_id) != (state, fence):
            pass


# Who gets what


@in_event_loop
async def test_what_workers_could_not_load_is_known_as_long_as_they_are_there(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(name, left_out=lines) for name, lines in (("w1", ("a", "b")), ("w2", ("b",)))]
        assert house.gateway.left_out == ["a", "b"]
        task = await house.submit(1)
        workers[0].writer.close()
        async with asyncio.timeout(5.0):
            while house.gateway.is_connected("w1"):
                await house.state(task[0])
        assert house.gateway.left_out == ["b"]


@in_event_loop
async def test_a_burst_is_spread_evenly_over_idle_workers(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(name, capacity=8) for name in ("w1", "w2")]
        for worker in workers:
            worker.send(p.Want(count=16))
        await house.submit(8)
        for worker in workers:
            await worker.gets(4)


@in_event_loop
async def test_a_worker_that_has_only_said_hello_gets_its_share_of_a_burst(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(name, capacity=8, want=16) for name in ("w1", "w2")]
        await house.submit(8)
        assert [await worker.settle_down() for worker in workers] == [4, 4]


@in_event_loop
async def test_tasks_that_come_one_by_one_go_to_the_worker_that_holds_fewest(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(name, capacity=4) for name in ("w1", "w2", "w3")]
        for worker in workers:
            worker.send(p.Want(count=8))
        for _ in range(6):
            (task,) = await house.submit()
            await until_state(house, task, "running", 1)
        assert [await worker.settle_down() for worker in workers] == [2, 2, 2]


@in_event_loop
async def test_engines_are_filled_before_anything_is_handed_out_ahead(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        first, second = [await house.connect(name, capacity=2) for name in ("w1", "w2")]
        first.send(p.Want(count=4))
        second.send(p.Want(count=4))
        await house.submit(4)
        await first.gets(2)
        await second.gets(2)
        await house.submit(4)
        await first.gets(4)
        await second.gets(4)


@in_event_loop
async def test_a_full_worker_gets_nothing_ahead_while_another_has_room(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        full = await house.connect("full", capacity=1)
        full.send(p.Want(count=2))
        await house.submit(1)
        await full.gets(1)
        idle = await house.connect("idle", capacity=2)
        idle.send(p.Want(count=4))
        await house.submit(2)
        await idle.gets(2)
        assert await full.settle_down() == 1
        await house.submit(3)
        await full.gets(2)
        await idle.gets(4)


@in_event_loop
async def test_a_lone_worker_gets_one_batch_ahead(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(capacity=4)
        worker.send(p.Want(count=8))
        await house.submit(20)
        await worker.gets(8)
        assert await worker.settle_down() == 8


@in_event_loop
async def test_an_idle_worker_that_cannot_draw_a_model_keeps_nobody_from_it(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        idle = await house.connect("idle", capacity=8, models=("flux-schnell",))
        idle.send(p.Want(count=16))
        worker = await house.connect(capacity=2, models=("flux-dev", "flux-schnell"))
        worker.send(p.Want(count=4))
        await house.submit(4, model="flux-dev")
        await worker.gets(4)
        assert await idle.settle_down() == 0


# A dispatcher that breaks


class BrokenClaims(SqliteStore):
    """A store with a defect."""

    async def claim_many(self, requests: Sequence[ClaimRequest]) -> list[list[TaskRecord]]:
        """Raise something that is nobody's."""
        raise OSError(5, f"Input/output error at {len(requests)} requests")


@in_event_loop
async def test_a_worker_is_cut_off_when_nobody_can_hand_it_tasks_any_more(tmp_path: Path) -> None:
    async with gateway_house(tmp_path, BrokenClaims) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        assert await worker.is_cut_off()
        assert house.gateway.ready == 0


# Claims that the worker does not know


@in_event_loop
async def test_a_task_that_two_heartbeats_do_not_name_is_given_out_again(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(capacity=2)
        worker.send(p.Want(count=2))
        tasks = await house.submit(2)
        known, unknown = await worker.gets(2)
        assert [known.task_id, unknown.task_id] == tasks
        worker.send(p.Heartbeat(held=(known, unknown)))
        worker.send(p.Heartbeat(held=(known,)))
        worker.send(p.Heartbeat(held=(known,)))
        assert await worker.next(p.Discard) == p.Discard(task_id=unknown.task_id, fence=1)
        await until_state(house, unknown.task_id, "queued", 1)
        worker.send(p.Want(count=1))
        assert await worker.gets(3) == [known, unknown, p.Held(task_id=unknown.task_id, fence=2)]
        assert await house.state(known.task_id) == ("running", 1)


@in_event_loop
async def test_a_task_may_be_on_its_way_for_many_heartbeats_and_for_one_lease(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        for _ in range(10):
            worker.send(p.Heartbeat(held=()))
        worker.send(p.Want(count=0))
        assert await worker.settle_down() == 1
        assert await house.state(task) == ("running", 1)
        house.steady += house.settings.lease + 1
        worker.send(p.Heartbeat(held=()))
        assert await worker.next(p.Discard) == p.Discard(task_id=task, fence=held.fence)
        await until_state(house, task, "queued", 1)


@in_event_loop
async def test_a_task_that_was_on_its_way_at_one_heartbeat_stays_with_its_worker(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        held = await worker.gets(1)
        for _ in range(3):
            worker.send(p.Heartbeat(held=()))
            worker.send(p.Heartbeat(held=tuple(held)))
        worker.send(finished(held[0]))
        assert await worker.next(p.Settled) == p.Settled(task_id=task, fence=1, accepted=True)


@in_event_loop
async def test_what_drew_a_picture_is_kept_with_it(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        outcome = p.Finished(
            task_id=held.task_id, fence=held.fence, picture=b"picture", drawn_by="mini", duration=1.5,
            facts={"drawn_at": "512x512"}, warnings=("no photographs",), scores=HARMLESS,
        )  # fmt: skip
        worker.send(outcome)
        await until_state(house, task, "ready", 1)
        (record,) = await house.store.get_many([task])
        assert record is not None
        assert record.drawn == Drawn(
            drawn_by="mini", duration=1.5, facts={"drawn_at": "512x512"}, warnings=("no photographs",), scores=HARMLESS
        )


class BusyOnce(SqliteStore):
    """A store that refuses the first outcome, when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.refuse = asyncio.Event(), asyncio.Event()

    async def complete_many(self, completions: Sequence[Completion]) -> list[TaskRecord | None]:
        """Refuse once, then write down."""
        if self.asked.is_set():
            return await super().complete_many(completions)
        self.asked.set()
        await self.refuse.wait()
        raise StoreUnavailable("Another program holds the database.")


@in_event_loop
async def test_an_outcome_in_writing_outlives_the_connection_it_came_over(tmp_path: Path) -> None:
    """The worker was started anew under the same name and knows nothing of what it handed in."""
    async with gateway_house(tmp_path, BusyOnce) as house:
        assert isinstance(house.store, BusyOnce)
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.send(finished(held))
        await house.store.asked.wait()
        again = await house.connect()  # before the first connection was seen to be dead
        assert await worker.is_cut_off()
        house.store.refuse.set()
        await until_state(house, task, "ready", 1)
        again.send(p.Want(count=1))
        assert await again.settle_down() == 0


@in_event_loop
async def test_an_outcome_in_writing_is_not_missed_at_heartbeats(tmp_path: Path) -> None:
    async with gateway_house(tmp_path, BusyOnce) as house:
        assert isinstance(house.store, BusyOnce)
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.send(finished(held))
        await house.store.asked.wait()
        for _ in range(3):
            worker.send(p.Heartbeat(held=()))
        house.store.refuse.set()
        assert await worker.next(p.Settled) == p.Settled(task_id=task, fence=1, accepted=True)


# Cancelled tasks


async def cancel(house: GatewayHouse, task_id: str) -> None:
    """The task's account ends it."""
    (record,) = await house.store.get_many([task_id])
    assert record is not None
    view = await house.service.cancel(task_id, record.account_id)
    assert view is not None
    assert view.state == "cancelled"


@in_event_loop
async def test_a_worker_is_told_at_once_that_its_task_was_cancelled_and_gets_another(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, other = await house.connect("w1", capacity=2), await house.connect("w2")
        worker.send(p.Want(count=1))
        first, second = await house.submit(2)
        (held,) = await worker.gets(1)
        await cancel(house, first)
        assert await worker.next(p.Discard) == p.Discard(task_id=held.task_id, fence=held.fence)
        worker.send(p.Want(count=1))
        assert (await worker.gets(2))[1].task_id == second
        assert await other.settle_down() == 0
        assert await house.state(first) == ("cancelled", 1)


@in_event_loop
async def test_a_picture_of_a_cancelled_task_is_refused_and_not_kept(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        await cancel(house, task)
        await worker.next(p.Discard)
        worker.send(p.Progress(task_id=task, fence=held.fence, step=3, steps=28))
        worker.send(finished(held))
        assert await worker.next(p.Settled) == p.Settled(task_id=task, fence=1, accepted=False)
        assert list((tmp_path / "pictures").glob("??/*")) == []
        worker.send(p.Returned(held=(held,)))
        assert await worker.settle_down() == 1
        assert await house.state(task) == ("cancelled", 1)


@in_event_loop
async def test_an_outcome_in_writing_that_meets_a_cancellation_is_refused(tmp_path: Path) -> None:
    async with gateway_house(tmp_path, BusyOnce) as house:
        assert isinstance(house.store, BusyOnce)
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.send(finished(held))
        await house.store.asked.wait()
        await cancel(house, task)
        await worker.next(p.Discard)
        house.store.refuse.set()
        assert await worker.next(p.Settled) == p.Settled(task_id=task, fence=1, accepted=False)
        assert list((tmp_path / "pictures").glob("??/*")) == []


@in_event_loop
async def test_a_worker_that_was_away_when_its_task_was_cancelled_does_not_keep_it(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(capacity=2)
        worker.send(p.Want(count=2))
        first, second = await house.submit(2)
        held = tuple(await worker.gets(2))
        worker.writer.close()
        async with asyncio.timeout(5.0):
            while house.gateway.is_connected("w1"):
                await house.state(first)
        await cancel(house, first)
        again = await house.connect(capacity=2, held=held)
        again.send(p.Want(count=2))
        assert await again.settle_down() == 0
        again.send(finished(held[1]))
        await until_state(house, second, "ready", 1)
        assert await house.state(first) == ("cancelled", 1)


@in_event_loop
async def test_a_task_that_is_cancelled_while_it_waits_reaches_no_worker(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        (task,) = await house.submit()
        await cancel(house, task)
        worker = await house.connect()
        worker.send(p.Want(count=1))
        assert await worker.settle_down() == 0
        (next_one,) = await house.submit()
        assert [held.task_id for held in await worker.gets(1)] == [next_one]


@pytest.mark.parametrize(("recycled", "told", "spoiled"), [(True, False, 1), (False, True, 0), (True, True, 0)])
@in_event_loop
async def test_a_worker_that_dies_while_it_makes_way_by_its_own_wish_may_have_died_of_its_task(
    tmp_path: Path, *, recycled: bool, told: bool, spoiled: int
) -> None:
    """Else a task that first spends a process and then ends it would do so for ever; one told to end may be ended."""
    async with gateway_house(tmp_path, local=True) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.send(p.Progress(task_id=task, fence=held.fence, step=0, steps=28))
        if recycled:
            worker.send(p.Returned(held=(), recycled=True))
        if told:
            worker.send(p.Returned(held=()))
        worker.writer.close()
        await until_state(house, task, "queued", 1)
        (record,) = await house.store.get_many([task])
        assert record is not None
        assert record.attempts.spoiled == spoiled


@pytest.mark.parametrize(("seconds", "spoiled"), [(0.5, 1), (60.0, 0)])
@in_event_loop
async def test_a_worker_that_dies_as_its_server_wakes_up_from_standing_still_died_of_that(
    tmp_path: Path, seconds: float, spoiled: int
) -> None:
    async with gateway_house(tmp_path, local=True) as house:
        reaping = asyncio.create_task(house.gateway.reap())
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.send(p.Progress(task_id=task, fence=held.fence, step=0, steps=28))
        house.steady += seconds
        worker.writer.close()
        await until_state(house, task, "queued", 1)
        reaping.cancel()
        (record,) = await house.store.get_many([task])
        assert record is not None
        assert record.attempts.spoiled == spoiled


@in_event_loop
async def test_tasks_are_of_one_flow_if_they_are_of_one_key(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(capacity=4)
        key = await house.store.create_key(new_key())
        for entry in (key, key, None):
            await house.submit(entry=entry)
        worker.send(p.Want(count=4))
        await worker.gets(3)
        flows = [one.flow for one in worker.assigned]
        assert flows.count(key.key.id) == 2
        assert len(set(flows)) == 2
