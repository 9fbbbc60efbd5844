"""The numerics contract for waypoints: taken up after any step, by any engine of the fingerprint, bits stay equal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Event, Finished
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.trajectory import Trajectory
from fluxserve.settings import Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
APPLE = Generation(
    model="flux-dev",
    prompt="a red apple",
    size=Size(256, 256),
    seed=7,
    steps=6,
    guidance=3.5,
    output_format="png",
)
OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]


def moved(drawer: Drawer, trajectory: Trajectory) -> Trajectory:
    return trajectory.moved(drawer.velocities([trajectory])[0])


def latents_from(drawer: Drawer, trajectory: Trajectory) -> list[Tensor]:
    """The latents where the trajectory stands and after each further step."""
    latents = [trajectory.latents]
    while not trajectory.is_done:
        trajectory = moved(drawer, trajectory)
        latents.append(trajectory.latents)
    return latents


def waypoints_of(drawer: Drawer, wanted: Generation) -> list[bytes]:
    """The waypoint after each step but the last."""
    trajectory, saved = drawer.start("a", wanted, 0), []
    for _ in range(wanted.steps - 1):
        trajectory = moved(drawer, trajectory)
        saved.append(drawer.save(trajectory))
    return [waypoint for waypoint in saved if waypoint is not None]


@pytest.mark.parametrize("name", ["dev", "schnell", "mini", "float8"])
def test_latents_taken_up_after_any_step_are_equal_at_every_later_step(
    drawers: Mapping[str, Drawer], name: str, long: bool
) -> None:
    die = Random(1)
    with torch.inference_mode():
        drawer, other = drawers[name], open_drawer(drawers[name].checkpoint, CPU)
        for seed in range(100 if long else 2):
            wanted = replace(APPLE, seed=seed + 2**32 * (seed % 2), guidance=die.uniform(1.5, 5))
            undisturbed = latents_from(drawer, drawer.start("a", wanted, 0))
            saved = waypoints_of(drawer, wanted)
            assert len(saved) == wanted.steps - 1
            for step, waypoint in enumerate(saved, 1):
                resumed = latents_from(other, other.resume("a", wanted, 0, waypoint))
                assert len(resumed) == wanted.steps - step + 1
                assert all(one.equal(same) for one, same in zip(resumed, undisturbed[step:], strict=True))


def test_a_waypoint_holds_exactly_the_latents_of_its_step(drawers: Mapping[str, Drawer]) -> None:
    with torch.inference_mode():
        drawer = drawers["dev"]
        undisturbed = latents_from(drawer, drawer.start("a", APPLE, 0))
        saved = waypoints_of(drawer, APPLE)
    assert [
        load(waypoint)["latents"].equal(latents) for waypoint, latents in zip(saved, undisturbed[1:-1], strict=True)
    ]
    assert not undisturbed[1].equal(undisturbed[2])


def run(engine: DiffusionEngine) -> dict[str, Finished]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return {event.ref: event for event in events if isinstance(event, Finished)}


def step(engine: DiffusionEngine) -> Sequence[Event]:
    """One step of somebody, or whatever else there is to tell."""
    while not (events := engine.step()) and engine.active:
        pass
    return events


def interrupted(
    engines: Sequence[DiffusionEngine], wishes: Mapping[str, Generation], die: Random
) -> dict[str, Finished]:
    """Draw all together; again and again everything is dropped and goes on in the next engine from what was saved."""
    finished: dict[str, Finished] = {}
    saved: dict[str, bytes | None] = dict.fromkeys(wishes)
    life = 0
    while len(finished) < len(wishes):
        engine = engines[life % len(engines)]
        life += 1
        left = [ref for ref in wishes if ref not in finished]
        die.shuffle(left)
        for ref in left:
            engine.admit(ref, wishes[ref], saved[ref])
        for _ in range(die.randint(1, 6)):
            finished |= {event.ref: event for event in step(engine) if isinstance(event, Finished)}
        for ref in left:
            saved[ref] = engine.save(ref) or saved[ref]
            engine.discard(ref)
    return finished


@pytest.mark.parametrize("together", [1, 3])
def test_pictures_that_are_interrupted_together_again_and_again_have_the_pixels_of_undisturbed_ones(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer, together: int, long: bool
) -> None:
    settings = settings_for({"flux-dev": dev_folder}, together)
    engines = [DiffusionEngine(settings, opener) for opener in (open_once, open_drawer)]
    for engine in engines:
        engine.warm()
    models, sizes = ("flux-dev", "flux-pro"), (Size(256, 256), Size(320, 256))
    wishes = {
        str(seed): replace(APPLE, seed=seed, model=models[seed % 2], size=sizes[seed // 2 % 2], steps=3 + seed % 5)
        for seed in range(100 if long else 8)
    }
    undisturbed: dict[str, Finished] = {}
    for ref, wish in wishes.items():
        engines[0].admit(ref, wish)
        undisturbed |= run(engines[0])
    assert interrupted(engines, wishes, Random(7)) == undisturbed
    assert len({drawn.facts["pixels_sha256"] for drawn in undisturbed.values()}) == len(wishes)


def test_the_warmth_of_an_engine_changes_nothing(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer
) -> None:
    """A waypoint may be the very first thing that a new process draws from."""
    used, fresh = (
        DiffusionEngine(settings_for({"flux-dev": dev_folder}), opener) for opener in (open_once, open_drawer)
    )
    used.warm()
    used.admit("a", APPLE)
    undisturbed = run(used)
    used.admit("a", APPLE)
    step(used)
    waypoint = used.save("a")
    assert waypoint is not None
    fresh.warm()
    fresh.admit("a", APPLE, waypoint)
    assert run(fresh) == undisturbed
