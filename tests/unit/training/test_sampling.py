"""Noise levels as the pipeline's, and steps that end at the picture when the network knows it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from training.network import Texts  # noqa: E402
from training.sampling import draw, scheduler, sigmas  # noqa: E402

SPOKEN, SILENT = 7, 1


class Oracle(nn.Module):
    """Knows the picture `clean` (N, 64) behind the noise; for texts of other tokens than SPOKEN it is zero."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean = nn.Parameter(clean)
        self.grids: list[tuple[int, int]] = []
        self.guidance: list[float] = []

    def forward(self, latents: Tensor, sigmas: Tensor, guidance: Tensor, texts: Texts, grid: tuple[int, int]) -> Tensor:
        """The velocity e - x0 at (1 - s) x0 + s e."""
        self.grids.append(grid)
        self.guidance += guidance.tolist()
        clean = self.clean * (texts.t5[:, :1, None] == SPOKEN)
        return (latents - clean) / sigmas[:, None, None]


def said(count: int, token: int = SPOKEN) -> Texts:
    return Texts(torch.full((count, 48), token), torch.full((count, 32), token))


@pytest.mark.parametrize("tokens", [15, 16, 64, 256, 1024, 4096])
@pytest.mark.parametrize("steps", [1, 4, 12, 28])
def test_noise_levels_are_those_of_the_pipeline(steps: int, tokens: int) -> None:
    schedule = scheduler()
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    shift = calculate_shift(tokens, *(schedule.config[name] for name in names))
    retrieve_timesteps(schedule, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
    assert sigmas(steps, tokens) == schedule.sigmas.tolist()
    assert sigmas(steps, tokens)[0] == 1
    assert sigmas(steps, tokens)[-1] == 0


def test_more_tokens_stay_longer_at_high_noise() -> None:
    assert sigmas(4, 4096)[1] > sigmas(4, 256)[1] > sigmas(4, 16)[1]


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_a_network_that_knows_the_picture_lands_on_it(steps: int) -> None:
    clean = torch.randn(15, 64)
    oracle = Oracle(clean)
    found = draw(oracle, said(3), (384, 640), steps=steps, guidance=2.5)  # type: ignore[arg-type]
    assert torch.allclose(found, clean.expand(3, -1, -1), atol=1e-4)
    assert set(oracle.grids) == {(3, 5)}
    assert set(oracle.guidance) == {2.5}


def test_classifier_free_guidance_goes_beyond_the_text() -> None:
    clean = torch.randn(16, 64)
    found = draw(Oracle(clean), said(2), (512, 512), steps=1, without=said(1, SILENT), cfg=3.0)  # type: ignore[arg-type]
    assert torch.allclose(found, 3 * clean.expand(2, -1, -1), atol=1e-3)


class Still(nn.Module):
    """Changes nothing: what comes out is the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, latents: Tensor, *_: object) -> Tensor:
        """Zero."""
        return torch.zeros_like(latents)


def test_the_seed_decides_the_noise() -> None:
    first, again, other = (draw(Still(), said(2), (512, 512), seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert float(first.std()) == pytest.approx(1, abs=0.1)
