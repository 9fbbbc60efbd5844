"""The numerics contract: equal bits alone, in company and late, within one fingerprint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import forward
from fluxserve.engine.base import Event, Finished, Pixels
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer, sound_batches
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import Conditioning, Trajectory
from fluxserve.settings import Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=512)
SIZE = Size(256, 256)
WANTED = tuple(
    Generation(
        model="flux-dev",
        prompt=prompt,
        size=SIZE,
        seed=seed,
        steps=steps,
        guidance=guidance,
        output_format="png",
    )
    for prompt, seed, steps, guidance in (
        ("a red apple", 7, 5, 3.5),
        ("a cat face", 2**64 - 1, 3, 1.5),
        ("", 0, 1, 5.0),
        ("a rocket at night", 7, 4, 2.5),
    )
)


def steps_alone(drawer: Drawer, wanted: Generation) -> list[Tensor]:
    trajectory = drawer.start("alone", wanted, 0)
    latents = [trajectory.latents]
    while not trajectory.is_done:
        trajectory = trajectory.moved(drawer.velocities([trajectory])[0], 0)
        latents.append(trajectory.latents)
    return latents


def steps_together(drawer: Drawer, all_wanted: Sequence[Generation]) -> list[list[Tensor]]:
    """One more joins at each step; those that are done leave."""
    latents: list[list[Tensor]] = [[] for _ in all_wanted]
    running: list[Trajectory] = []
    waiting = list(enumerate(all_wanted))
    while waiting or running:
        if waiting:
            number, wanted = waiting.pop(0)
            running.append(drawer.start(str(number), wanted, 0))
            latents[number].append(running[-1].latents)
        velocities = drawer.velocities(running)
        running = [one.moved(velocity, 0) for one, velocity in zip(running, velocities, strict=True)]
        for one in running:
            latents[int(one.ref)].append(one.latents)
        running = [one for one in running if not one.is_done]
    return latents


@pytest.mark.parametrize("name", ["dev", "schnell", "mini"])
@pytest.mark.parametrize("batch", [1, 4])
def test_latents_are_equal_at_every_step_alone_in_company_and_late(
    drawers: Mapping[str, Drawer], name: str, batch: int
) -> None:
    with torch.inference_mode():
        drawer = drawers[name] if batch == 1 else open_drawer(drawers[name].checkpoint, CPU, batch)
        together = steps_together(drawer, WANTED)
        for wanted, latents in zip(WANTED, together, strict=True):
            alone = steps_alone(drawer, wanted)
            assert len(alone) == len(latents) == wanted.steps + 1
            assert all(a.equal(b) for a, b in zip(alone, latents, strict=True))


def finish_all(engine: DiffusionEngine, joining: Mapping[int, Sequence[Generation]]) -> dict[str, Finished]:
    """Step the engine; before step n, the generations of `joining[n]` come in."""
    events: list[Event] = []
    step = number = 0
    while engine.active or step <= max(joining):
        for wanted in joining.get(step, ()):
            engine.admit(str(number), wanted)
            number += 1
        events += engine.step()
        step += 1
    return {event.ref: event for event in events if isinstance(event, Finished)}


@pytest.mark.parametrize("canonical_batch", [1, 3])
def test_pixels_are_equal_alone_and_beside_latecomers_of_other_sizes(
    settings_for: Callable[..., Settings], dev_folder: Path, canonical_batch: int
) -> None:
    engine = DiffusionEngine(settings_for({"flux-dev": dev_folder}, canonical_batch))
    engine.warm()
    other_size = replace(WANTED[0], size=Size(256, 320))
    other_weights = replace(WANTED[1], model="flux-pro")
    everyone = (*WANTED, other_size, other_weights)
    alone = [finish_all(engine, {0: [wanted]})["0"] for wanted in everyone]
    late = finish_all(engine, {number: [wanted] for number, wanted in enumerate(everyone)})
    at_once = finish_all(engine, {0: everyone})
    for number, finished in enumerate(alone):
        assert finished.pixels == late[str(number)].pixels == at_once[str(number)].pixels
        assert finished.facts == late[str(number)].facts == at_once[str(number)].facts
    assert len({finished.facts["pixels_sha256"] for finished in alone}) == len(everyone)


def test_a_second_engine_draws_the_same_pixels(settings_for: Callable[..., Settings], dev_folder: Path) -> None:
    engines = [DiffusionEngine(settings_for({"flux-dev": dev_folder})) for _ in range(2)]
    for engine in engines:
        engine.warm()
    one, other = (finish_all(engine, {0: WANTED}) for engine in engines)
    assert one == other
    assert engines[0].fingerprints == engines[1].fingerprints


class Watched:
    """A network that counts its passes and remembers how many rows each had."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.passes: list[set[int]] = []

    def encode(self, prompt: str) -> Conditioning:
        return self._network.encode(prompt)

    def noise(self, seed: int, size: Size) -> Tensor:
        return self._network.noise(seed, size)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, size: Size
    ) -> Tensor:
        self.passes.append({len(latents), len(sigmas), len(guidance), len(conditioning.tokens)})
        return self._network.predict(latents, sigmas, guidance, conditioning, size)

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        return self._network.decode(latents, size)


