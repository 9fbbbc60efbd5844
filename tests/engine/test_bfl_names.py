"""Our names and cuts are those of diffusers' own converters."""

from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from single_files import in_bfl, tensors_of, transformer, transformer_of_flux2
from torch import Tensor

from fluxserve.engine import bfl
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.single_file import cut

#: Rows of the published transformers, for which the converter is written; the columns are for nothing here.
INNER = 3072


def ours(theirs: dict[str, Tensor], places: dict[str, bfl.Destination], like: dict[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tuple(one.shape) for name, one in like.items()}
    return dict(part for name, one in theirs.items() for part in cut(one, places[name], shapes))


def assert_equal(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert converted.keys() == expected.keys()
    assert all(converted[name].equal(one) for name, one in expected.items())


def thin_transformer(*, guidance: bool) -> dict[str, Tensor]:
    """One column of each matrix, every number another."""
    rows = {"qkv": 3 * INNER, "linear1": 7 * INNER, "lin": 6 * INNER, "1": 2 * INNER}
    tensors, start = {}, 0
    for name in bfl.transformer(2, 3, guidance=guidance):
        count = rows.get(name.split(".")[-2], INNER)
        tensors[name] = torch.arange(start, start + count).view(count, *([1] if name.endswith(".weight") else []))
        start += count
    return tensors


def test_a_transformers_tensors_go_where_the_converter_puts_them() -> None:
    for guidance in (True, False):
        theirs = thin_transformer(guidance=guidance)
        expected = convert_flux_transformer_checkpoint_to_diffusers(dict(theirs))
        assert_equal(ours(theirs, dict(bfl.transformer(2, 3, guidance=guidance)), expected), expected)
        assert_equal(transformer(expected), theirs)


def test_a_transformer_of_flux2_too(flux2_drawers: dict[str, Drawer]) -> None:
    for name in ("dev", "klein"):
        expected = tensors_of(flux2_drawers[name].checkpoint.path, "transformer")
        theirs = transformer_of_flux2(expected)
        assert_equal(dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(theirs))), expected)
        places = bfl.transformer(1, 2, guidance=name == "dev", names=bfl.FLUX2)
        assert theirs.keys() == places.keys()
        assert_equal(ours(theirs, dict(places), expected), expected)


def test_an_autoencoders_tensors_go_where_the_converter_puts_them(dev_folder: Path) -> None:
    theirs = in_bfl(dev_folder, "vae")
    config = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    expected = convert_ldm_vae_checkpoint(dict(theirs), config)
    assert_equal(ours(theirs, dict(bfl.autoencoder(theirs)), expected), expected)
