"""A run that goes on from a finished pipeline has its weights, its words, its autoencoder and its count of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from small_house import small_network, small_plan

from training import adopt, autoencoder, checkpoints, export, flow, latents, results, work
from training.ranks import Rank


@pytest.fixture
def pipeline(house: Path, tmp_path: Path) -> Path:
    """What an export of a run of 4,000 pictures leaves."""
    (house / "flow").mkdir()
    torch.manual_seed(1)
    checkpoints.save_average(house / "flow", dict(small_network().named_parameters()), 4000)
    autoencoder.build().save_pretrained(house / "vae")
    out = tmp_path / "pipeline"
    export.command(name="flow", preset="tiny", bits=8, out=out)
    return out


def test_the_run_goes_on_with_the_weights_of_the_pipeline(pipeline: Path, house: Path, tmp_path: Path) -> None:
    exported, _ = checkpoints.load_average(house / "flow")
    code = tmp_path / "code.safetensors"
    latents.load().save(code)
    for made_anew in ("latents.safetensors", "text"):
        (house / made_anew).unlink()
    adopt.adopt(pipeline, code, "next", "tiny", adopt.pictures_seen(pipeline))
    assert latents.path().read_bytes() == code.read_bytes()
    for part in ("tokenizer", "tokenizer_2"):
        assert (house / "text" / part / "tokenizer.json").read_bytes() == (
            pipeline / part / "tokenizer.json"
        ).read_bytes()
    told = results.facts(work.folder() / "next")
    assert (told.done, told.preset) == (4000, "tiny")
    trainer = flow.begin(Rank(0, 1), small_plan(work.folder() / "next"))
    assert trainer.done == 4000
    for name, value in trainer.averages().items():
        assert torch.allclose(value, exported[name], rtol=0.08, atol=2e-3 + value.abs().max().item() / 100), name


def test_a_run_that_has_begun_is_not_begun_again(house: Path) -> None:
    (house / "flow").mkdir()
    (house / "flow" / "flow.state").touch()
    with pytest.raises(SystemExit, match="has begun"):
        adopt.command(name="flow", preset="tiny", done=0)
