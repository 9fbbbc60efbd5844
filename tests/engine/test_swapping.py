"""Several checkpoints where one fits: they take turns, nobody waits for ever, no bit changes and nothing is left."""

import gc
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Event, Failed, Finished, Progressed
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Room, Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import open_drawer
from fluxserve.engine.duty import Duty
from fluxserve.engine.means import Stage
from fluxserve.engine.planning import fit
from fluxserve.engine.pool import Origin, Pool
from fluxserve.engine.recovery import Recovery
from fluxserve.errors import CheckpointRefused, DrawingFailed
from fluxserve.settings import Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
DEV = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=1, guidance=3.5, output_format="png"
)
SCHNELL = replace(DEV, model="flux-schnell")
WARM_UP = 20
#: Bytes that the process may grow by with each swap, on average: a tenth of a checkpoint's weights. What it holds moves
#: up and down by three times as much; over 300 swaps it did not grow at all.
ALLOWED = 512 * 1024
PATIENCE_S = 60.0


def settings_of(dev: Path, schnell: Path) -> Settings:
    """Two checkpoints, and no room for a second one."""
    models = {model: str(dev if model == DEV.model else schnell) for model in MODELS}
    return Settings(models=models, device="cpu", token_budget=1, memory_plan="resident", memory_budget=1)


@pytest.fixture(scope="module")
def engine(dev_folder: Path, schnell_folder: Path) -> DiffusionEngine:
    made = DiffusionEngine(settings_of(dev_folder, schnell_folder))
    made.warm()
    return made


def run(engine: DiffusionEngine) -> Sequence[Event]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return events


def draw(engine: DiffusionEngine, generation: Generation) -> bytes:
    engine.admit("a", generation)
    finished = run(engine)[-1]
    assert isinstance(finished, Finished)
    return finished.pixels.data


def tensors(pool: Pool, origin: Origin) -> Iterator[Tensor]:
    """All weights of one that is at hand."""
    network = pool.drawer(origin).network
    for stage in Stage:
        yield from network._tensors(stage)  # type: ignore[attr-defined]


def weights_on_device(engine: DiffusionEngine) -> list[weakref.ref[Tensor]]:
    """Of the one checkpoint that is there."""
    (origin,) = {origin for origin in engine._origins.values() if engine._pool.is_at_hand(origin)}
    return [weakref.ref(tensor) for tensor in tensors(engine._pool, origin)]


def swaps(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "action", "") == "checkpoint_back" for record in caplog.records)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(values: Sequence[int]) -> float:
    """The least squares line through them: how much the next one is larger."""
    places = torch.arange(len(values), dtype=torch.float64)
    tall, wide = torch.tensor(values, dtype=torch.float64), places - places.mean()
    return float((wide * tall).sum() / (wide * wide).sum())


@pytest.mark.parametrize("number_of_swaps", [4, pytest.param(50, marks=pytest.mark.long)])
def test_swaps_change_no_bit_and_leave_nothing_in_memory(
    engine: DiffusionEngine,
    dev_folder: Path,
    schnell_folder: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    number_of_swaps: int,
) -> None:
    roomy = DiffusionEngine(settings_of(dev_folder, schnell_folder).model_copy(update={"memory_budget": 0}))
    roomy.warm()
    caplog.set_level(logging.INFO)
    expected = [draw(roomy, DEV), draw(roomy, SCHNELL)]
    assert not swaps(caplog)
    del roomy
    assert draw(engine, SCHNELL) == expected[1]
    held, left, swapped = [], [], 0
    for number in range(number_of_swaps):
        caplog.clear()
        left += weights_on_device(engine)
        assert draw(engine, (DEV, SCHNELL)[number % 2]) == expected[number % 2]
        swapped += swaps(caplog)
        held.append(resident())
    assert swapped == number_of_swaps
    gc.collect()
    assert len(left) > number_of_swaps
    assert not [tensor for tensor in left if tensor() is not None]
    if number_of_swaps > WARM_UP:
        grown = slope(held[WARM_UP:])
        with capsys.disabled():
            print(f"\n  {held[WARM_UP] / 2**20:.1f} to {held[-1] / 2**20:.1f} MiB; {grown / 1024:+.2f} KiB a swap")
        assert grown < ALLOWED


