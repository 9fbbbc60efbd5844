"""What export writes is a pipeline folder: for stock diffusers, for the engine, in 8 and in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from diffusers import FluxPipeline  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_house import small_network  # noqa: E402

from fluxserve.engine import weights  # noqa: E402
from fluxserve.engine.device import Runtime  # noqa: E402
from training import autoencoder, checkpoints, export  # noqa: E402

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
CARD = 'name = "small"\n'
Exporting = Callable[[int], Path]


@pytest.fixture
def exported(house: Path, tmp_path: Path) -> Exporting:
    """Exports a run whose weights are random, in so many bits; into a folder with a card."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    (house / "flow").mkdir()
    checkpoints.save_average(house / "flow", dict(small_network().named_parameters()), 4000)
    autoencoder.build().save_pretrained(house / "vae")
    out = tmp_path / "pipeline"
    out.mkdir()
    (out / "fluxserve.toml").write_text(CARD, "utf-8")
    (out / "old.safetensors").write_bytes(b"of the checkpoint before")

    def run(bits: int) -> Path:
        export.command(name="flow", preset="tiny", bits=bits, out=out)
        return out

    return run


@pytest.mark.parametrize("bits", [8, 16])
def test_the_folder_loads_in_stock_diffusers_and_in_the_engine_with_the_trained_weights(
    exported: Exporting, bits: int, house: Path
) -> None:
    folder = exported(bits)
    stock = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    ours = weights.load(folder, CPU)
    trained, _ = checkpoints.load_average(house / "flow")
    for part, name in (("transformer", "transformer"), ("text_encoder", "clip"), ("text_encoder_2", "t5")):
        found, expected = getattr(ours, part).state_dict(), getattr(stock, part).state_dict()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
            if f"{name}.{key}" in trained:
                loss = 2**-4 if bits == 8 and value.dim() == 2 else 2**-11
                assert torch.allclose(value, trained[f"{name}.{key}"], rtol=loss, atol=2e-3 if loss > 0.01 else 1e-6)
    assert ours.tokenizer("a red apple").input_ids == stock.tokenizer("a red apple").input_ids
    assert ours.tokenizer_2("a red apple").input_ids == stock.tokenizer_2("a red apple").input_ids


def test_stock_diffusers_draws_with_it_at_the_size_asked_for(exported: Exporting) -> None:
    pipeline = FluxPipeline.from_pretrained(exported(8), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a cat on a red background",
        height=256,
        width=384,
        num_inference_steps=2,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert picture.size == (384, 256)


def test_eight_bits_are_for_matrices_outside_the_autoencoder(exported: Exporting) -> None:
    folder = exported(8)
    for part, file in export.FILES.items():
        for name, tensor in load_file(folder / part / file).items():
            is_small = part != "vae" and tensor.dim() == 2
            assert tensor.dtype == (torch.float8_e4m3fn if is_small else torch.float16), name
            assert torch.isfinite(tensor.float()).all()


def test_sixteen_bits_are_for_everything(exported: Exporting) -> None:
    folder = exported(16)
    for part, file in export.FILES.items():
        assert {tensor.dtype for tensor in load_file(folder / part / file).values()} == {torch.float16}


def test_the_card_is_kept_and_nothing_else_of_the_folder_before(exported: Exporting) -> None:
    folder = exported(8)
    assert (folder / "fluxserve.toml").read_text("utf-8") == CARD
    assert not (folder / "old.safetensors").exists()
    assert {path.name for path in folder.parent.iterdir() if path.name.startswith("pipeline")} == {"pipeline"}


def test_a_failed_export_leaves_the_folder_before(exported: Exporting, house: Path, tmp_path: Path) -> None:
    (house / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(OSError, match="vae"):
        exported(8)
    assert (tmp_path / "pipeline" / "old.safetensors").exists()


def test_what_a_failed_export_left_does_not_get_into_the_next(exported: Exporting, tmp_path: Path) -> None:
    (tmp_path / "pipeline.unfinished").mkdir()
    (tmp_path / "pipeline.unfinished" / "stray.safetensors").touch()
    assert not (exported(8) / "stray.safetensors").exists()
