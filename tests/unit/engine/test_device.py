import platform
import subprocess
import sys

import pytest

from fluxserve import engine
from fluxserve.errors import ConfigurationError
from fluxserve.settings import Settings

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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(device="cpu", speed=("graphs",)), "graphs"),
        (Settings(device="cpu", attention="cudnn"), "cudnn"),
        (Settings(device="mps", speed=("float8-dynamic",)), "float8-dynamic"),
        (Settings(device="cuda", speed=("plain", "fused")), "plain"),
        (Settings(device="cuda:1", dtype="float16", speed=("float8-dynamic",)), "dtype = bfloat16"),
        (Settings(device="cuda", dtype="float32", attention="flash"), "16 bits"),
        (Settings(device="auto", speed=("plain", "compiled")), "plain"),
    ],
)
def test_what_no_device_here_can_do_is_refused_before_a_server_starts(settings: Settings, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        engine.check(settings.model_copy(update={"engine": "diffusion"}))
    for own in ({"engine": "fake"}, {"engine": "diffusion", "workers": 0}):
        engine.check(settings.model_copy(update=own))  # others draw, or nothing does


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(device="cpu", speed=("auto", "fused", "float8-dynamic"), attention="flash"),
        Settings(device="cuda", speed=("auto", "float8-dynamic", "graphs"), attention="cudnn"),  # newer ones can
    ],
)
def test_what_only_the_device_can_tell_is_left_to_its_worker(settings: Settings) -> None:
    engine.check(settings.model_copy(update={"engine": "diffusion"}))
