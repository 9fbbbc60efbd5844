"""300 pictures of real networks, one after the other: neither the worker nor the server grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from servers import MakeServer

PICTURES, WARM_UP = 300, 60
SIZES = ((256, 256), (320, 256), (256, 384), (384, 320))
#: Bytes that a process may grow by with each picture, on average: 5 MB in 300 pictures.
ALLOWED = 16 * 1024
#: The cache of read prompts may fill to its budget, which is not growth: so small that it is full before `WARM_UP`.
PROMPT_CACHE = 2**19


def resident(pid: int) -> int:
    """Bytes of the process in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(values: Sequence[int]) -> float:
    """The least squares line through them: how much the next one is larger."""
    mean, middle = sum(values) / len(values), (len(values) - 1) / 2
    moments = sum((place - middle) * (value - mean) for place, value in enumerate(values))
    return moments / sum((place - middle) ** 2 for place in range(len(values)))


def test_a_line_through_memory_that_grows_by_a_page_each_time_rises_by_a_page() -> None:
    assert slope([10**8 + 4096 * place for place in range(50)]) == pytest.approx(4096)
    assert slope([10**8, 10**8 + 5, 10**8]) == pytest.approx(0)


@pytest.mark.long
def test_memory_is_flat_over_three_hundred_pictures(
    make_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(
        engine="diffusion",
        device="cpu",
        result_cache="0",
        prompt_cache=str(PROMPT_CACHE),
        lease="120",
        step_patience="600",
    )
    server.start(ready=False).wait_until_answers()
    first = server.wait(server.submit("warm", steps=1, seed=0), within=600.0)
    assert first["status"] == "Ready"
    (worker,) = server.workers()
    assert server.process is not None
    held: dict[str, list[int]] = {"worker": [], "server": []}
    for number in range(PICTURES):
        width, height = SIZES[number % len(SIZES)]
        task = server.submit(f"apple {number}", seed=number, steps=2, width=width, height=height)
        assert server.wait(task, within=120.0)["status"] == "Ready"
        held["worker"].append(resident(worker.pid))
        held["server"].append(resident(server.process.pid))
    assert server.workers() == [worker]
    slopes = {name: slope(values[WARM_UP:]) for name, values in held.items()}
    with capsys.disabled():
        for name, values in held.items():
            print(
                f"\n  {name}: {values[WARM_UP] / 2**20:.1f} MiB after {WARM_UP} pictures, {values[-1] / 2**20:.1f} MiB "
                f"after {PICTURES}, at most {max(values) / 2**20:.1f}; {slopes[name] / 1024:+.2f} KiB a picture"
            )
    assert max(slopes.values()) < ALLOWED
