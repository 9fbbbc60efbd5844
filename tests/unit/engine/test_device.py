import platform
import subprocess
import sys

import pytest

#: Frees 128 blocks of 1 MiB below one that stays, and prints what the process then holds, in MiB, twice.
CODE = """
import os
from fluxserve.engine.device import release_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
large = bytes(b"x" * 2**24)
del large  # from now on glibc takes blocks of 1 MiB from the heap
blocks = [b"x" * 2**20 for _ in range(129)]
del blocks[:128]
before = held()
release_memory()
print(before, held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what was freed")
def test_freed_memory_goes_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    before, after = map(int, run.stdout.split())
    assert before - after > 100
