"""Judges learn what pictures show, go on where they stopped, and are kept in 8 bits without forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from sprite_folder import THINGS, write_sprites  # noqa: E402
from torch import Tensor  # noqa: E402

from training import classifier, judge  # noqa: E402
from training.classifier import Judge  # noqa: E402
from training.judge import UNSEEN, Plan, School  # noqa: E402
from training.pictures import DRAWING, SETS  # noqa: E402
from training.views import Spoiler, Viewer  # noqa: E402

LABELS = tuple(f"thing {number}" for number in range(40))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sprites in every set."""
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(tmp_path))
    write_sprites(tmp_path, tuple(SETS))
    return tmp_path


def untrained(seed: int = 0) -> Judge:
    torch.manual_seed(seed)
    made = classifier.build(LABELS, ("flat", "3d"))
    made.network.eval()
    return made


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def plan(samples: int, minutes: float = 60) -> Plan:
    return Plan(name="strict", samples=samples, minutes=minutes, batch=16, rate=3e-3, device="cpu", seed=0)


def test_the_strict_judge_learns_from_no_set_that_mini_is_taught() -> None:
    assert not set(UNSEEN) & set(DRAWING)
    assert set(UNSEEN) | set(DRAWING) == set(SETS)


def test_a_judge_kept_in_8_bits_says_the_same_of_the_same_labels(tmp_path: Path) -> None:
    before, pictures = untrained(), noise(4, 3, 96, 96)
    classifier.save(before, tmp_path / "judge.safetensors")
    after = classifier.load(tmp_path / "judge.safetensors")
    assert (after.labels, after.styles) == (before.labels, before.styles)
    said, kept = before.look(pictures), after.look(pictures)
    assert float((said.labels - kept.labels).abs().max()) < 0.03 * float(said.labels.abs().max())
    assert float((said.features - kept.features).norm() / said.features.norm()) < 0.03


def test_a_judge_of_all_labels_is_small_enough_to_be_shipped(tmp_path: Path) -> None:
    made = classifier.build(tuple(f"label number {number}" for number in range(1700)), ("flat",) * 9)
    classifier.save(made, tmp_path / "judge.safetensors")
    assert (tmp_path / "judge.safetensors").stat().st_size < 2.5e6


@pytest.mark.parametrize("size", [(96, 96), (128, 224), (40, 40)])
def test_a_judge_looks_at_pictures_of_any_size(size: tuple[int, int]) -> None:
    said = untrained().look(noise(3, 3, *size))
    assert (said.labels.shape, said.styles.shape) == ((3, len(LABELS)), (3, 2))
    assert said.features.shape == (3, classifier.FEATURES)


def test_a_picture_is_judged_alike_at_two_sizes_and_beside_any_others() -> None:
    made, large = untrained(), torch.nn.functional.interpolate(noise(70, 3, 6, 6), (192, 192), mode="bilinear")
    small = torch.nn.functional.interpolate(large, (96, 96), mode="bilinear", antialias=True)
    together, alone = made.look(large).features, made.look(small[69:]).features
    assert torch.allclose(together[69:], alone, atol=0.02 * float(alone.abs().max()))


def test_spoiling_is_repeatable_bounded_and_keeps_the_picture(work_folder: Path) -> None:
    views = Viewer(("noto",), seed=1).draw(64)
    first, again, other = (Spoiler(seed).spoil(views.pictures, 96) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (64, 3, 96, 96)
    assert float(first.abs().max()) <= 1
    whole = views.pictures.float() / 127.5 - 1
    kept = torch.stack([first.flatten(1), whole.flatten(1)])
    alike = torch.nn.functional.cosine_similarity(*(kept - kept.mean(dim=2, keepdim=True)), dim=1)
    assert float(alike.median()) > 0.5


def test_views_are_of_every_thing_and_the_same_for_the_same_seed(work_folder: Path) -> None:
    viewer = Viewer(("noto", "twemoji"), seed=5)
    views = viewer.draw(200)
    assert set(views.labels.tolist()) == set(range(THINGS))
    again = Viewer(("noto", "twemoji"), seed=5).draw(200)
    assert torch.equal(views.pictures, again.pictures)
    assert torch.equal(views.labels, again.labels)


def test_a_judge_in_training_stops_when_told_and_goes_on_there(work_folder: Path) -> None:
    stopped = School(plan(64, minutes=0))
    stopped.run()
    assert stopped.done == 0
    School(plan(32)).run()
    resumed = School(plan(64))
    assert resumed.done == 32
    resumed.run()
    assert resumed.done == 64


@pytest.mark.long
def test_a_judge_learns_to_tell_things_apart(work_folder: Path) -> None:
    School(plan(1280)).run()
    learnt = classifier.load(judge.path("strict"))
    viewer = Viewer(("noto",), seed=99)
    views = viewer.draw(128)
    best = learnt.look(views.pictures.float() / 127.5 - 1).labels.argmax(dim=1)
    assert learnt.labels == viewer.labels
    assert float((best == views.labels).float().mean()) > 0.25
