"""Workers and moderation: who judges nothing is not let in, and what a worker withholds is nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_house import GatewayHouse, gateway_house
from test_workers import until_state

from builders import in_event_loop
from fluxserve.worker import protocol as p


async def withhold(house: GatewayHouse, scores: dict[str, float], about: str) -> str:
    """A task whose picture a worker withholds."""
    worker = await house.connect()
    worker.send(p.Want(count=1))
    (task,) = await house.submit()
    (held,) = await worker.gets(1)
    assert worker.assigned[0].refuse_from == {"sexual": 0.4}
    worker.send(p.Withheld(task_id=held.task_id, fence=held.fence, scores=scores, about=about))  # type: ignore[arg-type]
    settled = await worker.next(p.Settled)
    assert settled.accepted
    return task


@pytest.mark.parametrize(("about", "state"), [("picture", "content_moderated"), ("input_picture", "request_moderated")])
@in_event_loop
async def test_a_withheld_picture_ends_its_task(tmp_path: Path, about: str, state: str) -> None:
    async with gateway_house(tmp_path) as house:
        task = await withhold(house, {"sexual": 0.8}, about)
        await until_state(house, task, state, 1)
        (record,) = await house.store.get_many([task])
        assert record is not None
        assert record.refusal is not None
        assert (record.refusal.categories, record.refusal.about) == (("sexual",), about)


@pytest.mark.parametrize("scores", [{"sexual": 0.1}, {}])
@in_event_loop
async def test_a_picture_withheld_for_no_reason_ends_in_error(tmp_path: Path, scores: dict[str, float]) -> None:
    async with gateway_house(tmp_path) as house:
        task = await withhold(house, scores, "picture")
        await until_state(house, task, "error", 1)


@in_event_loop
async def test_a_worker_that_looks_at_nothing_is_not_let_in(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        with pytest.raises(AssertionError, match=r"Refused.*looks at no picture"):
            await house.connect(classifier="")
        assert house.gateway.ready == 0
