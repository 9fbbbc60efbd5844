"""A fresh house for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from service_house import House

from fluxserve.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of this test's own folder."""
    return Settings(data_dir=tmp_path, min_free_disk=0)


@pytest.fixture
def house(tmp_path: Path, settings: Settings) -> Iterator[House]:
    """A service with everything around it; its books must be in order at the end."""
    house = House(tmp_path, settings)
    yield house
    assert asyncio.run(house.store.fsck()) == []
    asyncio.run(house.store.close())


@pytest.fixture
def make_house(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., House]]:
    """The same with other settings, given by name; one for each test."""
    houses: list[House] = []

    def make(**changes: object) -> House:
        houses.append(House(tmp_path, settings.model_copy(update=changes)))
        return houses[-1]

    yield make
    for house in houses:
        assert asyncio.run(house.store.fsck()) == []
        asyncio.run(house.store.close())
