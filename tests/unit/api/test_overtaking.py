"""Short tasks and workers that are full of long ones: who is handed what, and how much more than it wants."""

from __future__ import annotations

from pathlib import Path

from gateway_house import ByHand, GatewayHouse, gateway_house

from builders import claimed_one, in_event_loop, loss, new_key, submission
from fluxserve.tasks.task import SUSPECT_AFTER
from fluxserve.worker import protocol as p


async def full_worker(house: GatewayHouse, name: str = "w1", *, capacity: int = 4) -> ByHand:
    """A worker that holds as much as its engine does, all of them long tasks of one key."""
    worker = await house.connect(name, capacity=capacity)
    worker.send(p.Want(count=capacity))
    await house.submit(capacity, work=1000.0)
    await worker.gets(capacity)
    return worker


@in_event_loop
async def test_a_full_worker_is_handed_a_shorter_task_that_it_draws_at_once(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await full_worker(house)
        (short,) = await house.submit(work=10.0)
        assert (await worker.gets(5))[4].task_id == short
        assert worker.assigned[4].turn < min(long.turn for long in worker.assigned[:4])


@in_event_loop
async def test_a_shorter_task_of_the_same_key_is_handed_to_a_full_worker_too(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        worker = await house.connect(capacity=4)
        worker.send(p.Want(count=4))
        await house.submit(100, work=1000.0, entry=entry)
        await worker.gets(4)
        (short,) = await house.submit(work=10.0, entry=entry)
        assert (await worker.gets(5))[4].task_id == short
        assert worker.assigned[4].turn < worker.assigned[0].turn


@in_event_loop
async def test_what_is_as_long_as_the_rest_waits_until_the_worker_wants_more(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await full_worker(house)
        held = p.Held(task_id=worker.assigned[0].task_id, fence=1)
        await house.submit(3, work=3000.0)
        assert await worker.settle_down() == 4
        worker.send(p.Returned(held=(held,)))
        assert await worker.settle_down() == 4


@in_event_loop
async def test_a_full_worker_gets_as_many_short_tasks_as_share_a_step_and_at_most_an_engine_full_in_all(
    tmp_path: Path,
) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await full_worker(house)
        await house.submit(5, work=10.0)
        await worker.gets(6)
        assert await worker.settle_down() == 6
        for work in (1.0, 0.1, 0.01):
            await house.submit(work=work)
        assert await worker.settle_down() == 8


@in_event_loop
async def test_the_next_short_task_comes_when_the_first_has_made_its_last_step(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await full_worker(house, capacity=6)
        shorts = await house.submit(4, work=10.0)
        held = await worker.gets(9)
        worker.send(p.Progress(task_id=held[6].task_id, fence=1, step=3, steps=4))
        assert await worker.settle_down() == 9
        worker.send(p.Progress(task_id=held[6].task_id, fence=1, step=4, steps=4))
        assert [held.task_id for held in (await worker.gets(10))[6:]] == shorts


@in_event_loop
async def test_of_full_workers_the_one_that_would_draw_it_at_once_gets_it(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        workers = [await house.connect(name, capacity=2) for name in ("w1", "w2")]
        for worker in workers:
            worker.send(p.Want(count=2))
        await house.submit(8, work=1000.0, entry=entry)
        for worker in workers:
            await worker.gets(2)
        (short,) = await house.submit(work=10.0, entry=entry)
        later = max(workers, key=lambda worker: worker.assigned[0].turn)
        assert (await later.gets(3))[2].task_id == short
        assert [await worker.settle_down() for worker in workers if worker is not later] == [2]


@in_event_loop
async def test_a_task_goes_where_it_is_drawn_at_once_though_another_worker_has_more_room(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        roomy = await house.connect("w1", capacity=3)
        roomy.send(p.Want(count=1))
        await house.submit(1, work=1000.0, entry=entry)
        await roomy.gets(1)
        full = await house.connect("w2", capacity=2)
        full.send(p.Want(count=2))
        await house.submit(2, work=1000.0, entry=entry)
        await full.gets(2)
        roomy.send(p.Want(count=2))
        (short,) = await house.submit(work=10.0)
        assert (await full.gets(3))[2].task_id == short
        assert await roomy.settle_down() == 1


@in_event_loop
async def test_a_task_that_its_worker_may_not_have_holds_no_other_back(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await full_worker(house)
        await house.store.submit_many([submission(await house.store.create_key(new_key()), work=10.0)])
        for _ in range(SUSPECT_AFTER):
            (suspect,) = await house.store.release_many([loss(await claimed_one(house.store, "dying"))])
        assert suspect is not None
        house.service._show(suspect)
        house.service.queue_changed.fire()
        assert await worker.settle_down() == 4  # a suspect is drawn alone
        other = await house.connect("w2", capacity=1)
        other.send(p.Want(count=2))
        assert [held.task_id for held in await other.gets(1)] == [suspect.id]


BOTH = {"flux-dev": "d", "flux-schnell": "s"}


@in_event_loop
async def test_of_idle_workers_the_one_whose_weights_need_not_come_gets_the_task(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        without = await house.connect("w1", capacity=4, fingerprints=BOTH, away={"d": 5.0})
        having = await house.connect("w2", capacity=4, fingerprints=BOTH, away={"s": 5.0})
        for worker in (without, having):
            worker.send(p.Want(count=4))
        await house.submit()
        await having.gets(1)
        assert await without.settle_down() == 0
        await house.submit()  # where it would be drawn without a swap it would have to wait
        await without.gets(1)


@in_event_loop
async def test_a_worker_first_takes_what_it_has_the_weights_for_and_then_what_there_is(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect("w1", capacity=4, fingerprints=BOTH)
        await house.connect("w2", capacity=4, fingerprints=BOTH)
        worker.send(p.Weights(away={"d": 3.0}, waited=1.0))
        assert await worker.settle_down() == 0
        (other,) = await house.submit()
        own = await house.submit(2, model="flux-schnell")
        for number, task_id in enumerate((*own, other)):
            worker.send(p.Want(count=1))
            await worker.gets(number + 1)
            assert worker.assigned[number].task_id == task_id
