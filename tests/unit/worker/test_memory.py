"""How much memory a worker holds, and when that is too much."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fluxserve.settings import Settings
from fluxserve.worker.memory import excess

#: In a process of its own: one that has freed much takes nothing new from the system. Prints what it took, what was
#: seen of it, what it holds and the most that it held.
CODE = """
import os, resource
from fluxserve.worker.memory import resident
before = resident()
taken = bytearray(os.urandom(1024)) * (64 * 1024)
after = resident()
print(len(taken), after - before, after, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_is_taken_is_seen() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    taken, seen, held, peak = map(int, run.stdout.split())
    assert seen > 0.9 * taken
    assert held < 1.05 * peak  # the system counts in lots


def test_only_what_has_a_limit_and_is_over_it_is_too_much() -> None:
    assert excess(Settings(), device=2**40) == {}
    assert excess(Settings(device_memory=100), device=100) == {}
    assert excess(Settings(device_memory=100), device=101) == {"device_memory": 101}
    assert excess(Settings(worker_memory=2**50), device=0) == {}
    if sys.platform == "linux":
        assert set(excess(Settings(worker_memory=1, device_memory=1), device=2)) == {"worker_memory", "device_memory"}
