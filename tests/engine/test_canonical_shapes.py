"""The numerics contract: equal bits alone, in company, late and parked, within one fingerprint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import forward
from fluxserve.engine.base import Event, Finished, Pixels, Progressed
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.company import find_company
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.forward import ALONE, Company
from fluxserve.engine.means import Means, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import Conditioning, Inputs, Trajectory
from fluxserve.settings import Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
SIZE = Size(256, 256)
OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]
#: What a picture of this size takes of a token budget in the tiny checkpoints without true guidance.
TINY_TOKENS = 16**2 + 32
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
        trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
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
        running = [one.moved(velocity) for one, velocity in zip(running, velocities, strict=True)]
        for one in running:
            latents[int(one.ref)].append(one.latents)
        running = [one for one in running if not one.is_done]
    return latents


def in_company(drawer: Drawer, company: Company) -> Drawer:
    """The same drawer, whose pictures share forward passes."""
    return replace(drawer, company={drawn_size(drawer.checkpoint, SIZE): company})


@pytest.mark.parametrize("name", ["dev", "schnell", "shifted", "float8", "mini"])
@pytest.mark.parametrize("company", [ALONE, Company(most=2), Company(most=4), Company(most=3, padded=True)])
def test_latents_are_equal_at_every_step_alone_in_company_and_late(
    drawers: Mapping[str, Drawer], name: str, company: Company, long: bool
) -> None:
    everyone = (*WANTED, *(replace(WANTED[0], seed=seed, steps=1 + seed % 6) for seed in range(100 if long else 0)))
    with torch.inference_mode():
        drawer = in_company(drawers[name], company)
        together = steps_together(drawer, everyone)
        for wanted, latents in zip(everyone, together, strict=True):
            alone = steps_alone(drawer, wanted)
            assert len(alone) == len(latents) == wanted.steps + 1
            assert all(a.equal(b) for a, b in zip(alone, latents, strict=True))


@pytest.mark.parametrize("name", ["dev", "schnell", "shifted", "float8", "mini"])
def test_passes_of_any_number_of_pictures_give_the_bits_of_one_alone(drawers: Mapping[str, Drawer], name: str) -> None:
    """So the number is no part of the fingerprint, and a picture alone pays nothing for it."""
    with torch.inference_mode():
        alone = [steps_alone(drawers[name], wanted) for wanted in WANTED]
        for most in (2, 3, 4):
            together = steps_together(in_company(drawers[name], Company(most=most)), WANTED)
            for one, other in zip(alone, together, strict=True):
                assert all(a.equal(b) for a, b in zip(one, other, strict=True))


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


@pytest.mark.parametrize("together", [1, 3])
def test_pixels_are_equal_alone_and_beside_latecomers_of_other_sizes(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer, together: int
) -> None:
    engine = DiffusionEngine(settings_for({"flux-dev": dev_folder}, together), open_once)
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


def test_a_second_engine_draws_the_same_pixels(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer
) -> None:
    engines = [DiffusionEngine(settings_for({"flux-dev": dev_folder}), opener) for opener in (open_once, open_drawer)]
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

    def using(self, stage: Stage, means: Means) -> AbstractContextManager[None]:
        return self._network.using(stage, means)

    def encode(self, prompt: str) -> Conditioning:
        return self._network.encode(prompt)

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        return self._network.look(generation, pictures, size, means)

    def noise(self, seed: int, size: Size) -> Tensor:
        return self._network.noise(seed, size)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        self.passes.append({len(latents), len(sigmas), len(guidance), len(conditioning.tokens)})
        return self._network.predict(latents, sigmas, guidance, conditioning, inputs, size)

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        return self._network.decode(latents, size)


class Leaking(Watched):
    """A network whose rows see each other, as kernels may that choose their path by shape."""

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        velocity = super().predict(latents, sigmas, guidance, conditioning, inputs, size)
        return velocity + 1e-6 * velocity.mean()


class Counting(Watched):
    """A network whose bits depend on how many rows a pass has, and on nothing else, as those of libraries do."""

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        velocity = super().predict(latents, sigmas, guidance, conditioning, inputs, size)
        return velocity * (1 + 1e-6 * len(latents))


def holds(network: Network, company: Company, *, seconds: float = 1.0, size: Size = SIZE) -> bool:
    with torch.inference_mode():
        return forward.holds(network, size, company, per_picture=1, seconds=seconds)


def test_the_self_test_passes_pictures_that_do_not_see_each_other(drawers: Mapping[str, Drawer]) -> None:
    assert holds(drawers["dev"].network, Company(most=3))
    assert holds(drawers["dev"].network, Company(most=3, padded=True))


@pytest.mark.parametrize("padded", [False, True])
def test_the_self_test_fails_pictures_that_see_their_neighbours(drawers: Mapping[str, Drawer], padded: bool) -> None:
    assert not holds(Leaking(drawers["dev"].network), Company(most=3, padded=padded), seconds=60)


def test_where_the_number_of_rows_shows_only_passes_that_are_filled_up_pass(drawers: Mapping[str, Drawer]) -> None:
    network = Counting(drawers["dev"].network)
    assert not holds(network, Company(most=3), seconds=60)
    assert holds(network, Company(most=3, padded=True))


@pytest.mark.parametrize(("padded", "passes"), [(False, [{5}, {4}, {3}, {2}]), (True, [{5}])])
def test_the_self_test_tries_every_number_of_pictures_even_when_its_time_is_over(
    drawers: Mapping[str, Drawer], padded: bool, passes: list[set[int]]
) -> None:
    network = Watched(drawers["dev"].network)
    assert holds(network, Company(most=5, padded=padded), seconds=0)
    assert network.passes[10:] == passes  # ten pictures alone come first


def test_the_self_test_stops_after_a_hundred_trials(drawers: Mapping[str, Drawer]) -> None:
    network = Watched(drawers["schnell"].network)
    assert holds(network, Company(most=2), seconds=600, size=Size(64, 64))
    assert len(network.passes) == 4 + 100


@pytest.fixture
def _one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the common sizes only this one is tried."""
    monkeypatch.setattr("fluxserve.engine.company.common_sizes", lambda _: [SIZE])


