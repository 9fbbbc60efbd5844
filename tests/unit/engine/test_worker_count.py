"""How many workers a server starts by itself: from the size of the networks and the machine, without torch."""

import os

import pytest

from fluxserve import engine
from fluxserve.engine.device import TINY_WEIGHTS, sensible_workers
from fluxserve.settings import EngineChoice, Settings

CORES = len(os.sched_getaffinity(0))


def test_tiny_networks_on_a_cpu_get_a_worker_for_each_core_as_far_as_memory_goes() -> None:
    assert 1 <= sensible_workers(Settings(device="cpu"), TINY_WEIGHTS) <= min(CORES, 16)


@pytest.mark.parametrize(
    "settings", [Settings(device="cuda"), Settings(device="mps"), Settings(device="cpu", threads=4)]
)
def test_a_gpu_and_workers_of_many_threads_get_one_worker(settings: Settings) -> None:
    assert sensible_workers(settings, 1) == 1


def test_large_networks_get_one_worker() -> None:
    assert sensible_workers(Settings(device="cpu"), TINY_WEIGHTS + 1) == 1


@pytest.mark.parametrize(
    ("choice", "workers", "count"),
    [("none", 3, 0), ("none", None, 0), ("fake", None, 1), ("fake", 3, 3), ("fake", 0, 0)],
)
def test_what_was_set_counts_where_anything_can_draw(choice: EngineChoice, workers: int | None, count: int) -> None:
    assert engine.worker_count(Settings(engine=choice, workers=workers)) == count


def test_the_embedded_model_counts_as_tiny() -> None:
    settings = Settings(engine="diffusion", device="cpu")
    assert engine.worker_count(settings) == sensible_workers(settings, 1)
