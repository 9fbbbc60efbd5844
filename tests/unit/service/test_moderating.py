"""What is handed in is judged again by the server, whatever a worker says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from service_house import House

from builders import DRAWN, HARMLESS, generation, in_event_loop
from fluxserve.errors import ModerationFailed
from fluxserve.moderation.thresholds import TOLERANCES
from fluxserve.service.moderation import Moderation
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

GRANT = 10_000
ON, OFF = Moderation(is_on=True), Moderation(is_on=False)
MINOR = "a child at the beach"


async def handed_in(
    house: House, scores: Mapping[str, float] | None, *, values: Mapping[str, int | str] | None = None
) -> TaskRecord:
    """A task whose picture comes with these scores, as it is written down then."""
    task = await house.submit(await house.key(grant=GRANT), values)
    claim = await house.claim()
    assert await house.service.complete(
        task.id, claim.fence, claim.generation, b"picture", replace(DRAWN, scores=scores)
    )
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    assert await house.store.fsck() == []
    return record


async def balance(house: House) -> int | None:
    """Of the one account."""
    (entry,) = await house.store.keys()
    return entry.balance


@in_event_loop
async def test_a_refused_picture_is_stored_nowhere_and_its_credits_are_back(house: House) -> None:
    record = await handed_in(house, {"sexual": 0.9})
    assert record.state is State.CONTENT_MODERATED
    assert record.refusal is not None
    assert (record.refusal.categories, record.refusal.about, record.refusal.charged) == (("sexual",), "picture", False)
    assert house.pictures() == []
    assert await balance(house) == GRANT
    view = await house.service.look(record.id)
    assert view is not None
    assert view.state is State.CONTENT_MODERATED


@in_event_loop
async def test_it_is_charged_where_the_operator_says_so(make_house: Callable[..., House]) -> None:
    house = make_house(moderation_refund=False)
    record = await handed_in(house, {"sexual": 0.9})
    assert record.refusal is not None
    assert record.refusal.charged
    assert await balance(house) == GRANT - record.cost
    assert house.pictures() == []


@pytest.mark.parametrize(
    "scores", [None, {}, {"gore": 0.0}, {"sexual": float("nan")}, {"sexual": -0.1}, {"sexual": 7.0}]
)
@in_event_loop
async def test_a_picture_that_nobody_looked_at_is_delivered_to_nobody(
    house: House, scores: Mapping[str, float] | None
) -> None:
    record = await handed_in(house, scores)
    assert record.state is State.ERROR
    assert record.reason is not None
    assert record.reason.code == ModerationFailed.__name__
    assert house.pictures() == []
    assert await balance(house) == GRANT


@in_event_loop
async def test_switched_off_nobody_has_to_look(make_house: Callable[..., House]) -> None:
    house = make_house(moderation="off")
    assert (await handed_in(house, None)).state is State.READY


@in_event_loop
async def test_who_tolerates_more_sees_more_but_not_beside_a_minor(house: House) -> None:
    found = [
        (await handed_in(house, {"sexual": 0.5}, values={"safety_tolerance": 6, "prompt": prompt, "seed": 1}))
        for prompt in ("a person at the beach", MINOR)
    ]
    assert [record.state for record in found] == [State.READY, State.CONTENT_MODERATED]
    assert found[1].refusal is not None
    assert found[1].refusal.categories == ("child_safety", "sexual")


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_the_table_for_a_worker_says_what_the_server_will(tolerance: int) -> None:
    """Pictures just under each threshold pass, those on it do not."""
    for prompt in ("a red apple", MINOR):
        drawing = replace(generation(prompt=prompt), safety_tolerance=tolerance)
        table = ON.refuse_from(drawing)
        assert table is not None
        assert ON.judge_scores(drawing, {name: least - 0.001 for name, least in table.items()}) is None
        for name, least in table.items():
            refusal = ON.judge_scores(drawing, {**dict.fromkeys(table, 0.0), name: least})
            assert refusal is not None
            assert name in refusal.categories
    assert OFF.refuse_from(generation()) is None
    assert OFF.judge_scores(generation(), None) is None


def test_more_tolerance_refuses_no_more_pictures() -> None:
    tables = [ON.refuse_from(replace(generation(), safety_tolerance=tolerance)) or {} for tolerance in TOLERANCES]
    for low, high in pairwise(tables):
        assert all(low[name] <= least for name, least in high.items())
    minors = [ON.refuse_from(replace(generation(prompt=MINOR), safety_tolerance=one)) for one in TOLERANCES]
    assert minors == [{"sexual": 0.3}] * len(TOLERANCES)
    assert HARMLESS.keys() == {"sexual"}
