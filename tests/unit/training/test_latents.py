"""The code of the latents: fitted to patches, an inverse where patches lie in its span, of unit variance."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from small_house import painted  # noqa: E402
from torch import Tensor  # noqa: E402

from training import latents  # noqa: E402
from training.latents import CHANNELS, PATCH, Code, fit  # noqa: E402

VALUES = 3 * PATCH**2


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """(60, 3, 128, 128) of the house."""
    torch.set_num_threads(1)
    return painted(60)


@pytest.fixture(scope="module")
def code(pictures: Tensor) -> Code:
    """Fitted to them."""
    return fit(pictures)


def psnr(code: Code, pictures: Tensor) -> float:
    error = (code.decode(code.encode(pictures)) - pictures).square().mean()
    return float(-10 * torch.log10(error / 4))


def in_span(directions: int) -> Tensor:
    """(50, 3, 64, 96) whose patches differ from their mean in as many directions."""
    chance = torch.Generator().manual_seed(1)
    basis = torch.randn(directions, VALUES, generator=chance)
    mean = torch.randn(VALUES, generator=chance)
    patches = mean + torch.randn(50, 4, 6, directions, generator=chance) @ basis
    return patches.view(50, 4, 6, 3, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(50, 3, 4 * PATCH, 6 * PATCH)


def test_patches_in_the_span_of_the_code_come_back() -> None:
    pictures = in_span(CHANNELS)
    code = fit(pictures)
    assert code.encode(pictures).shape == (50, CHANNELS, 4, 6)
    assert torch.allclose(code.decode(code.encode(pictures)), pictures, atol=1e-3)


def test_patches_beyond_the_span_do_not() -> None:
    pictures = in_span(CHANNELS + 4)
    code = fit(pictures)
    assert float((code.decode(code.encode(pictures)) - pictures).abs().mean()) > 0.1


def test_codes_are_codes_of_the_pictures_they_draw(code: Code, pictures: Tensor) -> None:
    seen = code.encode(pictures)
    assert torch.allclose(code.encode(code.decode(seen)), seen, atol=1e-3)


def test_codes_have_no_mean_unit_variance_and_no_correlation(code: Code, pictures: Tensor) -> None:
    seen = code.encode(pictures).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(seen)
    assert float(seen.mean(dim=1).abs().max()) < 1e-2
    assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.01)
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 1e-2


def test_the_main_components_stand_out_less_than_they_do_in_the_pictures(code: Code, pictures: Tensor) -> None:
    deviations = code.encode(pictures).permute(1, 0, 2, 3).flatten(1).std(dim=1)
    assert list(deviations) == sorted(deviations, reverse=True)
    assert 1 < float(deviations[0] / deviations[-1]) < 20


def test_the_fewer_components_are_kept_the_more_is_lost(code: Code, pictures: Tensor) -> None:
    kept = torch.arange(CHANNELS)
    found = [
        psnr(Code(mean=code.mean, into=code.into * (kept < count), back=code.back), pictures) for count in (2, 4, 8, 16)
    ]
    assert found == sorted(found)
    assert found[-1] - found[0] > 3


def test_a_place_in_the_picture_is_a_place_in_the_code(code: Code, pictures: Tensor) -> None:
    shifted = pictures.roll((PATCH, 2 * PATCH), dims=(2, 3))
    assert torch.allclose(code.encode(shifted), code.encode(pictures).roll((1, 2), dims=(2, 3)), atol=1e-4)


def test_what_was_saved_is_loaded(code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(tmp_path))
    code.save(tmp_path / "latents.safetensors")
    loaded = latents.load()
    assert torch.equal(loaded.mean, code.mean)
    assert torch.equal(loaded.into, code.into)
    assert torch.equal(loaded.back, code.back)


def test_the_command_fits_once(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (house / "latents.safetensors").read_bytes()
    latents.command()
    assert "is there" in capsys.readouterr().out
    assert (house / "latents.safetensors").read_bytes() == before
