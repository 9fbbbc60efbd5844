"""Previews between the server and its workers: asked for once somebody looks, taken from who holds the claim alone."""

from __future__ import annotations

from pathlib import Path

from gateway_house import GatewayHouse, gateway_house

from builders import in_event_loop
from fluxserve.worker import protocol as p


def look(house: GatewayHouse, task_id: str) -> None:
    """Somebody asks to see the task's previews."""
    view = house.service.views.get(task_id)
    assert view is not None
    house.service.want_previews(view)


async def preview_of(house: GatewayHouse, task_id: str) -> bytes:
    """The task's preview, once there is one."""
    with house.service.watches.watching(task_id, end_only=False) as watch:
        while (picture := house.service.previews.get(task_id)) is None:
            assert await watch.news(5.0)
    return picture


@in_event_loop
async def test_the_worker_that_holds_the_task_is_asked_as_soon_as_somebody_looks_and_only_once(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(capacity=2)
        worker.send(p.Want(count=2))
        first, second = await house.submit(2)
        fences = {held.task_id: held.fence for held in await worker.gets(2)}
        for task_id in (second, second, first):
            look(house, task_id)
        assert await worker.next(p.Show) == p.Show(task_id=second, fence=fences[second])
        assert await worker.next(p.Show) == p.Show(task_id=first, fence=fences[first])


@in_event_loop
async def test_a_task_that_waits_is_shown_by_the_worker_that_gets_it(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        plain, wanted = await house.submit(2)
        look(house, wanted)
        worker = await house.connect(capacity=2)
        worker.send(p.Want(count=2))
        fences = {held.task_id: held.fence for held in await worker.gets(2)}
        assert await worker.next(p.Show) == p.Show(task_id=wanted, fence=fences[wanted])
        look(house, plain)
        assert await worker.next(p.Show) == p.Show(task_id=plain, fence=fences[plain])


@in_event_loop
async def test_a_worker_that_comes_back_is_asked_again(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        worker.writer.close()
        look(house, task)
        again = await house.connect(held=(held,))
        assert await again.next(p.Show) == p.Show(task_id=task, fence=held.fence)


@in_event_loop
async def test_a_preview_is_taken_from_the_holder_of_the_claim_and_from_nobody_else(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker, other = await house.connect(), await house.connect("w2")
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        look(house, task)
        await worker.next(p.Show)
        other.send(p.Preview(task_id=task, fence=held.fence, picture=b"another's"))
        other.send(p.Want(count=1))
        await house.submit()
        await other.gets(1)  # so its preview was read
        worker.send(p.Preview(task_id=task, fence=held.fence + 1, picture=b"of no claim"))
        worker.send(p.Preview(task_id=task, fence=held.fence, picture=b"right"))
        assert await preview_of(house, task) == b"right"


@in_event_loop
async def test_previews_that_nobody_asked_for_are_not_kept(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect()
        worker.send(p.Want(count=1))
        (task,) = await house.submit()
        (held,) = await worker.gets(1)
        with house.service.watches.watching(task, end_only=False) as watch:
            worker.send(p.Preview(task_id=task, fence=held.fence, picture=b"unasked"))
            assert await watch.news(5.0)
        assert house.service.previews.get(task) is None
