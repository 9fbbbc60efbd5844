"""Requests for several pictures, and those that are held until their tasks have ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from starlette.types import Receive

from fluxserve.api.events import HEARTBEAT_S
from fluxserve.api.presence import listening
from fluxserve.errors import PictureGone, ShuttingDown
from fluxserve.service.orders import Order
from fluxserve.service.service import Service
from fluxserve.service.views import View
from fluxserve.service.watches import Watch
from fluxserve.store.base import TaskRecord

#: Called with a task that may have changed, and with False where only time has passed.
News = Callable[[View, bool], Awaitable[None]]


class CallerGone(Exception):
    """Whoever waited has hung up."""


def numbered(order: Order, number: int) -> Order:
    """The order of another picture of the same request: with a seed of its own, and a key that no header can hold."""
    values, key = dict(order.values), order.idempotency_key
    if isinstance(seed := values.get("seed"), int):
        values["seed"] = (seed + number) % 2**64
    return replace(order, values=values, idempotency_key=f"{key}\n{number}" if number and key else key)


async def until_ended(
    service: Service, records: Sequence[TaskRecord], receive: Receive, *, within: float, news: News | None = None
) -> list[View]:
    """The tasks as they are when all have ended, or after so many seconds. Raises CallerGone and ShuttingDown."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    views: list[View] = []
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(service.watches.watching(one.id, end_only=news is None)) for one in records]
        is_gone = stack.enter_context(listening(receive, lambda: _wake(watches)))
        for record, watch in zip(records, watches, strict=True):
            woken = True
            while (view := await service.look(record.id)) is not None and view.state.is_active and clock() < deadline:
                if is_gone():
                    raise CallerGone
                if watch.is_over:
                    raise ShuttingDown("The server is stopping. Try again in a moment.")
                if news is not None:
                    await news(view, woken)
                woken = await watch.news(min(HEARTBEAT_S, max(0.0, deadline - clock())))
            if view is None:
                raise PictureGone("This task was deleted before it could be answered.")
            views.append(view)
    return views


async def give_up(service: Service, records: Sequence[TaskRecord]) -> None:
    """Nobody will hear of those that have not ended: they are cancelled, and their credits given back."""
    for record in records:
        view = await service.look(record.id)
        if view is not None and view.state.is_active:
            await service.cancel(record.id, record.account_id)


def _wake(watches: Sequence[Watch]) -> None:
    for watch in watches:
        watch.wake()