def company_of(drawer: Drawer, network: Network, token_budget: int) -> Mapping[Size, Company]:
    with torch.inference_mode():
        return find_company(drawer.checkpoint, network, replace(CPU, token_budget=token_budget), "name")


def test_each_size_is_drawn_in_as_much_company_as_the_budget_and_the_self_test_allow(
    drawers: Mapping[str, Drawer],
) -> None:
    drawer = drawers["dev"]
    assert company_of(drawer, drawer.network, 2 * TINY_TOKENS) == {SIZE: Company(most=2)}
    assert company_of(drawer, drawer.network, 2 * TINY_TOKENS - 1) == {}
    assert company_of(drawer, Counting(drawer.network), 2 * TINY_TOKENS) == {SIZE: Company(most=2, padded=True)}
    assert company_of(drawer, Leaking(drawer.network), 2 * TINY_TOKENS) == {}


class Short(Counting):
    """A network whose passes have memory for so many pictures, and whose bits may show their number."""

    def __init__(
        self, network: Network, *, fits: int, counts: bool = False, error: type[Exception] = torch.OutOfMemoryError
    ) -> None:
        super().__init__(network)
        self._fits, self._counts, self._error = fits, counts, error

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        if len(latents) > self._fits:
            raise self._error("no such kernel")
        predict = super().predict if self._counts else self._network.predict
        return predict(latents, sigmas, guidance, conditioning, inputs, size)


