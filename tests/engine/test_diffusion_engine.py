"""The engine around the networks: events, failures, sizes, several checkpoints, fingerprints."""

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Event, Failed, Finished, Progressed
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime, apply, resolve
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.means import Means, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import Conditioning, Inputs, generator_seed, noise
from fluxserve.errors import (
    BadPicture,
    CheckpointMissing,
    CheckpointRefused,
    DrawingFailed,
    EngineError,
    OutOfMemory,
    UnknownSetting,
)
from fluxserve.settings import Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
APPLE = Generation(
    model="flux-dev",
    prompt="a red apple",
    size=Size(256, 256),
    seed=7,
    steps=2,
    guidance=3.5,
    output_format="jpeg",
)
OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]


@pytest.fixture(scope="module")
def engine(settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer) -> DiffusionEngine:
    """For tests that leave nothing in it."""
    made = DiffusionEngine(settings_for({"flux-dev": dev_folder}), open_once)
    made.warm()
    return made


def run(engine: DiffusionEngine) -> Sequence[Event]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return events


def finish(engine: DiffusionEngine, generation: Generation) -> Finished:
    engine.admit("a", generation)
    finished = run(engine)[-1]
    assert isinstance(finished, Finished)
    return finished


class Breaking:
    """A network that breaks in one way where a prompt says so, and is sound otherwise."""

    def __init__(self, network: Network, breaks: Callable[[Tensor], Tensor]) -> None:
        self._network, self.look = network, network.look
        self._breaks = breaks
        self._marked: list[Tensor] = []

    def using(self, stage: Stage, means: Means) -> AbstractContextManager[None]:
        return self._network.using(stage, means)

    @property
    def is_movable(self) -> bool:
        return self._network.is_movable

    def alone(self, stage: Stage) -> AbstractContextManager[None]:
        return self._network.alone(stage)

    def encode(self, prompt: str) -> Conditioning:
        conditioning = self._network.encode(prompt)
        if "bad" in prompt:
            self._marked.append(conditioning.pooled)
        return conditioning

    def noise(self, seed: int, size: Size) -> Tensor:
        return self._network.noise(seed, size)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        velocity = self._network.predict(latents, sigmas, guidance, conditioning, inputs, size)
        rows = zip(velocity.split(1), conditioning.pooled.split(1), strict=True)
        return torch.cat([self._breaks(row) if self._is_bad(pooled) else row for row, pooled in rows])

    def _is_bad(self, pooled: Tensor) -> bool:
        return any(marked.equal(pooled) for marked in self._marked)

    def decode(self, latents: Tensor, size: Size) -> object:
        return self._network.decode(latents, size)