class Leaking(Watched):
    """A network whose rows see each other, as kernels may that choose their path by shape."""

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, size: Size
    ) -> Tensor:
        velocity = super().predict(latents, sigmas, guidance, conditioning, size)
        return velocity + 1e-6 * velocity.mean()


def test_the_self_test_passes_rows_that_do_not_see_each_other(drawers: Mapping[str, Drawer]) -> None:
    with torch.inference_mode():
        assert forward.holds(drawers["dev"].network, SIZE, 1, seconds=1)


def test_the_self_test_refuses_rows_that_see_each_other(drawers: Mapping[str, Drawer]) -> None:
    with torch.inference_mode():
        assert not forward.holds(Leaking(drawers["dev"].network), SIZE, 3, seconds=60)


def test_the_self_test_tries_every_slot_even_when_its_time_is_over(drawers: Mapping[str, Drawer]) -> None:
    network = Watched(drawers["dev"].network)
    with torch.inference_mode():
        forward.holds(network, SIZE, 1, seconds=0)
    assert len(network.passes) == 1 + 1


def test_the_self_test_stops_after_a_hundred_trials(drawers: Mapping[str, Drawer]) -> None:
    network = Watched(drawers["schnell"].network)
    with torch.inference_mode():
        assert forward.holds(network, Size(64, 64), 1, seconds=600)
    assert len(network.passes) == 1 + 100


def test_a_size_that_fails_the_self_test_is_drawn_one_row_at_a_time(drawers: Mapping[str, Drawer]) -> None:
    checkpoint = drawers["dev"].checkpoint
    with torch.inference_mode():
        assert sound_batches(checkpoint, Leaking(drawers["dev"].network), CPU, 2) == {}
        assert sound_batches(checkpoint, drawers["dev"].network, replace(CPU, token_budget=100), 2) == {}
        assert set(sound_batches(checkpoint, drawers["dev"].network, CPU, 2)) <= {Size(256, 256)}


def test_rows_that_do_not_fill_a_pass_are_padded(drawers: Mapping[str, Drawer]) -> None:
    drawer, network = drawers["dev"], Watched(drawers["dev"].network)
    with torch.inference_mode():
        rows = [
            forward.Row(
                latents=drawer.network.noise(seed, SIZE),
                sigma=0.2 + 0.1 * seed,
                guidance=3.5,
                conditioning=drawer.network.encode("x"),
            )
            for seed in range(5)
        ]
        velocities = forward.predict(network, rows, SIZE, 3)
        alone = forward.predict(drawer.network, rows, SIZE, 1)
    assert network.passes == [{3}, {3}]
    assert len(velocities) == len(rows)
    for velocity, same in zip(velocities, alone, strict=True):
        torch.testing.assert_close(velocity, same, atol=1e-5, rtol=0)
