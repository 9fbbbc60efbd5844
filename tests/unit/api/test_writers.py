"""Who is asked to write, when, and what becomes of it where a worker is slow, gone or has nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import pytest
from gateway_house import ByHand, GatewayHouse, gateway_house

from builders import in_event_loop
from fluxserve.api.writers import MOST_LOST
from fluxserve.errors import NobodyWrites, NotWritten
from fluxserve.worker import protocol as p

MODEL = "flux-2-pro"
DRAWS = (MODEL, "flux-dev")
SOON_S, NEVER_S = 0.05, 30.0


def writing(house: GatewayHouse, user: str = "a red apple", timeout: float = NEVER_S) -> asyncio.Task[str]:
    asked: Coroutine[None, None, str] = house.gateway.writers.write(MODEL, "Say more.", user, most=9, timeout=timeout)
    return asyncio.create_task(asked)


async def answer(worker: ByHand, text: str) -> p.Write:
    asked = await worker.next(p.Write)
    worker.send(p.Written(number=asked.number, text=text))
    return asked


@in_event_loop
async def test_a_worker_that_writes_is_asked_and_answers(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        asking = writing(house)
        asked = await answer(worker, "A RED APPLE")
        assert (asked.model, asked.system, asked.user, asked.most) == (MODEL, "Say more.", "a red apple", 9)
        assert await asking == "A RED APPLE"


@in_event_loop
async def test_it_is_asked_one_thing_at_a_time(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        first, second = writing(house, "first"), writing(house, "second")
        assert (await answer(worker, "1")).user == "first"
        assert await first == "1"
        assert not second.done()
        assert (await answer(worker, "2")).user == "second"
        assert await second == "2"


@in_event_loop
async def test_what_is_asked_waits_for_a_worker_for_ever(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        asking = writing(house, timeout=SOON_S)
        await asyncio.sleep(3 * SOON_S)
        assert not asking.done()
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        await answer(worker, "at last")
        assert await asking == "at last"


@in_event_loop
async def test_where_no_language_model_draws_it_nobody_waits(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        await house.connect(models=DRAWS, writes=("flux-2-dev",))
        with pytest.raises(NobodyWrites, match="no language model"):
            await writing(house)


@in_event_loop
async def test_a_worker_of_other_models_is_not_asked(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        await house.connect("other", models=("flux-dev",), writes=())
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        asking = writing(house)
        await answer(worker, "mine")
        assert await asking == "mine"


@in_event_loop
async def test_a_slow_one_is_told_that_nobody_waits_any_more(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        with pytest.raises(NotWritten, match="in time"):
            await writing(house, timeout=SOON_S)
        asked = await worker.next(p.Write)
        assert (await worker.next(p.Unwrite)).number == asked.number
        worker.send(p.Written(number=asked.number, text="too late"))
        asking = writing(house, "next")
        assert (await answer(worker, "in time")).user == "next"
        assert await asking == "in time"


@in_event_loop
async def test_one_that_is_not_wanted_any_more_is_taken_back(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        asking = writing(house)
        asked = await worker.next(p.Write)
        asking.cancel()
        assert (await worker.next(p.Unwrite)).number == asked.number


@in_event_loop
async def test_a_problem_is_told(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        worker = await house.connect(models=DRAWS, writes=(MODEL,))
        asking = writing(house)
        asked = await worker.next(p.Write)
        worker.send(p.Written(number=asked.number, problem="The prompt is too long."))
        with pytest.raises(NotWritten, match=r"The prompt is too long\."):
            await asking


@in_event_loop
async def test_another_worker_is_asked_where_one_ends_but_not_for_ever(tmp_path: Path) -> None:
    async with gateway_house(tmp_path) as house:
        asking = writing(house)
        for number in range(MOST_LOST):
            assert not asking.done()
            worker = await house.connect(f"w{number}", models=DRAWS, writes=(MODEL,))
            await worker.next(p.Write)
            worker.writer.close()
        with pytest.raises(NotWritten, match="ended over it"):
            await asking
