"""Cores that workers lend each other, as they see it through files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fluxserve.engine.cores import MOST_WORKERS, Cores

#: A worker in a process of its own that works until it is killed.
WORKING = """
import sys, time
from pathlib import Path
from fluxserve.engine.cores import Cores
cores = Cores(Path(sys.argv[1]), int(sys.argv[2]))
print(cores.share(), flush=True)
time.sleep(600)
"""


def test_who_works_alone_has_all_cores_and_those_who_work_together_share_them(tmp_path: Path) -> None:
    one, other, third = (Cores(tmp_path, 4) for _ in range(3))
    assert one.share() == 4
    assert (other.share(), one.share()) == (2, 2)
    assert (third.share(), other.share(), one.share()) == (1, 1, 1)
    other.rest()
    assert (third.share(), one.share()) == (2, 2)
    third.rest()
    third.rest()
    assert one.share() == 4


def test_more_workers_than_cores_have_one_each(tmp_path: Path) -> None:
    workers = [Cores(tmp_path, 2) for _ in range(5)]
    assert [worker.share() for worker in workers] == [2, 1, 1, 1, 1]
    for worker in workers[:4]:
        worker.rest()
    assert workers[4].share() == 2


def test_a_machine_of_many_cores_has_a_place_for_every_worker(tmp_path: Path) -> None:
    workers = [Cores(tmp_path, 256) for _ in range(MOST_WORKERS)]
    assert [worker.share() for worker in workers] == [256 // number for number in range(1, MOST_WORKERS + 1)]


def test_a_worker_that_is_killed_gives_its_core_back(tmp_path: Path) -> None:
    cores = Cores(tmp_path, 2)
    with subprocess.Popen(
        [sys.executable, "-c", WORKING, str(tmp_path), "2"], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "2\n"
        assert cores.share() == 1
        worker.send_signal(signal.SIGKILL)
    assert cores.share() == 2


@pytest.mark.parametrize("folder", [None, Path("no data folder") / "cores"])
def test_without_a_folder_a_worker_has_one_core(folder: Path | None) -> None:
    assert Cores(folder, 8).share() == 1


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_cannot_be_written_means_one_core(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert Cores(tmp_path / "cores", 8).share() == 1
