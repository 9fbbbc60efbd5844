"""Input pictures between server and worker: they come with their task, or the task ends and says why."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_house import GatewayHouse, gateway_house

from builders import in_event_loop, new_key
from fluxserve.catalogue import find
from fluxserve.service.orders import Order
from fluxserve.store.base import KeyEntry, TaskRecord
from fluxserve.tasks.task import State
from fluxserve.worker import protocol as p
from sample_pictures import PNG, file_of, picture, text_of


async def ask(house: GatewayHouse, entry: KeyEntry, text: str | None = PNG) -> TaskRecord:
    """An accepted request, with a picture or without."""
    return await house.service.submit(
        Order(
            key=entry.key, spec=find("flux-dev"), values={"prompt": "an owl", "width": 256, "height": 256},
            pictures={} if text is None else {"image_prompt": text}, urls={}, ignored=(), dialect="bfl",
            origin="http://127.0.0.1:8808", idempotency_key=None,
        )
    )  # fmt: skip


@in_event_loop
async def test_each_task_comes_with_its_own_pictures(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key())
        plain = await ask(house, entry, None)
        tasks = [
            await ask(house, entry, text_of(file_of(picture(256, 256, colour=colour)))) for colour in ("green", "white")
        ]
        worker = await house.connect(capacity=4)
        worker.send(p.Want(count=4))
        await worker.gets(3)
        came = {one.task_id: one.pictures for one in worker.assigned}
        assert came[plain.id] == {}
        for task in tasks:
            assert came[task.id] == await house.service.read_inputs(task)


@in_event_loop
async def test_a_task_whose_picture_is_gone_ends_and_its_neighbour_is_drawn(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        entry = await house.store.create_key(new_key(credits_=5000))
        lost = await ask(house, entry)
        house.input_storage.delete(next(iter(house.input_storage.names_older_than(float("inf")))))
        kept = await ask(house, entry)
        worker = await house.connect(capacity=2)
        worker.send(p.Want(count=2))
        settled = False
        async with asyncio.timeout(5.0):
            while not (settled and worker.assigned):
                message = await p.read_from_server(worker.reader)
                if isinstance(message, p.Tasks):
                    worker.assigned += message.assignments
                settled = settled or isinstance(message, p.Settled)
        assert [one.task_id for one in worker.assigned] == [kept.id]
        view = await house.service.look(lost.id)
        assert view is not None
        assert view.record is not None
        assert view.record.state is State.ERROR
        assert view.record.reason is not None
        assert view.record.reason.code == "InputDamaged"
        (left,) = [entry.balance for entry in await house.store.keys()]
        assert left == 2500
