"""Equal requests behind a real gateway: what workers say they draw decides which pictures answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gateway_house import GatewayHouse, gateway_house

from builders import HARMLESS, generation, in_event_loop, new_key, submission
from fluxserve.catalogue import find
from fluxserve.service.service import Order
from fluxserve.store.base import KeyEntry, TaskRecord
from fluxserve.tasks.task import State
from fluxserve.worker import protocol as p

TODAY = "the weights of today"


async def ask(house: GatewayHouse, entry: KeyEntry, *, seed: int = 7) -> TaskRecord:
    """An accepted request with a seed."""
    return await house.service.submit(
        Order(
            key=entry.key, spec=find("flux-dev"), values={"prompt": generation().prompt, "seed": seed}, ignored=(),
            dialect="bfl", origin="http://127.0.0.1:8808", idempotency_key=None, pictures={}, urls={},
        )
    )  # fmt: skip


def finished(held: p.Held, fingerprint: str = TODAY) -> p.Finished:
    """The claim's picture."""
    return p.Finished(
        task_id=held.task_id, fence=held.fence, picture=b"picture", drawn_by="hand", duration=1.0,
        facts={"fingerprint": fingerprint}, scores=HARMLESS,
    )  # fmt: skip


async def until(house: GatewayHouse, task: TaskRecord, state: State) -> None:
    """Wait for what is written down behind the gateway."""
    async with asyncio.timeout(5.0):
        while (await house.state(task.id))[0] != state:
            pass


@in_event_loop
async def test_a_worker_draws_one_of_equal_requests_and_all_are_ready(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(fingerprint=TODAY, capacity=9)
        entry = await house.store.create_key(new_key())
        tasks = [await ask(house, entry) for _ in range(3)]
        worker.send(p.Want(count=9))
        (held,) = await worker.gets(1)
        worker.send(finished(held))
        assert (await worker.next(p.Settled)).accepted
        for task in tasks:
            await until(house, task, State.READY)
        assert (await ask(house, entry)).state is State.READY
        assert await worker.settle_down() == 1


@in_event_loop
async def test_when_a_leader_is_cancelled_its_worker_drops_it_and_gets_the_next(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(fingerprint=TODAY)
        entry = await house.store.create_key(new_key())
        leader, follower = [await ask(house, entry) for _ in range(2)]
        worker.send(p.Want(count=1))
        (held,) = await worker.gets(1)
        await house.service.cancel(leader.id, entry.key.account_id)
        assert (await worker.next(p.Discard)).task_id == held.task_id == leader.id
        worker.send(p.Want(count=1))
        assert [one.task_id for one in await worker.gets(2)] == [leader.id, follower.id]


@pytest.mark.parametrize("fingerprint", [TODAY, "other weights"])
@in_event_loop
async def test_a_hello_answers_what_waited_if_the_worker_would_draw_it_so_again(
    tmp_path: Path, fingerprint: str
) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        await ask(house, entry)
        first = await house.connect("w1", fingerprint=TODAY)
        first.send(p.Want(count=1))
        first.send(finished((await first.gets(1))[0]))
        await first.next(p.Settled)
    async with gateway_house(tmp_path) as house:
        tasks = [await ask(house, entry) for _ in range(2)]
        assert [task.state for task in tasks] == [State.QUEUED, State.FOLLOWING]
        await house.connect("w1", fingerprint=fingerprint)
        states = [(await house.state(task.id))[0] for task in tasks]
        assert states == (["ready", "ready"] if fingerprint == TODAY else ["queued", "following"])


@in_event_loop
async def test_an_orphan_says_nothing_of_what_will_be_drawn(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        await house.connect("old", fingerprint="old weights", orphan=True)
        worker = await house.connect("new", fingerprint=TODAY)
        for seed, fingerprint in ((1, "old weights"), (2, TODAY)):
            await ask(house, entry, seed=seed)
            worker.send(p.Want(count=1))
            held = (await worker.gets(seed))[-1]
            worker.send(finished(held, fingerprint))
            await worker.next(p.Settled)
        assert [(await ask(house, entry, seed=seed)).state for seed in (1, 2)] == [State.QUEUED, State.READY]


@in_event_loop
async def test_a_worker_that_left_still_counts_while_its_model_has_no_other(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        worker = await house.connect("w1", fingerprint=TODAY)
        await ask(house, entry)
        worker.send(p.Want(count=1))
        worker.send(finished((await worker.gets(1))[0]))
        await worker.next(p.Settled)
        worker.writer.close()
        async with asyncio.timeout(5.0):
            while house.gateway.is_connected("w1"):
                await house.store.lapsed(0.0)
        assert (await ask(house, entry)).state is State.READY
        await house.connect("w2", fingerprint="other weights")
        assert (await ask(house, entry)).state is State.QUEUED


@in_event_loop
async def test_followers_are_no_work_to_be_shared_out(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(name, fingerprint=TODAY, capacity=8) for name in ("w1", "w2")]
        for worker in workers:
            worker.send(p.Want(count=16))
        entry = await house.store.create_key(new_key())
        equal = [submission(entry, recipe=b"r") for _ in range(30)]
        for answer in await house.store.submit_many([*equal, *(submission(entry) for _ in range(7))]):
            assert answer.record is not None
            house.service.views.put(answer.record)
        house.service.queue_changed.fire()
        for worker in workers:
            await worker.gets(4)
