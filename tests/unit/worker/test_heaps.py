"""A worker's threads share two heaps: so it says to the allocator itself, wherever it was started."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Threads that allocate while others do make heaps of their own, where they may.
PROGRAM = """
import ctypes, os, sys, threading
from fluxserve.worker.memory import share_heaps
if sys.argv[1] == "shared":
    print(share_heaps(), file=sys.stderr)
barrier = threading.Barrier(16)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    held = [libc.malloc(20_000) for _ in range(2000)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
file = libc.fdopen(1, b"w")
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
libc.fdopen.restype = ctypes.c_void_p
libc.fflush.argtypes = [ctypes.c_void_p]
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


def heaps(how: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"} | environment,
    )  # fmt: skip
    return done.stdout.count("<heap nr="), done.stderr.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_sixteen_threads_share_two_heaps() -> None:
    alone, _ = heaps("alone")
    assert alone > 2
    assert heaps("shared") == (2, "True")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_the_environment_says_stays() -> None:
    assert heaps("shared", MALLOC_ARENA_MAX="1") == (1, "False")