@pytest.mark.usefixtures("_one_size")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("fits", "most"), [(8, 8), (7, 4), (1, 1), (0, 1)])
def test_pictures_that_run_out_of_memory_in_the_self_test_have_less_company(
    drawers: Mapping[str, Drawer], padded: bool, fits: int, most: int
) -> None:
    drawer = drawers["dev"]
    found = company_of(drawer, Short(drawer.network, fits=fits, counts=padded), 8 * TINY_TOKENS)
    assert found.get(SIZE, ALONE) == Company(most=most, padded=padded and most > 1)
    assert all(company.most <= fits for company in found.values())


@pytest.mark.usefixtures("_one_size")
@pytest.mark.parametrize("fits", [3, 1, 0])
def test_pictures_that_run_out_of_memory_while_the_budget_is_measured_end_measuring_and_not_the_start(
    drawers: Mapping[str, Drawer], fits: int
) -> None:
    drawer = drawers["dev"]
    found = company_of(drawer, Short(drawer.network, fits=fits), 0)
    assert all(company.most <= fits for company in found.values())


def test_a_self_test_that_fails_otherwise_ends_the_start(drawers: Mapping[str, Drawer]) -> None:
    network = Short(drawers["dev"].network, fits=1, error=RuntimeError)
    with pytest.raises(RuntimeError, match="no such kernel"):
        company_of(drawers["dev"], network, 2 * TINY_TOKENS)


def test_only_what_is_filled_up_is_part_of_the_fingerprint(drawers: Mapping[str, Drawer]) -> None:
    checkpoint = drawers["dev"].checkpoint
    assert open_drawer(checkpoint, replace(CPU, token_budget=2 * TINY_TOKENS)).fingerprint == drawers["dev"].fingerprint


def test_rows_that_do_not_fill_a_padded_pass_are_repeated(drawers: Mapping[str, Drawer]) -> None:
    drawer, network = drawers["dev"], Watched(drawers["dev"].network)
    with torch.inference_mode():
        pictures = [
            [
                forward.Row(
                    latents=drawer.network.noise(seed, SIZE),
                    sigma=0.2 + 0.1 * seed,
                    guidance=3.5,
                    conditioning=drawer.network.encode("x"),
                )
            ]
            for seed in range(5)
        ]
        velocities = forward.predict(network, pictures, SIZE, Company(most=3, padded=True))
        loose = forward.predict(network, pictures, SIZE, Company(most=3))
        alone = forward.predict(drawer.network, pictures, SIZE, ALONE)
    assert network.passes == [{3}, {3}, {3}, {2}]
    assert len(velocities) == len(pictures)
    for (velocity,), (same,), (free,) in zip(velocities, alone, loose, strict=True):
        torch.testing.assert_close(velocity, same, atol=1e-5, rtol=0)
        assert free.equal(same)


# Parked


@pytest.mark.parametrize("together", [1, 3])
def test_pictures_that_are_parked_and_passed_by_again_and_again_have_the_pixels_of_those_alone(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer, together: int, long: bool
) -> None:
    """The longer one has waited, the sooner it is passed by: each newcomer has a lower turn than all before it."""
    engine = DiffusionEngine(settings_for({"flux-dev": dev_folder}, together), open_once)
    engine.warm()
    models, sizes = ("flux-dev", "flux-pro"), (Size(256, 256), Size(320, 256), Size(256, 320))
    wishes = [
        replace(WANTED[0], seed=seed, model=models[seed % 2], size=sizes[seed % 3], steps=6 + seed % 4)
        for seed in range(100 if long else 9)
    ]
    alone = [finish_all(engine, {0: [wish]})["0"] for wish in wishes]
    told: list[Event] = []
    for number, wish in enumerate(wishes):
        engine.admit(str(number), wish, turn=-number)
        moved: set[str] = set()
        while str(number) not in moved:  # until its prompt was read, the others go on
            events = engine.step()
            told += events
            moved |= {event.ref for event in events if isinstance(event, Progressed)}
    assert engine.active > 1  # some were passed by
    while engine.active:
        told += engine.step()
    drawn = {event.ref: event for event in told if isinstance(event, Finished)}
    assert [drawn[str(number)].facts for number in range(len(wishes))] == [finished.facts for finished in alone]
