"""Two checkpoints where one fits on the GPU: the same pixels after each swap, and no memory left over."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve import mini
from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Finished
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.settings import Settings

pytestmark = pytest.mark.gpu
APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(512, 512), seed=7, steps=4, guidance=3.5, output_format="png"
)


def _draw(engine: DiffusionEngine, model: str) -> bytes:
    engine.admit("a", replace(APPLE, model=model))
    while True:
        for event in engine.step():
            if isinstance(event, Finished):
                return event.pixels.data


@pytest.mark.parametrize("host_weights", [1, 2**33], ids=["through disk", "through pinned memory"])
def test_swaps_change_no_pixel_and_leave_nothing_on_the_device(tmp_path: Path, host_weights: int) -> None:
    other = shutil.copytree(mini.folder(), tmp_path / "other")
    models = {model: "mini" if model == "flux-dev" else str(other) for model in MODELS}
    settings = Settings(
        models=models, device="cuda", dtype="bfloat16",
        memory_plan="resident", memory_budget=1, host_weights=host_weights,
    )  # fmt: skip
    engine = DiffusionEngine(settings)
    engine.warm()
    expected = _draw(engine, "flux-dev")
    held = engine.device_memory
    for _ in range(10):
        assert _draw(engine, "flux-schnell") == expected
        assert _draw(engine, "flux-dev") == expected
        assert engine.device_memory == pytest.approx(held, rel=0.05)
