"""Little memory on a GPU, with mini: idle networks make room and no bit changes, tiles are told of, engines go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Failed, Finished
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.means import Stage
from fluxserve.errors import OutOfMemory
from fluxserve.settings import Settings

pytestmark = pytest.mark.gpu
APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(512, 512), seed=7, steps=4, guidance=3.5, output_format="png"
)


def _draw(engine: DiffusionEngine) -> Finished | Failed:
    engine.admit("a", APPLE)
    while True:
        for event in engine.step():
            if isinstance(event, Finished | Failed):
                return event


@pytest.fixture
def little_memory() -> Iterator[None]:
    """This process may take what it has, and nothing more."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_networks_that_made_room_come_back_when_they_are_needed_and_draw_the_same(dtype: str) -> None:
    engine = DiffusionEngine(Settings(device="cuda", dtype=dtype, prompt_cache=0))
    engine.warm()
    sound, held = _draw(engine), engine.device_memory
    network = engine._pool.drawer(engine._origins["flux-dev"]).network
    for stage in Stage:
        assert network.is_movable
        with network.alone(stage):
            assert engine.device_memory < held
        assert _draw(engine) == sound
        assert engine.device_memory == pytest.approx(held, rel=0.05)


def test_an_engine_that_runs_out_of_memory_fails_one_picture_and_then_draws_as_before(
    request: pytest.FixtureRequest,
) -> None:
    engine = DiffusionEngine(Settings(device="cuda", dtype="float32", prompt_cache=0))
    engine.warm()
    sound = _draw(engine)
    request.getfixturevalue("little_memory")
    short = _draw(engine)
    if isinstance(short, Failed):
        assert isinstance(short.error, OutOfMemory)
    else:
        assert short.pixels == sound.pixels or "drawn_with" in short.facts  # type: ignore[union-attr]
    import torch

    torch.cuda.set_per_process_memory_fraction(1.0)
    assert _draw(engine) == sound
