"""Every store there is, each on its own fresh data; another implementation joins by one line in OPENERS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fluxserve.errors import StoreUnavailable
from fluxserve.store.base import Store
from fluxserve.store.sqlite import SqliteStore

Open = Callable[[], Store]
OPENERS: dict[str, Callable[[Path], Store]] = {"sqlite": lambda folder: SqliteStore(folder / "fluxserve.db")}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the store of this test, as often as it is called: always the same data."""
    return lambda: OPENERS[request.param](tmp_path)


@pytest.fixture
def store(opener: Open) -> Iterator[Store]:
    """An open store; after every test its books must be in order."""
    store = opener()
    yield store
    with suppress(StoreUnavailable):  # closed by the test itself
        asyncio.run(store.close())
    again = opener()
    assert asyncio.run(again.fsck()) == []
    asyncio.run(again.close())
