"""Servers in this process: one that a module's tests share, and a fresh one for tests that change something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from inprocess import Server, serving
from posting import Post, posting

from receivers import answer_ok


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests that leave nothing behind but tasks of the first key."""
    with serving(tmp_path_factory.mktemp("shared")) as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with other settings, given by name."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(serving(tmp_path / "data", **settings))


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A fresh server with the settings a newcomer has."""
    return serve()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Callable[..., Post]]:
    """Starts a server with a courier and one receiver, which behaves as told."""
    with ExitStack() as stack:
        yield lambda behave=answer_ok, **settings: stack.enter_context(posting(tmp_path / "data", behave, **settings))
