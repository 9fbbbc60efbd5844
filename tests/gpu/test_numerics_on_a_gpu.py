"""The numerics contract on a GPU, with mini: what the CPU suite proves, on the device people own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Event, Finished, Progressed
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.settings import Settings

pytestmark = pytest.mark.gpu


def _generation(seed: int, steps: int = 8) -> Generation:
    return Generation(
        model="flux-dev",
        prompt="a red apple",
        size=Size(512, 512),
        seed=seed,
        steps=steps,
        guidance=3.5,
        output_format="png",
    )


def _draw(engine: DiffusionEngine, generations: Sequence[Generation]) -> dict[str, Finished]:
    for number, generation in enumerate(generations):
        engine.admit(str(number), generation)
    done: dict[str, Finished] = {}
    while engine.active:
        done |= {event.ref: event for event in engine.step() if isinstance(event, Finished)}
    return done


@pytest.mark.parametrize("token_budget", [1, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_has_the_same_pixels_alone_and_in_company(token_budget: int, dtype: str) -> None:
    engine = DiffusionEngine(Settings(device="cuda", dtype=dtype, token_budget=token_budget))
    engine.warm()
    alone = [_draw(engine, [_generation(seed)])["0"].facts["pixels_sha256"] for seed in range(4)]
    together = _draw(engine, [_generation(seed) for seed in range(4)])
    assert [together[str(seed)].facts["pixels_sha256"] for seed in range(4)] == alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_taken_up_by_another_engine_after_any_step_has_the_same_pixels(dtype: str) -> None:
    one, other = (DiffusionEngine(Settings(device="cuda", dtype=dtype)) for _ in range(2))
    for engine in (one, other):
        engine.warm()
    undisturbed = _draw(one, [_generation(7)])["0"]
    one.admit("a", _generation(7))
    for _ in range(7):
        while not one.step():
            pass  # its prompt is being read
        waypoint = one.save("a")
        assert waypoint is not None
        other.admit("b", _generation(7), waypoint)
        done: list[Event] = []
        while other.active:
            done += other.step()
        assert [event.facts for event in done if isinstance(event, Finished)] == [undisturbed.facts]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_previews_show_every_step_but_the_last_and_change_no_picture(dtype: str) -> None:
    engine = DiffusionEngine(Settings(device="cuda", dtype=dtype))
    engine.warm()
    alone = _draw(engine, [_generation(7)])["0"]
    engine.admit("0", _generation(7))
    told: list[Event] = []
    while engine.active:
        engine.show("0")
        told += engine.step()
    assert told[-1] == alone
    previews = [event.preview for event in told if isinstance(event, Progressed)]
    assert previews.pop() is None
    assert all(preview is not None and len(set(preview.data)) > 1 for preview in previews)


def test_a_gpu_draws_what_the_cpu_draws() -> None:
    pictures = []
    for device in ("cpu", "cuda"):
        engine = DiffusionEngine(Settings(device=device, dtype="float32"))
        engine.warm()
        pictures.append(_draw(engine, [_generation(7)])["0"].pixels.data)
    differences = [abs(ours - theirs) for ours, theirs in zip(*pictures, strict=True)]
    assert max(differences) <= 3
