"""The examples in the client's docstrings, against a running server."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
from servers import MakeServer

from fluxserve import client


def test_every_example_of_the_client_says_what_comes(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = make_server().start()
    monkeypatch.setenv("FLUXSERVE_URL", server.url)
    monkeypatch.setenv("FLUXSERVE_API_KEY", server.key)
    monkeypatch.chdir(tmp_path)
    names = [client.__name__, *(f"{client.__name__}.{one.name}" for one in pkgutil.iter_modules(client.__path__))]
    tried = 0
    for name in names:
        module = importlib.import_module(name)
        found = doctest.testmod(module, extraglobs={"generate": client.generate})
        assert found.failed == 0, name
        tried += found.attempted
    assert tried >= 15