def engine_that(breaks: Callable[[Tensor], Tensor], settings: Settings, open_drawer: OpenDrawer) -> DiffusionEngine:
    def open_breaking(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        drawer = open_drawer(checkpoint, runtime)
        return replace(drawer, network=Breaking(drawer.network, breaks))  # type: ignore[arg-type]

    engine = DiffusionEngine(settings, open_drawer=open_breaking)
    engine.warm()
    return engine


@pytest.fixture
def open_on_one_core(open_once: OpenDrawer) -> OpenDrawer:
    """With the runtime as it is told, but with one thread."""

    def opened(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        apply(CPU)
        return open_once(checkpoint, runtime)

    return opened


def runs_out_of_memory(velocity: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("tried to allocate 5 GiB at 0xdeadbeef")


def raises(velocity: Tensor) -> Tensor:
    raise RuntimeError("secret library text /private/someone")


def returns_nan(velocity: Tensor) -> Tensor:
    return velocity * torch.nan


def returns_infinity(velocity: Tensor) -> Tensor:
    return velocity + torch.inf


def test_progress_is_told_at_every_step_and_then_the_picture(engine: DiffusionEngine) -> None:
    engine.admit("a", replace(APPLE, steps=3))
    assert engine.active == 1
    events = run(engine)
    assert events[:-1] == [Progressed(ref="a", step=step, steps=3) for step in (1, 2, 3)]
    assert isinstance(events[-1], Finished)


def test_an_idle_engine_does_nothing(engine: DiffusionEngine) -> None:
    assert engine.step() == ()


@pytest.mark.parametrize("size", [Size(256, 256), Size(320, 256), Size(288, 416)])
def test_without_a_cap_the_picture_is_drawn_at_its_own_size(engine: DiffusionEngine, size: Size) -> None:
    finished = finish(engine, replace(APPLE, size=size, steps=1))
    assert finished.facts["drawn_at"] == str(size) == str(finished.pixels.size)
    assert len(finished.pixels.data) == 3 * size.area


@pytest.mark.parametrize(
    ("size", "drawn_at"),
    [
        (Size(256, 256), "512x512"),
        (Size(320, 256), "768x512"),
        (Size(1024, 768), "768x512"),
        (Size(3136, 1344), "1024x512"),
        (Size(256, 1440), "512x1024"),
    ],
)
def test_mini_draws_at_a_size_it_learnt_and_answers_exactly_the_size_asked_for(
    engine: DiffusionEngine, size: Size, drawn_at: str
) -> None:
    finished = finish(engine, replace(APPLE, model="flux-pro-1.1", size=size))
    assert finished.facts["drawn_at"] == drawn_at
    assert (finished.pixels.size, finished.drawn_by) == (size, "fluxserve-mini")


def test_only_the_weights_that_draw_a_prompt_warn_about_it(engine: DiffusionEngine) -> None:
    photo = replace(APPLE, prompt="a photo of a red apple", steps=1)
    assert finish(engine, photo).warnings == ()
    (warning,) = finish(engine, replace(photo, model="flux-pro")).warnings
    assert warning == "fluxserve-mini draws illustrations, not photographs"
    assert finish(engine, replace(APPLE, model="flux-pro", steps=1)).warnings == ()


def test_each_model_is_drawn_by_the_weights_it_is_mapped_to(engine: DiffusionEngine) -> None:
    dev, pro = finish(engine, APPLE), finish(engine, replace(APPLE, model="flux-pro"))
    assert (dev.drawn_by, pro.drawn_by) == ("tiny-dev", "fluxserve-mini")
    assert dev.facts["fingerprint"] != pro.facts["fingerprint"]
    assert engine.fingerprints["flux-dev"] == dev.facts["fingerprint"]
    assert engine.fingerprints["flux-pro"] == pro.facts["fingerprint"]


@pytest.mark.parametrize("prompt", ["", "\ud800 half a surrogate", "word " * 2000, "日本語 🍎", "\x00"])
def test_any_prompt_can_be_drawn(engine: DiffusionEngine, prompt: str) -> None:
    assert finish(engine, replace(APPLE, prompt=prompt, model="flux-pro", steps=1)).pixels.size == APPLE.size


def test_a_discarded_generation_is_never_heard_of_again(engine: DiffusionEngine) -> None:
    engine.admit("waiting", APPLE)
    engine.discard("waiting")
    engine.admit("running", APPLE)
    engine.admit("staying", APPLE)
    engine.step()
    engine.discard("running")
    engine.discard("unknown")
    assert engine.active == 1
    assert {event.ref for event in run(engine)} == {"staying"}


@pytest.mark.parametrize("together", [1, 2, 4])
def test_a_discard_at_any_step_changes_no_pixel_of_its_neighbours(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer, together: int
) -> None:
    engine = DiffusionEngine(settings_for(dev_folder, together), open_once)
    engine.warm()
    wishes = {ref: replace(APPLE, seed=seed, steps=4) for seed, ref in enumerate(("left", "gone", "right"))}
    expected = {ref: finish(engine, wish).pixels for ref, wish in wishes.items()}
    for steps_before in range(8):
        for ref, wish in wishes.items():
            engine.admit(ref, wish)
        told = [event for _ in range(steps_before) for event in engine.step()]
        engine.discard("gone")
        told += run(engine)
        pixels = {event.ref: event.pixels for event in told if isinstance(event, Finished)}
        assert {"left", "right"} <= pixels.keys()
        assert {ref: expected[ref] for ref in pixels} == pixels


def test_a_discarded_generation_leaves_nothing_in_memory(
    settings_for: Callable[..., Settings], dev_folder: Path, open_on_one_core: OpenDrawer
) -> None:
    kept: list[weakref.ref[Tensor]] = []

    class Remembering(Breaking):
        def encode(self, prompt: str) -> Conditioning:
            conditioning = super().encode(prompt)
            kept.append(weakref.ref(conditioning.tokens))
            return conditioning

    def open_remembering(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        drawer = open_on_one_core(checkpoint, runtime)
        return replace(drawer, network=Remembering(drawer.network, lambda row: row))  # type: ignore[arg-type]

    settings = settings_for(dev_folder).model_copy(update={"prompt_cache": 0, "threads": 2})
    engine = DiffusionEngine(settings, open_drawer=open_remembering)
    engine.warm()
    kept.clear()
    for ref in ("staying", "gone"):
        engine.admit(ref, replace(APPLE, steps=50))
    engine.step()
    engine.step()
    engine.discard("gone")
    gc.collect()
    assert [tokens() is None for tokens in kept] == [False, True]


def moved(events: Sequence[Event]) -> list[str]:
    """Who made a step."""
    return [event.ref for event in events if isinstance(event, Progressed)]


@pytest.fixture
def orderly(settings_for: Callable[..., Settings], dev_folder: Path, open_on_one_core: OpenDrawer) -> DiffusionEngine:
    """An engine whose steps take all cores, as it thinks: it reads prompts between two steps, none beside them."""
    settings = settings_for(dev_folder, 2).model_copy(update={"threads": 2})
    made = DiffusionEngine(settings, open_drawer=open_on_one_core)
    made.warm()
    return made


def test_the_lowest_turn_steps_and_those_like_it_join_in_the_order_of_their_turns(orderly: DiffusionEngine) -> None:
    many, tall = replace(APPLE, steps=50), replace(APPLE, steps=50, size=Size(256, 320))
    for ref, wish, turn in (("second", many, 2.0), ("third", many, 3.0), ("first", many, 1.0), ("tall", tall, 1.5)):
        orderly.admit(ref, wish, turn=turn)
    assert [moved(orderly.step()) for _ in range(4)] == [
        ["first"],
        ["first", "second"],
        ["first", "second"],
        ["first", "second"],
    ]
    orderly.admit("tall at once", tall, turn=0.5)
    assert moved(orderly.step()) == ["tall at once"]  # that size was not tested: one at a time
    orderly.discard("tall at once")
    orderly.discard("first")
    assert moved(orderly.step()) == ["tall"]
    orderly.discard("tall")
    assert moved(orderly.step()) == ["second", "third"]


def test_a_pass_is_shared_between_flows_and_those_that_are_parked_for_it_have_the_same_pixels(
    settings_for: Callable[..., Settings], dev_folder: Path, open_on_one_core: OpenDrawer
) -> None:
    engine = DiffusionEngine(settings_for(dev_folder, 4).model_copy(update={"threads": 2}), open_on_one_core)
    engine.warm()
    wishes = [replace(APPLE, seed=seed, steps=3) for seed in range(5)]
    alone = [finish(engine, wish).pixels for wish in wishes]
    engine.admit("0", wishes[0], turn=0.0, flow="one")
    for number in range(1, 5):
        engine.admit(str(number), wishes[number], turn=number, flow="many")
    told = [engine.step() for _ in range(4)]
    assert [moved(events) for events in told] == [["0"], ["0", "1"], ["0", "1"], ["1", "2", "3"]]
    events = [event for step in told for event in step] + list(run(engine))
    drawn = {event.ref: event.pixels for event in events if isinstance(event, Finished)}
    assert [drawn[ref] for ref in "01234"] == alone


def test_of_equal_turns_the_first_that_came_is_drawn_to_its_end(orderly: DiffusionEngine) -> None:
    for ref in ("a", "b", "c"):
        orderly.admit(ref, replace(APPLE, size=Size(256, 320)))
    assert moved(run(orderly)) == ["a", "a", "b", "b", "c", "c"]


def test_a_short_one_with_a_lower_turn_waits_for_no_step_but_the_one_under_way(orderly: DiffusionEngine) -> None:
    orderly.admit("long", replace(APPLE, steps=50, size=Size(256, 320)), turn=1.0)
    for _ in range(5):
        assert moved(orderly.step()) == ["long"]
    orderly.admit("short", APPLE, turn=0.0)
    assert moved(run(orderly)) == ["short", "short", *45 * ["long"]]


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (runs_out_of_memory, OutOfMemory),
        (raises, DrawingFailed),
        (returns_nan, BadPicture),
        (returns_infinity, BadPicture),
    ],
)
def test_one_bad_generation_fails_alone_and_no_library_text_gets_out(
    settings_for: Callable[..., Settings],
    dev_folder: Path,
    open_once: OpenDrawer,
    together: int,
    breaks: Callable[[Tensor], Tensor],
    error: type[EngineError],
) -> None:
    engine = engine_that(breaks, settings_for(dev_folder, together), open_once)
    expected = finish(engine, APPLE)
    for ref, prompt in {"one": "a red apple", "two": "a bad apple", "three": "a red apple"}.items():
        engine.admit(ref, replace(APPLE, prompt=prompt))
    outcomes = {event.ref: event for event in run(engine)}
    failed = outcomes["two"]
    assert isinstance(failed, Failed)
    assert type(failed.error) is error
    assert not [word for word in ("0xdeadbeef", "secret", "/home") if word in failed.error.message]
    for ref in ("one", "three"):
        good = outcomes[ref]
        assert isinstance(good, Finished)
        assert good.pixels == expected.pixels
    assert finish(engine, APPLE).pixels == expected.pixels


def test_a_broken_device_is_not_blamed_on_a_generation(
    settings_for: Callable[..., Settings], dev_folder: Path, open_once: OpenDrawer
) -> None:
    def breaks(velocity: Tensor) -> Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = engine_that(breaks, settings_for(dev_folder), open_once)
    engine.admit("a", replace(APPLE, prompt="bad"))
    with pytest.raises(torch.AcceleratorError):
        run(engine)


def spoiled(folder: Path, copy: Path, file: str, tensor: str, value: float) -> Path:
    shutil.copytree(folder, copy)
    tensors = load_file(copy / file)
    save_file(tensors | {tensor: torch.full_like(tensors[tensor], value)}, copy / file)
    return copy


def test_weights_that_draw_one_colour_stop_the_start(
    settings_for: Callable[..., Settings], dev_folder: Path, tmp_path: Path
) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    folder = spoiled(dev_folder, tmp_path / "grey", file, "decoder.conv_out.weight", 0.0)
    with pytest.raises(BadPicture):
        DiffusionEngine(settings_for(folder)).warm()


def test_weights_that_draw_nothing_finite_stop_the_start(
    settings_for: Callable[..., Settings], dev_folder: Path, tmp_path: Path
) -> None:
    file = "transformer/diffusion_pytorch_model.safetensors"
    folder = spoiled(dev_folder, tmp_path / "nan", file, "proj_out.weight", float("nan"))
    with pytest.raises(BadPicture):
        DiffusionEngine(settings_for(folder)).warm()


def test_weights_in_shards_are_the_same_weights(
    settings_for: Callable[..., Settings], engine: DiffusionEngine, dev_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(dev_folder, folder)
    whole = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    halves = {"one.safetensors": sorted(tensors)[::2], "two.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, whole.with_name(file))
    weight_map = {name: file for file, names in halves.items() for name in names}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = DiffusionEngine(settings_for(folder))
    sharded.warm()
    assert finish(sharded, APPLE).pixels == finish(engine, APPLE).pixels


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.long)])
def test_half_precision_draws_nearly_the_same_picture(
    open_once: OpenDrawer, dtype: Literal["bfloat16", "float16"]
) -> None:
    engines = [
        DiffusionEngine(Settings(device="cpu", token_budget=1), open_once),
        DiffusionEngine(Settings(device="cpu", dtype=dtype)),
    ]
    for engine in engines:
        engine.warm()
    exact, half = (finish(engine, replace(APPLE, steps=8)) for engine in engines)
    differences = [abs(a - b) for a, b in zip(exact.pixels.data, half.pixels.data, strict=True)]
    assert 0 < sum(differences) / len(differences) < 4
    assert exact.facts["fingerprint"] != half.facts["fingerprint"]


def test_loading_and_drawing_ask_the_network_for_nothing() -> None:
    code = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"{event} {arguments[1:]}")
