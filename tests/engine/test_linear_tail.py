"""The folded end of a decoder is the same map as the layers it replaces, at edges and corners too."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from fluxserve import mini
from fluxserve.engine.networks.linear_tail import LinearTail, fold_linear_tail


def convolution(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1, dtype=torch.float64)


def tiny(*blocks: int) -> AutoencoderTiny:
    torch.manual_seed(3)
    count = len(blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(4,) * count,
        decoder_block_out_channels=(4,) * count,
        num_encoder_blocks=(1,) * count,
        num_decoder_blocks=blocks,
    ).eval()


def mini_decoder() -> AutoencoderTiny:
    vae: AutoencoderTiny = AutoencoderTiny.from_pretrained(mini.folder() / "vae", torch_dtype=torch.float32)
    return vae.eval()


ENDS = {
    "one doubling": nn.Sequential(nn.Upsample(scale_factor=2), convolution(5, 3)),
    "two doublings": nn.Sequential(
        nn.Upsample(scale_factor=2),
        convolution(5, 4),
        nn.Upsample(scale_factor=2),
        convolution(4, 6),
        convolution(6, 3),
    ),
    "doubled twice at once": nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2), convolution(5, 2)),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("shape", [(3, 3), (3, 8), (9, 4), (6, 6), (2, 5), (1, 1)])
@torch.no_grad()
def test_any_linear_end_is_one_convolution(name: str, shape: tuple[int, int]) -> None:
    layers = ENDS[name]
    cells = torch.randn(1, 5, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(LinearTail(layers)(cells), layers(cells), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (16, 8), (4, 4)])
@torch.no_grad()
def test_mini_draws_the_picture_that_its_own_layers_draw(shape: tuple[int, int]) -> None:
    stock, folded = mini_decoder(), mini_decoder()
    fold_linear_tail(folded)
    assert isinstance(folded.decoder.layers[-1], LinearTail)
    latents = torch.randn(1, 16, *shape, generator=torch.Generator().manual_seed(2))
    expected, found = stock.decode(latents).sample, folded.decode(latents).sample
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 5e-5  # of -1 ... 1; a level of 255 is 8e-3


@torch.no_grad()
def test_an_end_that_is_not_all_linear_is_folded_after_its_last_activation() -> None:
    stock = tiny(1, 1, 0)
    folded = copy.deepcopy(stock)
    fold_linear_tail(folded)
    assert len(folded.decoder.layers) == len(stock.decoder.layers) - 2
    latents = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(folded.decode(latents).sample, stock.decode(latents).sample, atol=1e-5)


def test_other_decoders_stay_as_they_are() -> None:
    full = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    for vae in (full, tiny(1, 1)):
        before = [name for name, _ in vae.named_modules()]
        fold_linear_tail(vae)
        assert [name for name, _ in vae.named_modules()] == before


def test_what_reaches_further_than_a_neighbour_stays_as_it_is() -> None:
    vae = tiny(1, 0)
    vae.decoder.layers.extend([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)])
    before = len(vae.decoder.layers)
    fold_linear_tail(vae)
    assert len(vae.decoder.layers) == before
