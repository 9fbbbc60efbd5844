"""The peak of memory plans on a GPU against the expected one, with FLUX.2-klein-4B's shapes and random numbers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import published
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.drawer import open_drawer
from fluxserve.engine.planning import fit
from fluxserve.settings import PlanChoice, Settings

if TYPE_CHECKING:
    from fluxserve.engine.device import Runtime

pytestmark = pytest.mark.gpu
APPLE = Generation(
    model="flux-2-klein-4b", prompt="a red apple", size=Size(1024, 1024), seed=7, steps=2, guidance=1.0,
    output_format="png",
)  # fmt: skip
PLANS: tuple[PlanChoice, ...] = (
    "resident", "float8", "encoder-blocks", "turns", "float8-turns-tiled", "float8-blocks-tiled", "blocks",
)  # fmt: skip
#: Plans that only move weights.
MOVING = {"resident", "encoder-blocks", "turns", "blocks"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return find(str(published.build(tmp_path_factory.mktemp("weights") / "FLUX.2-klein-4B", "klein-4b", numbers=True)))


def _runtime(plan: PlanChoice) -> Runtime:
    from fluxserve.engine import device

    runtime = device.resolve(Settings(device="cuda", dtype="bfloat16", memory_plan=plan, token_budget=1), 2**40)
    device.apply(runtime)
    return replace(runtime, kept_in=None)


def test_no_plan_takes_more_than_is_expected_and_moving_changes_no_bit(checkpoint: Checkpoint) -> None:
    import torch

    drawn: dict[str, str] = {}
    for plan in PLANS:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        runtime = _runtime(plan)
        with torch.inference_mode():
            drawer = open_drawer(checkpoint, runtime)
            trajectory, began = drawer.start("a", APPLE, 0), time.monotonic()
            while not trajectory.is_done:
                trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
            torch.cuda.synchronize()
            seconds = (time.monotonic() - began) / APPLE.steps
            drawn[plan] = str(drawer.finish(trajectory, trajectory.means).facts["pixels_sha256"])
        peak, expected = torch.cuda.max_memory_allocated(), fit(checkpoint, runtime).peak
        print(f"{plan}: {peak / 2**30:.2f} GiB, expected {expected / 2**30:.2f}, {seconds:.2f} s a step")
        assert 0.4 * expected < peak <= expected, plan
        del drawer, trajectory
    assert len({drawn[plan] for plan in MOVING}) == 1
