"""The autoencoder learns the code on tiny data, and its config hands the decoder what it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from diffusers import AutoencoderTiny  # noqa: E402
from small_house import painted  # noqa: E402

from training import autoencoder, latents  # noqa: E402
from training.autoencoder import SHRINK, Plan, Trainer, build, code_of, psnr, reconstruction_loss  # noqa: E402
from training.ranks import Rank  # noqa: E402


def plan(folder: Path, samples: int = 400) -> Plan:
    return Plan(samples=samples, minutes=1, batch=4, rate=2e-3, device="cpu", seed=0, folder=folder)


def test_a_picture_becomes_a_thirty_second_of_its_sides_and_back() -> None:
    network = build()
    latent = network.encode(torch.zeros(1, 3, 64, 128)).latents
    assert latent.shape == (1, latents.CHANNELS, 2, 4)
    assert network.decode(latent).sample.shape == (1, 3, 64, 128)


def test_after_the_pipelines_scaling_the_decoder_gets_the_code_as_it_was_trained() -> None:
    config = build().config
    code = torch.randn(2, latents.CHANNELS, 4, 4)
    assert torch.allclose(code / config.scaling_factor + config.shift_factor, SHRINK * code)


def test_what_the_encoder_learns_to_say_becomes_the_code_by_the_pipelines_scaling() -> None:
    config = build().config
    code = torch.randn(2, latents.CHANNELS, 4, 4)
    assert torch.allclose((SHRINK * code - config.shift_factor) * config.scaling_factor, code)


def test_the_code_of_a_large_picture_is_that_of_its_half() -> None:
    pictures = painted(4)
    code = latents.fit(painted(8))
    assert torch.allclose(
        code_of(code, pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)), code.encode(pictures)
    )


def test_the_loss_sees_values_and_edges() -> None:
    target = torch.zeros(1, 3, 16, 16)
    target[..., 8:] = 1
    blurred = target.clone()
    blurred[..., 7:9] = 0.5
    assert reconstruction_loss(target, target) == 0
    assert reconstruction_loss(blurred, target) > torch.nn.functional.l1_loss(blurred, target)
    assert psnr(target + 0.2, target) == pytest.approx(10 * torch.log10(torch.tensor(4 / 0.04)).item() - 2.0, abs=2.1)


@pytest.mark.usefixtures("house")
def test_a_few_steps_lower_the_loss_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(Rank(0, 1), plan(tmp_path))
    pieces = trainer._pieces(4)
    with torch.no_grad():
        before = float(trainer._loss(pieces))
        for _ in range(12):
            with torch.enable_grad():
                trainer.step()
        after = float(trainer._loss(pieces))
    assert after < 0.8 * before
    trainer.save()
    again = Trainer(Rank(0, 1), plan(tmp_path))
    assert again.done == trainer.done == 48
    assert again.check() == trainer.check()
    assert isinstance(AutoencoderTiny.from_pretrained(tmp_path), AutoencoderTiny)


@pytest.mark.usefixtures("house")
def test_pieces_are_cut_at_the_grid_of_the_code(tmp_path: Path) -> None:
    trainer = Trainer(Rank(0, 1), plan(tmp_path))
    pieces = trainer._pieces(8)
    assert pieces.shape == (8, 3, 128, 128)
    assert float(pieces.min()) >= -1
    assert float(pieces.max()) <= 1
    assert autoencoder._PICTURE % (2 * latents.PATCH) == 0
