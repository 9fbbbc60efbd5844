"""Servers as fixtures; whatever a test leaves running is ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import MakeServer, Server

from fluxserve.worker.connection import run_dir


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Make a server that is not started yet: `make_server(workers="2")`; settings by name."""
    made: list[Server] = []

    def make(*, data_dir: Path | None = None, **settings: str) -> Server:
        folder = data_dir or tmp_path / f"data{len(made)}"
        server = Server(data_dir=folder, settings={"workers": "1", "fake_steps": "4", "log_level": "info", **settings})
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()
        shutil.rmtree(run_dir(server.data_dir), ignore_errors=True)  # a killed server cannot tidy up
