"""Whether a caller that is kept waiting is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.types import Receive


@contextlib.contextmanager
def listening(receive: Receive, on_gone: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Listen as long as the block runs: `on_gone` is called when the caller hangs up, and the answer is then True."""
    listener = asyncio.create_task(_hang_up(receive))
    listener.add_done_callback(lambda _: on_gone())
    try:
        yield listener.done
    finally:
        listener.cancel()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