sys.addaudithook(refuse)
from fluxserve import engine
from fluxserve.settings import Settings
engine.create(Settings(engine="diffusion", device="cpu")).warm()
"""
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04pickle"])
def test_a_weights_file_that_is_no_safetensors_is_refused(
    settings_for: Callable[..., Settings], dev_folder: Path, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(dev_folder, folder)
    (folder / "text_encoder/model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointRefused):
        DiffusionEngine(settings_for(folder)).warm()


def test_a_missing_checkpoint_and_an_unknown_model_stop_the_start(settings_for: Callable[..., Settings]) -> None:
    with pytest.raises(CheckpointMissing):
        DiffusionEngine(settings_for(Path("/no/such/folder"))).warm()
    with pytest.raises(UnknownSetting):
        DiffusionEngine(settings_for({"flux-9": Path("mini")})).warm()


def test_tiny_networks_get_one_thread_and_large_ones_all_cores() -> None:
    assert resolve(Settings(device="cpu"), 10 * 2**20).threads == 1
    assert resolve(Settings(device="cpu", threads=3), 10 * 2**20).threads == 3
    assert resolve(Settings(device="cpu"), 2**40).threads == len(os.sched_getaffinity(0))


def test_seeds_that_share_their_lower_half_draw_different_noise() -> None:
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1, 2**32 - 1]
    drawn = [noise(seed, (1, 4, 4, 4)) for seed in seeds]
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == len(seeds)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_seeds_below_two_to_the_32_are_torchs_own(seed: int) -> None:
    assert generator_seed(seed) == seed
    assert noise(seed, (3, 5)).equal(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)))
