"""Watchers are told that there is news, and nothing is kept for those who are not there."""

from __future__ import annotations

import asyncio

from builders import in_event_loop
from fluxserve.service.watches import Watches

SOON_S, NEVER_S = 5.0, 0.01


@in_event_loop
async def test_every_change_wakes_those_who_follow_and_the_end_those_who_wait() -> None:
    watches = Watches()
    with watches.watching("a", end_only=False) as follower, watches.watching("a", end_only=True) as waiter:
        watches.tell("a", is_final=False)
        assert await follower.news(SOON_S)
        assert not await follower.news(NEVER_S)
        assert not await waiter.news(NEVER_S)
        watches.tell("b", is_final=True)
        assert not await waiter.news(NEVER_S)
        watches.tell("a", is_final=True)
        assert await follower.news(SOON_S)
        assert await waiter.news(SOON_S)


@in_event_loop
async def test_news_that_came_before_it_was_waited_for_is_not_missed_and_told_once() -> None:
    watches = Watches()
    with watches.watching("a", end_only=False) as watch:
        for _ in range(3):
            watches.tell("a", is_final=False)
        assert await watch.news(SOON_S)
        assert not await watch.news(NEVER_S)


@in_event_loop
async def test_whoever_leaves_leaves_nothing_behind() -> None:
    watches = Watches()
    with watches.watching("a", end_only=True):
        with watches.watching("a", end_only=True), watches.watching("b", end_only=True):
            assert len(watches) == 2
        assert len(watches) == 1
    assert len(watches) == 0
    watches.tell("a", is_final=True)


@in_event_loop
async def test_everybody_who_waits_is_woken_by_one_end() -> None:
    watches = Watches()

    async def follow() -> bool:
        with watches.watching("a", end_only=True) as watch:
            return await watch.news(SOON_S)

    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow()) for _ in range(100)]
        await asyncio.sleep(0)
        watches.tell("a", is_final=True)
    assert all(follower.result() for follower in followers)
    assert len(watches) == 0


@in_event_loop
async def test_after_the_end_nobody_waits_any_more() -> None:
    watches = Watches()
    with watches.watching("a", end_only=True) as early:
        watches.end()
        assert await early.news(SOON_S)
        assert early.is_over
    with watches.watching("a", end_only=True) as late:
        assert await late.news(SOON_S)
        assert late.is_over
