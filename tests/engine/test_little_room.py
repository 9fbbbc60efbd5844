"""Where networks are while memory is short, on a device that is played: nobody fails for what others take of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Event, Finished, Pixels, Progressed
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.families import FLUX1
from fluxserve.engine.means import USUAL, Means, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.residence import Residence
from fluxserve.engine.trajectory import Conditioning, Inputs
from fluxserve.engine.weights import Parts
from fluxserve.settings import Settings

PATIENCE_S = 120.0
APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=3, guidance=3.5, output_format="png"
)
#: All weights fit, 35 in all, and what a step takes beside its own, but not both.
ROOM, READER, TRANSFORMER, DECODER, STEP = 40, 10, 24, 1, 8


class Device:
    """So much room, and what is taken of it."""

    def __init__(self) -> None:
        self.taken = 0
        self._lock = threading.Lock()

    def take(self, amount: int) -> None:
        with self._lock:
            if self.taken + amount > ROOM:
                raise torch.OutOfMemoryError(f"{amount} beside {self.taken}")
            self.taken += amount

    def give(self, amount: int) -> None:
        with self._lock:
            self.taken -= amount


@dataclass
class Weights:
    """What of a tensor takes room."""

    device: Device
    size: int
    there: bool = False

    def to(self, where: torch.device | str) -> Weights:
        there = str(where) != "cpu"
        if there and not self.there:
            self.device.take(self.size)
        elif self.there and not there:
            self.device.give(self.size)
        self.there = there
        return self


def played(device: Device) -> Residence:
    """Every network on the device, in two halves each."""

    def part(size: int) -> SimpleNamespace:
        halves = [SimpleNamespace(data=Weights(device, size // 2).to("cuda")) for _ in range(2)]
        return SimpleNamespace(parameters=lambda: iter(halves), buffers=lambda: iter(()))

    networks = {
        "text_encoder": part(0), "text_encoder_2": part(READER), "transformer": part(TRANSFORMER),
        "vae": part(2 * DECODER),
    }  # fmt: skip
    return Residence(Parts(family=FLUX1, device=torch.device("cuda"), by_name=networks), 8)


def test_who_wants_to_be_alone_waits_for_the_step_under_way_and_has_the_device_to_himself() -> None:
    device = Device()
    residence = played(device)
    with residence.alone(Stage.PREDICT), residence.using(Stage.PREDICT, USUAL):
        assert device.taken == TRANSFORMER
    order, reading = [], threading.Thread(target=lambda: read())

    def read() -> None:
        with residence.alone(Stage.ENCODE), residence.using(Stage.ENCODE, USUAL):
            order.append(device.taken)

    with residence.using(Stage.PREDICT, USUAL):
        device.take(STEP)
        with pytest.raises(torch.OutOfMemoryError), residence.using(Stage.ENCODE, USUAL):
            pass
        reading.start()
        order.append("stepped")
        device.give(STEP)
    reading.join(PATIENCE_S)
    assert order == ["stepped", READER]


def test_what_came_back_by_half_leaves_nothing_on_the_device() -> None:
    device = Device()
    residence = played(device)
    with residence.alone(Stage.PREDICT), residence.using(Stage.PREDICT, USUAL):
        device.take(STEP + 2)
    with pytest.raises(torch.OutOfMemoryError), residence.using(Stage.ENCODE, USUAL):
        pass
    assert device.taken == TRANSFORMER + STEP + 2 + READER // 2
    with residence.alone(Stage.PREDICT):
        assert device.taken == TRANSFORMER + STEP + 2


def test_any_number_that_want_to_be_alone_get_there() -> None:
    residence = played(Device())

    def work(stage: Stage) -> None:
        for _ in range(2):
            with residence.alone(stage), residence.using(stage, USUAL):
                pass
            with residence.using(stage, USUAL):
                pass

    threads = [threading.Thread(target=work, args=(stage,), daemon=True) for stage in (*Stage, *Stage)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Crowded:
    """A sound network on the device that is played; the prompt "late" is read first when a step has taken its room."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._device = Device()
        self._residence = played(self._device)
        self.is_late = False
        self.stepping, self.refused = threading.Event(), threading.Event()

    @property
    def is_movable(self) -> bool:
        return True

    def alone(self, stage: Stage) -> AbstractContextManager[None]:
        return self._residence.alone(stage)

    @contextmanager
    def using(self, stage: Stage, means: Means) -> Iterator[None]:
        if self.is_late and stage is Stage.ENCODE:
            assert self.stepping.wait(PATIENCE_S)
        try:
            with self._residence.using(stage, means), self._network.using(stage, means):
                yield
        except torch.OutOfMemoryError:
            if stage is Stage.ENCODE:
                self.refused.set()
            raise

    def encode(self, prompt: str) -> Conditioning:
        return self._network.encode(prompt)

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        return self._network.look(generation, pictures, size, means)

    def noise(self, seed: int, size: Size) -> Tensor:
        return self._network.noise(seed, size)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        self._device.take(STEP)
        if self.is_late and not self.stepping.is_set():
            self.stepping.set()
            assert self.refused.wait(PATIENCE_S)
        self._device.give(STEP)
        return self._network.predict(latents, sigmas, guidance, conditioning, inputs, size)

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        return self._network.decode(latents, size)


def test_a_prompt_that_finds_no_room_beside_a_step_is_read_after_it(
    dev_folder: Path, open_once: Callable[[Checkpoint, Runtime], Drawer]
) -> None:
    networks: list[Crowded] = []

    def opened(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        drawer = open_once(checkpoint, runtime)
        networks.append(Crowded(drawer.network))
        return replace(drawer, network=networks[-1])

    engine = DiffusionEngine(
        Settings(models={"flux-dev": str(dev_folder)}, device="cpu", threads=1, token_budget=1), opened
    )
    engine.warm()
    (network,) = (one for one in networks if one is engine._pool.drawer(engine._origins["flux-dev"]).network)
    engine.admit("large", APPLE, turn=0.0)
    told: list[Event] = []
    while not any(isinstance(event, Progressed) for event in told):
        told += engine.step()
    network.is_late = True
    engine.admit("late", replace(APPLE, prompt="late"), turn=1.0)
    while engine.active:
        told += engine.step()
    assert network.refused.is_set()
    assert [event.ref for event in told if isinstance(event, Finished)] == ["large", "late"]
