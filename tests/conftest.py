"""What all tests share: the `--long` option, the reasons for skipping, and settings of the libraries."""

from __future__ import annotations

import os
import shutil
import sys

import hypothesis
import pytest

# A developer's own settings must not change what is tested, and small networks are fastest on one thread.
for name in [name for name in os.environ if name.startswith("FLUXSERVE_")]:
    del os.environ[name]
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes are started here. Where an environment forbids to keep bytecode, as many images of containers
# do, each would compile what it imports anew: torch and what stands on it takes twelve seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

hypothesis.settings.register_profile("quick", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the long experiments too."""
    parser.addoption("--long", action="store_true", help="run the long experiments too")


def pytest_configure(config: pytest.Config) -> None:
    """More examples with `--long`."""
    hypothesis.settings.load_profile("long" if config.getoption("--long") else "quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with a reason, what cannot or should not run here."""
    long = config.getoption("--long")
    gpu = any(item.get_closest_marker("gpu") for item in items) and _has_gpu()
    for item in items:
        if not long and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a long experiment: run with --long"))
        if not gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU and a torch that can use it"))


def _has_gpu() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long experiments were asked for: tests choose their number of cases by it."""
    return bool(request.config.getoption("--long"))
