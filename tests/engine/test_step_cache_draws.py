"""Pictures with foretold steps: near those without, and the same to the bit from wherever they are taken up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest
import torch
from flux2_folders import build_klein
from tiny import CPU, TINY_TOKENS

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.speed import Speed
from fluxserve.engine.trajectory import Trajectory
from fluxserve.settings import StepCacheChoice

STEPS = 12
APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=STEPS, guidance=3.5, output_format="png"
)
CACHES: list[StepCacheChoice] = ["taylor", "first-block"]


def pairs(*names: str, quick: dict[str, StepCacheChoice]) -> pytest.MarkDecorator:
    """Every checkpoint with every cache; by default each of `quick` with its own."""
    every = [
        pytest.param(name, cache, marks=[] if quick.get(name) == cache else pytest.mark.long)
        for name, cache in product(names, CACHES)
    ]
    return pytest.mark.parametrize(("name", "cache"), every)


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """FLUX.1 alone and with true guidance, and FLUX.2."""
    klein = build_klein(tmp_path_factory.mktemp("weights") / "klein", is_distilled=True)
    return {"dev": checkpoints["dev"], "shifted": checkpoints["shifted"], "klein": find(str(klein))}


def opened(checkpoint: Checkpoint, cache: StepCacheChoice) -> Drawer:
    with torch.inference_mode():
        return open_drawer(checkpoint, replace(CPU, speed=Speed(step_cache=cache), token_budget=6 * TINY_TOKENS))


def step(drawer: Drawer, trajectories: list[Trajectory]) -> list[Trajectory]:
    with torch.inference_mode():
        velocities = drawer.velocities(trajectories)
        return [one.moved(velocity) for one, velocity in zip(trajectories, velocities, strict=True)]


def end(drawer: Drawer, trajectory: Trajectory) -> Trajectory:
    while not trajectory.is_done:
        (trajectory,) = step(drawer, [trajectory])
    return trajectory


def begun(drawer: Drawer, seed: int = 7) -> Trajectory:
    with torch.inference_mode():
        return drawer.start(str(seed), replace(APPLE, seed=seed), 0)


@contextmanager
def counted(drawer: Drawer) -> Iterator[Counter[str]]:
    """How many passes the first block and the last one made."""
    transformer, passes = drawer.network.transformer, Counter[str]()
    hooks = [
        block.register_forward_hook(lambda *_, name=name: passes.update([name]))
        for name, block in {
            "first": transformer.get_submodule("transformer_blocks.0"),
            "last": transformer.get_submodule("single_transformer_blocks.1"),
        }.items()
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@pairs("dev", "shifted", "klein", quick={"dev": "taylor"})
def test_a_picture_is_near_the_one_whose_steps_are_all_made_for_less(
    folders: dict[str, Checkpoint], name: str, cache: StepCacheChoice
) -> None:
    drawer, usual = opened(folders[name], cache), opened(folders[name], "off")
    with counted(drawer) as passes:
        found = end(drawer, begun(drawer)).latents
    expected = end(usual, begun(usual)).latents
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    skipped = 3 if cache == "taylor" else 4
    assert passes == {"first": STEPS - (skipped if cache == "taylor" else 0), "last": STEPS - skipped}
    assert drawer.fingerprint != usual.fingerprint


@pairs("shifted", "klein", quick={"shifted": "taylor", "klein": "first-block"})
def test_taken_up_after_any_step_a_picture_is_the_undisturbed_one(
    folders: dict[str, Checkpoint], name: str, cache: StepCacheChoice
) -> None:
    drawer = opened(folders[name], cache)
    undisturbed, trajectory = end(drawer, begun(drawer)).latents, begun(drawer)
    for number in range(1, STEPS):
        (trajectory,) = step(drawer, [trajectory])
        saved = drawer.save(trajectory)
        assert saved is not None
        with torch.inference_mode():
            taken_up = drawer.resume("b", APPLE, 0, saved)
        assert number - 2 <= taken_up.position <= number
        assert end(drawer, taken_up).latents.equal(undisturbed)
    with torch.inference_mode():
        assert drawer.finish(trajectory, trajectory.means).facts["step_cache"] == cache
        few = end(drawer, drawer.start("few", replace(APPLE, steps=4), 0))
        assert "step_cache" not in drawer.finish(few, few.means).facts  # it has no step to spare


@pairs("dev", "shifted", quick={"shifted": "first-block"})
def test_pictures_share_passes_with_those_whose_step_is_made_as_theirs_is(
    folders: dict[str, Checkpoint], name: str, cache: StepCacheChoice
) -> None:
    drawer = opened(folders[name], cache)
    alone = [end(drawer, begun(drawer, seed)).latents for seed in range(2)]
    together = [begun(drawer, seed) for seed in range(2)]
    while not together[0].is_done:
        assert together[0].shape == together[1].shape
        together = step(drawer, together)
    assert all(one.latents.equal(other) for one, other in zip(together, alone, strict=True))
    (ahead,) = step(drawer, [begun(drawer)])
    for _ in range(STEPS - 1):
        if not ahead.is_made:
            assert ahead.shape != begun(drawer).shape
            break
        (ahead,) = step(drawer, [ahead])
    assert not ahead.is_made
