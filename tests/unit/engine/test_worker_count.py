"""How many workers a server starts by itself: from the size of the networks and the machine, without torch."""

import os
from pathlib import Path

import pytest

from fluxserve import engine
from fluxserve.engine.device import TINY_WEIGHTS, gpus, sensible_workers
from fluxserve.fleet.local import gpu_of
from fluxserve.settings import EngineChoice, Settings

CORES = len(os.sched_getaffinity(0))


def test_tiny_networks_on_a_cpu_get_a_worker_for_each_core_as_far_as_memory_goes() -> None:
    assert 1 <= sensible_workers(Settings(device="cpu"), TINY_WEIGHTS) <= min(CORES, 16)


@pytest.mark.parametrize(
    "settings", [Settings(device="cuda"), Settings(device="mps"), Settings(device="cpu", threads=4)]
)
def test_a_gpu_and_workers_of_many_threads_get_one_worker(settings: Settings) -> None:
    assert sensible_workers(settings, 1) == 1


@pytest.mark.parametrize(
    ("environ", "files", "expected"),
    [
        ({}, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], ("0", "1")),
        ({}, [], ()),
        ({"CUDA_VISIBLE_DEVICES": "2, 5"}, ["nvidia0"], ("2", "5")),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, ["nvidia0"], ("0",)),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ()),
    ],
)
def test_the_gpus_are_those_whose_files_are_there_or_that_the_environment_names(
    tmp_path: Path, environ: dict[str, str], files: list[str], expected: tuple[str, ...]
) -> None:
    for file in files:
        (tmp_path / file).touch()
    assert gpus(Settings(), environ, tmp_path) == expected
    assert gpus(Settings(device="cuda:1"), environ, tmp_path) == ()


def test_each_worker_sees_a_gpu_of_its_own_and_more_workers_than_gpus_share_them_evenly() -> None:
    assert [gpu_of(slot, ("2", "5")) for slot in range(4)] == ["2", "5", "2", "5"]


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
