"""The HTTP front with short deadlines, on both event loops."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_front import SHORT, Front


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    server = Front(SHORT, request.param)
    yield server
    server.stop()
