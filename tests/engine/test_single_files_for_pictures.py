"""Transformers for pictures in single files draw what their folders draw, over a folder of any kind of FLUX.1 [dev]."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import flux2_folders
import pytest
import torch
from kinds import RUNTIME, begin, build_kind, end, half_white, picture, wish
from single_files import in_bfl, tensors_of, transformer_of_flux2, write
from torch import Tensor

from fluxserve.catalogue.recipes import Control, Fill, Recipe
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import find
from fluxserve.engine.drawer import open_drawer
from fluxserve.errors import CheckpointRefused
from fluxserve.settings import Composed

ASKED: Mapping[str, tuple[Recipe, Mapping[str, Pixels]]] = {
    "fill": (Fill(), {"image": picture(1), "mask": half_white()}),
    "control": (Control(kind="canny", low=50, high=200), {"control_image": picture(2)}),
}
READS = {"fill": "masked", "control": "control", "plain": "nothing"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("kinds")
    return {kind: build_kind(home / kind, kind) for kind in READS}


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("files")
    return {
        kind: write(home / f"flux1-{kind}-dev.safetensors", in_bfl(folder, "transformer"))
        for kind, folder in folders.items()
    }


def drawn(value: str | Composed, kind: str) -> Tensor:
    recipe, pictures = ASKED[kind]
    drawer = open_drawer(find(value), RUNTIME)
    with torch.inference_mode():
        return end(drawer, begin(drawer, wish(recipe, pictures, steps=2), pictures)).latents


def for_prompts(folder: Path, copy: Path) -> Path:
    """The folder, with the small files of a transformer that reads latents alone; its other parts are the same."""
    shutil.copytree(folder, copy)
    flux2_folders.change(copy / "model_index.json", _class_name="FluxPipeline")
    flux2_folders.change(copy / "transformer/config.json", in_channels=64)
    (copy / "transformer/diffusion_pytorch_model.safetensors").unlink()
    return copy


@pytest.mark.parametrize("kind", ["fill", "control"])
def test_a_file_draws_what_its_folder_draws_over_that_and_over_one_for_prompts(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    expected = drawn(str(folders[kind]), kind)
    for base in (folders[kind], for_prompts(folders[kind], tmp_path / "for-prompts")):
        value = Composed(base=str(base), files=(str(files[kind]),))
        assert find(value).reads == READS[kind]
        assert drawn(value, kind).equal(expected)


def test_a_file_for_prompts_over_a_folder_for_masks_reads_none(
    folders: dict[str, Path], files: dict[str, Path]
) -> None:
    assert find(Composed(base=str(folders["fill"]), files=(str(files["plain"]),))).reads == "nothing"


def test_a_folder_needs_no_weights_of_its_own_transformer(
    folders: dict[str, Path], files: dict[str, Path], tmp_path: Path
) -> None:
    base = shutil.copytree(folders["fill"], tmp_path / "base")
    (base / "transformer/diffusion_pytorch_model.safetensors").unlink()
    checkpoint = find(Composed(base=str(base), files=(str(files["fill"]),)))
    assert checkpoint.describe().endswith("transformer from flux1-fill-dev.safetensors, the rest from base")
    assert checkpoint.license == "flux-1-dev"


def test_no_weights_of_flux2_read_more_than_latents(tmp_path: Path) -> None:
    folder = flux2_folders.build_dev(tmp_path / "dev")
    tensors = transformer_of_flux2(tensors_of(folder, "transformer"))
    tensors["img_in.weight"] = tensors["img_in.weight"].repeat(1, 2)
    file = write(tmp_path / "flux2.safetensors", tensors)
    with pytest.raises(CheckpointRefused, match=r"reads more than latents, and no published weights of FLUX\.2 do"):
        find(Composed(base=str(folder), files=(str(file),)))
