"""The clock of the machine jumps while tasks are drawn (R15): no lease ends for it, and nothing is drawn twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from gateway_house import gateway_house

from builders import NOW, in_event_loop
from fluxserve.api.workers import REAP_INTERVAL_S
from fluxserve.worker import protocol as p

HOUR, DAY = 3600.0, 86_400.0
JUMPS = {
    "an hour on": HOUR, "an hour back": -HOUR, "a day on": DAY, "a day back": -DAY,
    "past January 2038": 2**31 + DAY - NOW, "the year 1970": -NOW + 1,
}  # fmt: skip


@pytest.mark.parametrize("jump", JUMPS)
@in_event_loop
async def test_a_clock_that_jumps_ends_no_lease_and_tasks_are_drawn_once(tmp_path: Path, jump: str) -> None:
    async with gateway_house(tmp_path) as house:
        workers = [await house.connect(f"w{number}", capacity=4, want=4) for number in range(2)]
        tasks = await house.submit(8)
        held = [entry for worker in workers for entry in await worker.gets(4)]
        house.now += JUMPS[jump]
        reaping = asyncio.create_task(house.gateway.reap())
        await asyncio.wait([reaping], timeout=3 * REAP_INTERVAL_S)
        assert [await house.state(task) for task in tasks] == [("running", 1)] * 8
        reaping.cancel()
        for worker, mine in zip(workers, (held[:4], held[4:]), strict=True):
            worker.send(p.Heartbeat(held=tuple(mine)))
            for entry in mine:
                worker.send(
                    p.Finished(
                        task_id=entry.task_id, fence=entry.fence, picture=b"picture", drawn_by="hand", duration=1.0,
                        facts={},
                    )
                )  # fmt: skip
                assert await worker.next(p.Settled) == p.Settled(
                    task_id=entry.task_id, fence=entry.fence, accepted=True
                )
        workers[0].send(p.Want(count=1))
        await house.submit()
        assert len(await workers[0].gets(5)) == 5
