"""Servers as fixtures; whatever a test leaves running is ended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import MakeServer, Server

from fluxserve.worker.connection import run_dir


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What servers of earlier tests have measured of this machine, which is not to be measured by each."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def make_server(tmp_path: Path, measured: Path) -> Iterator[MakeServer]:
    """Make a server that is not started yet: `make_server(workers="2")`; settings by name."""
    made: list[Server] = []

    def make(*, data_dir: Path | None = None, **settings: str) -> Server:
        folder = data_dir or tmp_path / f"data{len(made)}"
        if settings.get("engine") == "diffusion" and not folder.exists():
            folder.mkdir(mode=0o700)
            shutil.copytree(measured, folder / "measured")
        server = Server(data_dir=folder, settings={"workers": "1", "fake_steps": "4", "log_level": "info", **settings})
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()
        if (found := server.data_dir / "measured").is_dir():
            shutil.copytree(found, measured, dirs_exist_ok=True)
        shutil.rmtree(run_dir(server.data_dir), ignore_errors=True)  # a killed server cannot tidy up
