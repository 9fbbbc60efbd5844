"""Folders of FLUX.2: what they are said to be, and what is wrong with those that are not whole or do not fit."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import flux2_folders
import pytest
from flux2_folders import change
from single_files import in_bfl, tensors_of, transformer_of_flux2, write
from torch import Tensor

from fluxserve import doctor
from fluxserve.catalogue import MODELS
from fluxserve.engine.checkpoints import find
from fluxserve.engine.device import Runtime
from fluxserve.engine.fingerprint import weights_hash
from fluxserve.engine.weights import load
from fluxserve.errors import CheckpointMissing, CheckpointRefused
from fluxserve.settings import Composed, Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
CONFIG, TEXT_CONFIG = "transformer/config.json", "text_encoder/config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("flux2-folders")
    return {
        "dev": flux2_folders.build_dev(home / "dev"),
        "klein": flux2_folders.build_klein(home / "klein", is_distilled=True),
    }


@pytest.fixture
def dev(built: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built["dev"], tmp_path / "tiny-dev"))


@pytest.fixture
def klein(built: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built["klein"], tmp_path / "tiny-klein"))


def test_dev_has_guidance_eight_references_and_a_licence_to_accept(dev: Path) -> None:
    checkpoint = find(str(dev))
    assert (checkpoint.guidance_embeds, checkpoint.cfg_scale, checkpoint.license_needed) == (True, 1.0, "flux-2-dev")
    assert checkpoint.describe() == (
        "tiny-dev (licence: flux-2-dev): draws at the size asked for; reads up to 8 pictures beside the prompt"
    )
    findings = doctor.examine(Settings(models=dict.fromkeys(MODELS, str(dev)), device="cpu", data_dir=dev / "data"))
    assert any('set accept_licenses = ["flux-2-dev"] first' in finding.text for finding in findings)


def test_klein_has_none_of_these_and_is_drawn_with_true_guidance_where_it_is_not_distilled(klein: Path) -> None:
    checkpoint = find(str(klein))
    assert (checkpoint.guidance_embeds, checkpoint.cfg_scale, checkpoint.license_needed) == (False, 1.0, None)
    assert checkpoint.describe() == (
        "tiny-klein (licence: not stated; guidance changes nothing): draws at the size asked for; "
        "reads up to 4 pictures beside the prompt"
    )
    distilled = weights_hash(klein)
    change(klein / "model_index.json", is_distilled=False)
    assert find(str(klein)).cfg_scale == 4.0
    assert weights_hash(klein) != distilled
    (klein / "fluxserve.toml").write_text('cfg_scale = 1.0\nlicense = "MIT"')
    assert (find(str(klein)).cfg_scale, find(str(klein)).license) == (1.0, "mit")


def test_klein_4b_is_free_by_its_name_and_9b_not_by_any(klein: Path) -> None:
    named = klein.with_name("FLUX.2-klein-4B")
    klein.rename(named)
    assert find(str(named)).license == "apache-2.0"
    change(named / CONFIG, joint_attention_dim=12288)
    change(named / TEXT_CONFIG, hidden_size=4096)
    assert find(str(named)).license_needed == "flux-2-klein-9b"


@pytest.mark.parametrize(
    "name",
    [
        CONFIG,
        f"transformer/{WEIGHTS}",
        f"vae/{WEIGHTS}",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_what_is_missing_is_named(dev: Path, name: str) -> None:
    (dev / name).unlink()
    with pytest.raises(CheckpointMissing, match=name):
        find(str(dev))


def test_the_text_encoder_of_another_family_is_refused(dev: Path) -> None:
    change(dev / "model_index.json", text_encoder=["transformers", "Qwen3ForCausalLM"])
    with pytest.raises(CheckpointRefused, match="text_encoder is Qwen3ForCausalLM, not one of Mistral3"):
        find(str(dev))


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        (TEXT_CONFIG, {"num_hidden_layers": 20}, "text_encoder has 20 layers, and FLUX.2 .klein. reads its 27th"),
        (TEXT_CONFIG, {"hidden_size": 32}, "reads texts 48 wide, and those of its text_encoder are 96"),
        ("vae/config.json", {"latent_channels": 16}, "reads latents 128 wide, and those of its vae are 64"),
        ("scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "noise schedule"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_parts_that_were_not_made_for_each_other_are_refused(
    klein: Path, name: str, values: dict[str, object], reason: str
) -> None:
    change(klein / name, **values)
    with pytest.raises(CheckpointRefused, match=reason):
        find(str(klein))


def test_a_tokenizer_without_a_chat_template_is_refused(klein: Path) -> None:
    (klein / "tokenizer/chat_template.jinja").unlink()
    with pytest.raises(CheckpointRefused, match=r"Add the tokenizer/chat_template\.jinja"):
        find(str(klein))
    change(klein / "tokenizer/tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert find(str(klein)).name == "tiny-klein"


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_weights_that_are_cut_off_or_of_another_network_are_refused_as_they_load(
    klein: Path, dev: Path, part: str
) -> None:
    (file,) = (klein / part).glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointRefused, match="cannot be loaded"):
        load(klein, CPU)
    other = "transformer" if part == "vae" else part
    shutil.copy(next((dev / other).glob("*.safetensors")), file)
    with pytest.raises(CheckpointRefused, match=r"knows no tensor|lacks the tensor"):
        load(klein, CPU)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["dev", "klein"])
def test_a_transformer_in_a_single_file_is_the_folders(
    built: dict[str, Path], tmp_path: Path, name: str, prefix: str
) -> None:
    tensors = transformer_of_flux2(tensors_of(built[name], "transformer"))
    file = write(tmp_path / "flux2.safetensors", {prefix + one: tensor for one, tensor in tensors.items()})
    base = shutil.copytree(built[name], tmp_path / "base")
    (base / "transformer" / WEIGHTS).unlink()
    checkpoint = find(Composed(base=str(base), files=(str(file),)))
    assert checkpoint.describe().endswith("transformer from flux2.safetensors, the rest from base")
    state = load(checkpoint.path, CPU, checkpoint.pieces).transformer.state_dict()
    expected = load(built[name], CPU).transformer.state_dict()
    assert state.keys() == expected.keys()
    assert all(state[one].equal(tensor) for one, tensor in expected.items())


def test_only_a_transformer_is_taken_from_a_file_and_only_from_one_of_its_kind(
    klein: Path, dev: Path, dev_folder: Path, tmp_path: Path
) -> None:
    def refused(base: Path, tensors: Mapping[str, Tensor], words: str) -> None:
        file = write(tmp_path / "wrong.safetensors", tensors)
        with pytest.raises(CheckpointRefused, match=words):
            find(Composed(base=str(base), files=(str(file),)))

    flux2 = transformer_of_flux2(tensors_of(klein, "transformer"))
    refused(klein, in_bfl(dev_folder, "vae"), r"holds a vae, which is taken from a folder of FLUX\.2 .*: leave it out")
    refused(klein, in_bfl(dev_folder, "transformer"), r"is a transformer of FLUX\.1, and .* holds FLUX\.2 \[klein\]")
    refused(dev_folder, flux2, r"is a transformer of FLUX\.2, and .* holds FLUX\.1")
    refused(dev, flux2, "has no guidance embedding, as .* a guidance embedding, as .dev.")
    wide = {**flux2, "txt_in.weight": flux2["txt_in.weight"].repeat(1, 2)}
    refused(klein, wide, "reads texts 96 wide, and those of the folder's text_encoder are 48")
    less = {name: one for name, one in flux2.items() if not name.startswith("single_blocks.0.")}
    refused(klein, less, r"is not a whole transformer of FLUX\.2: 4 tensors are missing")


def test_a_redux_is_not_taken_beside_it(klein: Path) -> None:
    with pytest.raises(CheckpointRefused, match="reads pictures itself: name nothing beside it"):
        find(Composed(base=str(klein), redux=str(klein)))


def test_a_processor_stands_for_its_tokenizer(dev: Path) -> None:
    change(dev / "model_index.json", tokenizer=["transformers", "PixtralProcessor"])
    change(dev / "tokenizer/tokenizer_config.json", processor_class="PixtralProcessor")
    assert load(dev, CPU).tokenizer("a")["input_ids"]
