"""A run's state is whole or not there, and a run goes on where it was."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from small_house import small_plan  # noqa: E402

from training import checkpoints, flow  # noqa: E402
from training.canvases import LARGE, SMALL  # noqa: E402
from training.flow import Trainer  # noqa: E402
from training.ranks import Rank  # noqa: E402

ALONE = Rank(0, 1)


class Counted:
    """A number as a state."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = torch.tensor(value)

    def state_dict(self) -> Mapping[str, object]:
        """The number."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The number again."""
        self.value = torch.as_tensor(state["value"])


class Deadly:
    """Kills its process when it is written."""

    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return "unreachable"


class Doomed(Counted):
    """Writes a good part of its state before it dies."""

    def state_dict(self) -> Mapping[str, object]:
        """Large, then deadly."""
        return {"value": torch.zeros(1_000_000), "deadly": Deadly()}


def _save_and_die(path: Path) -> None:
    checkpoints.save(path, {"part": Doomed()}, 9)


def test_without_a_state_a_run_starts_at_nothing(tmp_path: Path) -> None:
    part = Counted(3.0)
    assert checkpoints.resume(tmp_path / "run.state", {"part": part}, "cpu") == 0
    assert part.value == 3


def test_what_was_saved_comes_back_with_its_count(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.state"
    checkpoints.save(path, {"one": Counted(5.0), "other": Counted(6.0)}, 128)
    parts = {"one": Counted(), "other": Counted()}
    assert checkpoints.resume(path, parts, "cpu") == 128
    assert (parts["one"].value, parts["other"].value) == (5, 6)
    assert [file.name for file in path.parent.iterdir()] == ["run.state"]


def test_a_run_killed_while_it_saves_keeps_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    checkpoints.save(path, {"part": Counted(5.0)}, 64)
    process = multiprocessing.get_context("spawn").Process(target=_save_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    part = Counted()
    assert checkpoints.resume(path, {"part": part}, "cpu") == 64
    assert part.value == 5


def test_what_a_killed_save_left_behind_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    path.with_suffix(".unfinished").write_bytes(b"half a file")
    checkpoints.save(path, {"part": Counted(5.0)}, 64)
    assert checkpoints.resume(path, {"part": Counted()}, "cpu") == 64


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Every tensor of a trainer's state, by place."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value.clone()
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                collect(f"{name}.{key}", inner)

    for name, part in trainer._parts.items():
        collect(name, part.state_dict())
    return found


@pytest.mark.usefixtures("house")
def test_a_stopped_run_goes_on_with_the_same_weights_optimizers_and_count(tmp_path: Path) -> None:
    first = Trainer(ALONE, small_plan(tmp_path))
    for _ in range(3):
        first.step()
    first.save()
    second = Trainer(ALONE, small_plan(tmp_path))
    assert first.done == second.done == 3 * 32
    before, after = state(first), state(second)
    assert len(before) > 20
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for (name, one), other in zip(first._network.named_parameters(), second._network.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.usefixtures("house")
def test_a_resumed_run_does_not_see_the_first_pictures_again_and_two_resumed_runs_are_equal(tmp_path: Path) -> None:
    fresh = Trainer(ALONE, small_plan(tmp_path))
    seen = fresh._bank(1, (512, 512)).draw(8, 8, torch.Generator().manual_seed(0)).texts.t5
    fresh.step()
    fresh.save()
    one, other = Trainer(ALONE, small_plan(tmp_path)), Trainer(ALONE, small_plan(tmp_path))
    again = one._bank(1, (512, 512)).draw(8, 8, torch.Generator().manual_seed(0)).texts.t5
    assert not torch.equal(seen, again)
    other._bank(1, (512, 512)).draw(8, 8, torch.Generator().manual_seed(0))
    assert one.step() == other.step()
    assert all(torch.equal(tensor, state(other)[name]) for name, tensor in state(one).items())


@pytest.mark.usefixtures("house")
def test_the_plan_follows_the_pictures_seen_and_not_how_often_a_run_was_stopped(tmp_path: Path) -> None:
    whole = Trainer(ALONE, small_plan(tmp_path / "whole"))
    expected = []
    for _ in range(6):
        expected.append((whole.done, whole._phase(), whole._canvas(whole._phase()), whole._rate()))
        whole.step()
    found = []
    for _ in range(3):
        part = Trainer(ALONE, small_plan(tmp_path / "parts"))
        for _ in range(2):
            found.append((part.done, part._phase(), part._canvas(part._phase()), part._rate()))
            part.step()
        part.save()
    assert found == expected


@pytest.mark.usefixtures("house")
def test_a_run_that_goes_on_with_weights_alone_warms_up_again(tmp_path: Path) -> None:
    first = Trainer(ALONE, small_plan(tmp_path / "first"))
    first.step()
    other = Trainer(ALONE, small_plan(tmp_path / "other"))
    other.restart(first.averages(), 400)
    assert all(torch.equal(value, other.averages()[name]) for name, value in first.averages().items())
    assert other._rate() == 0.01
    other.step()
    assert other.done == 432
    assert other._rate() == 0.02


@pytest.mark.usefixtures("house")
def test_the_flow_learns_and_its_average_is_kept_by_name(tmp_path: Path) -> None:
    trainer = Trainer(ALONE, small_plan(tmp_path))
    before = trainer.check()
    losses = [trainer.step() for _ in range(25)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trainer.check() < before
    trainer.save()
    average, done = checkpoints.load_average(tmp_path)
    assert done == trainer.done
    assert set(average) == {name for name, _ in trainer._network.named_parameters()}
    assert all(torch.isfinite(value).all() for value in average.values())


@pytest.mark.usefixtures("house")
def test_the_last_phase_teaches_guidance_on_all_areas(tmp_path: Path) -> None:
    trainer = Trainer(ALONE, small_plan(tmp_path))
    trainer.done = flow.PRESETS["tiny"].phases[-2].until
    areas = set()
    while trainer.done < flow.PRESETS["tiny"].phases[-1].until:
        areas.add(trainer._canvas(trainer._phase())[0])
        assert torch.isfinite(torch.tensor(trainer.step()))
    assert areas == {SMALL, LARGE}