def test_two_models_that_are_asked_for_in_turn_do_not_swap_for_each_picture(
    engine: DiffusionEngine, caplog: pytest.LogCaptureFixture
) -> None:
    draw(engine, DEV)
    caplog.set_level(logging.INFO)
    caplog.clear()
    for number in range(20):
        engine.admit(str(number), (DEV, SCHNELL)[number % 2], turn=float(number))
    drawn = [event.ref for event in run(engine) if isinstance(event, Finished)]
    assert sorted(drawn, key=int) == [str(number) for number in range(20)]
    assert swaps(caplog) <= 4


def test_whoever_waits_is_drawn_before_a_long_picture_of_other_weights_which_comes_to_no_harm(
    engine: DiffusionEngine, dev_folder: Path, schnell_folder: Path
) -> None:
    draw(engine, DEV)
    endless = replace(DEV, steps=10_000, seed=1)
    engine.admit("endless", endless, turn=0.0)
    engine.admit("waiting", SCHNELL, turn=1.0)
    events: list[Event] = []
    while not any(isinstance(event, Finished) for event in events):
        events += engine.step()
    steps = sum(isinstance(event, Progressed) and event.ref == "endless" for event in events)
    assert steps > 1
    while steps == sum(isinstance(event, Progressed) and event.ref == "endless" for event in events):
        events += engine.step()
    swapped = engine.save("endless")
    engine.discard("endless")
    assert not engine.active
    engine.admit("endless", endless)
    while (alone := engine._trajectories.get("endless")) is None or alone.position <= steps:
        engine.step()
    assert engine.save("endless") == swapped
    engine.discard("endless")


def test_what_waits_for_its_weights_can_be_discarded(engine: DiffusionEngine) -> None:
    draw(engine, DEV)
    engine.admit("long", replace(DEV, steps=30))
    engine.admit("waiting", SCHNELL)
    engine.step()
    engine.discard("waiting")
    finished = run(engine)[-1]
    assert isinstance(finished, Finished)
    assert finished.ref == "long"
    assert draw(engine, SCHNELL)


