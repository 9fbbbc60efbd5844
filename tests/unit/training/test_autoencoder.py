"""The autoencoder learns the code on tiny data, and its config hands the decoder what it was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

torch = pytest.importorskip("torch")

from diffusers import AutoencoderTiny  # noqa: E402
from small_house import painted  # noqa: E402
from torch import Tensor  # noqa: E402

from training import latents  # noqa: E402
from training.autoencoder import SHRINK, Plan, Trainer, build, code_of, psnr, reconstruction_loss, start  # noqa: E402
from training.canvases import SHRUNK  # noqa: E402
from training.ranks import Rank  # noqa: E402

Half = Literal["decoder", "encoder"]


def plan(folder: Path, half: Half = "decoder", rate: float = 2e-3) -> Plan:
    return Plan(samples=4000, minutes=1, half=half, batch=4, rate=rate, device="cpu", seed=0, folder=folder)


def test_a_picture_becomes_a_sixty_fourth_of_its_sides_and_back() -> None:
    network = build()
    latent = network.encode(torch.zeros(1, 3, 128, 256)).latents
    assert latent.shape == (1, latents.CHANNELS, 2, 4)
    assert network.decode(latent).sample.shape == (1, 3, 128, 256)


def test_after_the_pipelines_scaling_the_decoder_gets_the_code_as_it_was_trained() -> None:
    config = build().config
    code = torch.randn(2, latents.CHANNELS, 4, 4)
    assert torch.allclose(code / config.scaling_factor + config.shift_factor, SHRINK * code)


def test_what_the_encoder_learns_to_say_becomes_the_code_by_the_pipelines_scaling() -> None:
    config = build().config
    code = torch.randn(2, latents.CHANNELS, 4, 4)
    assert torch.allclose((SHRINK * code - config.shift_factor) * config.scaling_factor, code)


def test_the_code_of_a_large_picture_is_that_of_it_shrunk() -> None:
    pictures = painted(4)
    code = latents.fit(painted(8))
    large = pictures.repeat_interleave(SHRUNK, 2).repeat_interleave(SHRUNK, 3)
    assert torch.allclose(code_of(code, large), code.encode(pictures), atol=1e-5)


def test_the_loss_sees_values_and_edges() -> None:
    target = torch.zeros(1, 3, 16, 16)
    target[..., 8:] = 1
    blurred = target.clone()
    blurred[..., 7:9] = 0.5
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(blurred, target) > torch.nn.functional.l1_loss(blurred, target)
    assert psnr(target - 0.2, target) == pytest.approx(20)  # 4 / 0.2^2


def test_a_started_decoder_paints_the_mean_colour_of_each_latent() -> None:
    pictures = painted(12)
    code = latents.fit(pictures)
    latent = code.encode(pictures)
    expected = torch.nn.functional.avg_pool2d(code.decode(latent), latents.PATCH)
    with torch.no_grad():
        drawn = start(build(), code).decode(SHRINK * latent).sample
    found = torch.nn.functional.avg_pool2d(drawn, SHRUNK * latents.PATCH)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.9
    assert float((found - expected).abs().mean()) < 0.15


def loss(trainer: Trainer, pieces: Tensor) -> float:
    """Always with the same noise."""
    trainer._noise.manual_seed(0)
    with torch.no_grad():
        return trainer._loss(pieces).item()


@pytest.mark.usefixtures("house")
@pytest.mark.parametrize(
    ("half", "steps", "most"),
    [pytest.param("decoder", 20, 0.96, marks=pytest.mark.long), ("encoder", 8, 0.999)],
)
def test_a_few_steps_lower_the_loss_and_a_stopped_run_goes_on(
    tmp_path: Path, half: Half, steps: int, most: float
) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(Rank(0, 1), plan(tmp_path, half, rate=3e-4))
    trainer.done = 400  # the rate has risen
    pieces = trainer._pieces(8)
    before = loss(trainer, pieces)
    for _ in range(steps):
        trainer.step()
    after = loss(trainer, pieces)
    assert after < most * before
    trainer.save()
    again = Trainer(Rank(0, 1), plan(tmp_path, half, rate=3e-4))
    assert again.done == trainer.done == 400 + 4 * steps
    assert loss(again, pieces) == after


@pytest.mark.long
@pytest.mark.usefixtures("house")
def test_no_more_samples_are_planned_than_fit_into_the_time(tmp_path: Path) -> None:
    trainer = Trainer(Rank(0, 1), replace(plan(tmp_path, "encoder"), samples=10**9))
    trainer.fit(1000.0)
    assert trainer.done == 80
    assert 80 < trainer._plan.samples < 1_000_000
    few = Trainer(Rank(0, 1), replace(plan(tmp_path / "few", "encoder"), samples=8))
    few.fit(1000.0)
    assert few.done == few._plan.samples == 8


@pytest.mark.long
@pytest.mark.usefixtures("house")
def test_each_half_is_saved_beside_the_other(tmp_path: Path) -> None:
    halves: tuple[Half, ...] = ("decoder", "encoder")
    trainers = {half: Trainer(Rank(0, 1), plan(tmp_path, half)) for half in halves}
    for trainer in trainers.values():
        trainer.step()
        trainer.save()
    whole = AutoencoderTiny.from_pretrained(tmp_path)
    for half, trainer in trainers.items():
        for name, value in trainer._averaged.state_dict().items():
            assert torch.equal(getattr(whole, half).state_dict()[name], value), name
        untrained = Trainer(Rank(0, 1), plan(tmp_path / "untrained", half))._averaged.state_dict()
        assert any(not torch.equal(untrained[name], value) for name, value in trainer._averaged.state_dict().items())


@pytest.mark.usefixtures("house")
def test_pieces_are_cut_at_the_grid_of_the_code(tmp_path: Path) -> None:
    trainer = Trainer(Rank(0, 1), plan(tmp_path))
    pieces = trainer._pieces(8)
    assert pieces.shape == (8, 3, 256, 256)
    assert float(pieces.min()) >= -1
    assert float(pieces.max()) <= 1
