"""The HTTP front with short deadlines, on the event loop we install and, with `--long`, on the one of Python."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_front import SHORT, Front


@pytest.fixture(scope="module", params=["uvloop", pytest.param("asyncio", marks=pytest.mark.long)])
def front(request: pytest.FixtureRequest) -> Iterator[Front]:
    server = Front(SHORT, request.param)
    yield server
    server.stop()