def test_weights_whose_files_changed_meanwhile_fail_their_tasks_and_no_others(
    dev_folder: Path, schnell_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(dev_folder, tmp_path / "changing")
    engine = DiffusionEngine(settings_of(folder, schnell_folder))
    engine.warm()
    sound = draw(engine, SCHNELL)
    (file,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    save_file({name: tensor + 1 for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    for _ in range(2):
        engine.admit("changed", DEV)
        (failed,) = run(engine)
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, DrawingFailed)
        assert "restart it" in failed.error.message
    file.unlink()
    engine.admit("gone", DEV)
    (failed,) = run(engine)
    assert isinstance(failed, Failed)
    assert draw(engine, SCHNELL) == sound


@pytest.fixture
def opened(checkpoints: dict[str, Checkpoint]) -> Callable[..., tuple[Pool, list[Checkpoint]]]:
    """A pool of these checkpoints, with room for so many on the device and for so many in the machine's memory."""

    def make(*names: str, there: int = 1, waiting: int = 0) -> tuple[Pool, list[Checkpoint]]:
        fits = [fit(checkpoints[name], CPU) for name in names]
        largest = max(one.weights for one in fits)
        pool = Pool(Room(device=there * max(one.peak for one in fits), host=waiting * largest), CPU, open_drawer)
        for name in names:
            pool.open(checkpoints[name])
        return pool, [checkpoints[name] for name in names]

    return make


def bring(pool: Pool, checkpoint: Checkpoint) -> None:
    with torch.inference_mode():
        for act in pool.bringing(checkpoint.origin, keep=()):
            act()


def bits(pool: Pool, checkpoint: Checkpoint) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors(pool, checkpoint.origin)]


def test_weights_wait_in_the_machines_memory_as_far_as_there_is_room_and_come_back_the_same(
    opened: Callable[..., tuple[Pool, list[Checkpoint]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pool, three = opened("dev", "schnell", "shifted", waiting=1)
    assert [pool.is_at_hand(one.origin) for one in three] == [False, False, True]
    expected: dict[str, list[Tensor]] = {}
    for place in (1, 0, 1, 2, 0):  # the one that was there last has waited in memory, all others on disk
        one = three[place]
        bring(pool, one)
        found = bits(pool, one)
        known = expected.setdefault(one.name, found)
        assert len(found) == len(known)
        assert all(map(torch.equal, found, known))
        assert all(now.stride() == then.stride() for now, then in zip(found, known, strict=True))
    places = [getattr(record, "from", "") for record in caplog.records if record.message.endswith("on the device")]
    assert places == ["host", "disk", "host", "disk", "disk"]


def test_weights_that_are_lent_stay_until_they_are_given_back(
    opened: Callable[..., tuple[Pool, list[Checkpoint]]],
) -> None:
    pool, (first, second) = opened("schnell", "dev")
    pool.lend(second.origin)
    with ThreadPoolExecutor(1) as threads:
        brought: Future[None] = threads.submit(bring, pool, first)
        with pytest.raises(TimeoutError):
            brought.result(timeout=0.2)
        assert pool.drawer(second.origin).network
        assert not pool.is_at_hand(second.origin)
        with pytest.raises(LookupError):
            pool.lend(second.origin)
        pool.give_back(second.origin)
        brought.result(timeout=PATIENCE_S)
    assert pool.is_at_hand(first.origin)
    with pytest.raises(LookupError):
        pool.drawer(second.origin)


def test_what_is_lent_leaves_only_where_nothing_idle_does(
    opened: Callable[..., tuple[Pool, list[Checkpoint]]],
) -> None:
    pool, (away, lent, idle) = opened("shifted", "schnell", "dev", there=2)
    assert [pool.is_at_hand(one.origin) for one in (away, lent, idle)] == [False, True, True]
    pool.lend(lent.origin)
    pool.lend(idle.origin)
    pool.give_back(idle.origin)  # used last
    bring(pool, away)
    assert [pool.is_at_hand(one.origin) for one in (away, lent, idle)] == [True, True, False]


def test_a_checkpoint_that_cannot_be_put_away_can_be_had_again(
    opened: Callable[..., tuple[Pool, list[Checkpoint]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, (away, here) = opened("schnell", "dev", waiting=2)
    network = pool.drawer(here.origin).network

    def fail() -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(network, "leave", fail)
    with pytest.raises(RuntimeError, match="gone"):
        bring(pool, away)
    del network
    bring(pool, away)
    bring(pool, here)
    assert pool.is_at_hand(here.origin)


def test_weights_that_cannot_be_read_are_not_said_to_have_changed(
    opened: Callable[..., tuple[Pool, list[Checkpoint]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, (away, _) = opened("schnell", "dev")

    def refuse(*_: object, **__: object) -> None:
        raise CheckpointRefused("The disk could not be read.")

    monkeypatch.setattr("fluxserve.engine.weights.load", refuse)
    with pytest.raises(DrawingFailed, match="could not be loaded again: The disk could not be read"):
        bring(pool, away)


def test_waiting_for_what_has_to_leave_is_no_hang(opened: Callable[..., tuple[Pool, list[Checkpoint]]]) -> None:
    pool, (away, here) = opened("schnell", "dev")
    now, news = [0.0], threading.Condition()
    duty = Duty(pool, CPU, Recovery(CPU), news, clock=lambda: now[0])
    pool.lend(here.origin)
    assert duty.update({away.origin: False}) == {}
    now[0] = 10_000.0
    with ThreadPoolExecutor(1) as steps:
        assert steps.submit(duty.update, {away.origin: False}).result(timeout=PATIENCE_S) == {}
    assert duty.is_bringing
    pool.give_back(here.origin)
    with news:
        assert news.wait_for(lambda: pool.is_at_hand(away.origin), PATIENCE_S)
    assert duty.update({away.origin: False}) == {}
    assert duty.is_ready(away.origin)
