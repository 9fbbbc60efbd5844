import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve import mini
from fluxserve.catalogue import MODELS, Size
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, Recipe, TextToImage
from fluxserve.engine.checkpoints import Checkpoint, Reads, drawn_size, find, plan
from fluxserve.errors import CheckpointMissing, CheckpointRefused, UnknownSetting
from fluxserve.settings import MINI, Settings

CARD = "fluxserve.toml"
FILL, CANNY = Fill(), Control(kind="canny")


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint without a card and without a guidance embedding, 16 pixels to a latent."""
    copy = tmp_path / "my-weights"
    shutil.copytree(mini.folder(), copy)
    (copy / CARD).unlink()
    change(copy / "transformer/config.json", guidance_embeds=False)
    change(copy / "vae/config.json", block_out_channels=[8] * 5)
    return copy


def as_repository(folder: Path, cache: Path, name: str) -> None:
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("abc123")
    shutil.copytree(folder, home / "snapshots/abc123")


def test_mini_ships_with_the_package_and_says_what_it_is() -> None:
    checkpoint = find("mini")
    assert (checkpoint.name, checkpoint.license, checkpoint.cfg_scale) == ("fluxserve-mini", "apache-2.0", 1.0)
    assert (checkpoint.text_length, checkpoint.vae_factor, checkpoint.guidance_embeds) == (32, 64, True)
    assert checkpoint.license_needed is None
    assert "512x1024 to 1024x512" in checkpoint.describe()


def test_looking_at_checkpoints_does_not_import_torch() -> None:
    code = "import sys; from fluxserve.engine import checkpoints as c; c.find('mini'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_by_default_mini_draws_every_model() -> None:
    assert {name: checkpoint.name for name, checkpoint in plan(Settings()).items()} == dict.fromkeys(
        MODELS, "fluxserve-mini"
    )


def test_a_model_can_be_mapped_to_a_folder(folder: Path) -> None:
    planned = plan(Settings(models={"flux-dev": str(folder)}))
    assert planned["flux-dev"].name == "my-weights"
    assert planned["flux-schnell"].name == "fluxserve-mini"


def test_a_model_that_does_not_exist_cannot_be_mapped() -> None:
    with pytest.raises(UnknownSetting, match="flux-9"):
        plan(Settings(models={"flux-9": "mini"}))


def test_a_folder_without_a_card_has_no_cap_no_true_guidance_and_the_name_of_the_folder(folder: Path) -> None:
    checkpoint = find(str(folder))
    assert (checkpoint.name, checkpoint.native, checkpoint.cfg_scale) == ("my-weights", (), 1.0)
    assert checkpoint.warnings_for("a photo") == ()
    assert checkpoint.license is None
    assert "not stated" in checkpoint.describe()


def test_a_card_says_what_the_folder_cannot(folder: Path) -> None:
    card = ('name = "ours"', 'license = "MIT"', 'draws = "cats only"', "native_sizes = [[256, 256]]", "cfg_scale = 3.5")
    (folder / CARD).write_text("\n".join(card))
    checkpoint = find(str(folder))
    assert (checkpoint.name, checkpoint.license, checkpoint.cfg_scale) == ("ours", "mit", 3.5)
    assert drawn_size(checkpoint, Size(1024, 1024)) == Size(256, 256)
    assert checkpoint.describe().startswith("ours (licence: mit; guidance changes nothing): cats only; ")
    assert "256x256" in checkpoint.describe()


def test_a_card_names_the_sizes_and_shapes_that_were_learnt(folder: Path) -> None:
    (folder / CARD).write_text("native_sizes = [[256, 256], [256, 448], [448, 256]]\n")
    checkpoint = find(str(folder))
    assert "256x448 to 448x256" in checkpoint.describe()
    assert drawn_size(checkpoint, Size(1344, 576)) == Size(448, 256)
    assert drawn_size(checkpoint, Size(512, 512)) == Size(256, 256)


@pytest.mark.parametrize(
    "card",
    [
        "native_sizes = [[256, 256], [256, 264]]",
        "native_sizes = [[16, 32]]",
    ],
)
def test_a_card_with_a_size_that_is_no_multiple_of_two_latents_is_refused_by_name(folder: Path, card: str) -> None:
    (folder / CARD).write_text(card)
    with pytest.raises(CheckpointRefused, match=f"{CARD}: .* in multiples of 32, not native_sizes of [0-9]+ x"):
        find(str(folder))


def test_words_of_a_prompt_call_for_the_cards_warnings(folder: Path) -> None:
    (folder / CARD).write_text('[warnings]\n"no photos" = ["photo", "foto"]\n"no people" = ["man", "woman"]\n')
    checkpoint = find(str(folder))
    assert checkpoint.warnings_for("A Photo-realistic cat, FOTO") == ("no photos",)
    assert checkpoint.warnings_for("photo of a woman") == ("no photos", "no people")
    assert checkpoint.warnings_for("photosynthesis of a mango") == ()


def test_mini_warns_whoever_asks_it_for_a_photo() -> None:
    assert find("mini").warnings_for("a photo of a red apple") == (
        "fluxserve-mini draws illustrations, not photographs",
    )
    assert find("mini").warnings_for("a red apple") == ()
    assert "no photographs" in find("mini").describe()


@pytest.mark.parametrize(
    "card",
    [
        'nmae = "x"',
        "native_sizes = 'big'",
        "native_sizes = [256, 256]",
        "native_sizes = [[256]]",
        "native_sizes = [[0, 256]]",
        "native_sizes = [[256, -256]]",
        "native_sizes = [[256, 1000000000]]",
        '[warnings]\n"no photos" = ["Photo"]',
        '[warnings]\n"" = ["photo"]',
        "cfg_scale = 0.5",
        "name = ",
        'name = ""',
    ],
)
def test_a_card_that_cannot_be_read_is_refused_by_name(folder: Path, card: str) -> None:
    (folder / CARD).write_text(card)
    with pytest.raises(CheckpointRefused, match=CARD):
        find(str(folder))


def test_weights_with_guidance_carry_the_dev_licence_and_need_its_acceptance(folder: Path) -> None:
    change(folder / "transformer/config.json", guidance_embeds=True)
    checkpoint = find(str(folder))
    assert checkpoint.guidance_embeds
    assert checkpoint.license_needed == "flux-1-dev"


def test_a_card_can_state_another_licence_for_weights_with_guidance(folder: Path) -> None:
    change(folder / "transformer/config.json", guidance_embeds=True)
    (folder / CARD).write_text('license = "Apache-2.0"')
    assert find(str(folder)).license_needed is None


def test_prompts_are_as_long_as_the_family_learnt_them(folder: Path) -> None:
    change(folder / "tokenizer_2/tokenizer_config.json", model_max_length=10**30)
    assert find(str(folder)).text_length == 256
    change(folder / "transformer/config.json", guidance_embeds=True)
    assert find(str(folder)).text_length == 512


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_repository_is_found_in_the_hub_cache(folder: Path, tmp_path: Path, variable: str) -> None:
    inside = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    as_repository(folder, tmp_path / "cache" / inside, "black-forest-labs/FLUX.1-schnell")
    checkpoint = find("black-forest-labs/FLUX.1-schnell", {variable: str(tmp_path / "cache")})
    assert (checkpoint.name, checkpoint.license, checkpoint.license_needed) == ("FLUX.1-schnell", "apache-2.0", None)


def test_a_repository_called_dev_carries_the_dev_licence(folder: Path, tmp_path: Path) -> None:
    as_repository(folder, tmp_path, "someone/FLUX.1-dev")
    assert find("someone/FLUX.1-dev", {"HF_HUB_CACHE": str(tmp_path)}).license_needed == "flux-1-dev"


def test_a_repository_that_is_not_in_the_cache_is_missing_and_the_message_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="hf download someone/weights"):
        find("someone/weights", {"HF_HUB_CACHE": str(tmp_path)})


@pytest.mark.parametrize("value", ["", "/nowhere/at/all", "three/part/name", "../x/..", "no-such-folder"])
def test_what_is_neither_a_folder_nor_a_repository_is_missing(value: str) -> None:
    with pytest.raises((CheckpointMissing, CheckpointRefused)):
        find(value, {"HF_HUB_CACHE": "/nowhere"})


@pytest.mark.parametrize(
    "name",
    [
        "unet.bin",
        "model.pt",
        "model.pth",
        "old.ckpt",
        "data.pkl",
        "data.pickle",
        "modeling.py",
        "SHOUTING.BIN",
        "deep/inside/here.pt",
    ],
)
def test_a_folder_that_holds_pickles_or_code_is_refused(folder: Path, name: str) -> None:
    (folder / "transformer" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "transformer" / name).write_bytes(b"")
    with pytest.raises(CheckpointRefused, match="could run code"):
        find(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer_config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_an_incomplete_folder_is_missing_something_and_the_message_names_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointMissing, match=name):
        find(str(folder))


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "vae/config.json"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "\xff", '{"_class_name": 3, "guidance_embeds": 3, "block_out_channels": 3}']
)
def test_a_broken_file_is_refused_by_name(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointRefused, match=name):
        find(str(folder))


def test_a_pipeline_of_another_family_is_refused(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(CheckpointRefused, match="StableDiffusionPipeline"):
        find(str(folder))


@pytest.mark.parametrize("part", [["diffusers", "UNet2DModel"], ["my_code", "FluxTransformer2DModel"], [None, None]])
def test_a_part_of_another_class_or_library_is_refused(folder: Path, part: list[str | None]) -> None:
    change(folder / "model_index.json", transformer=part)
    with pytest.raises(CheckpointRefused, match="transformer"):
        find(str(folder))


@pytest.mark.parametrize(
    "other",
    [
        {"_class_name": "DDIMScheduler"},
        {"use_karras_sigmas": True},
        {"stochastic_sampling": True},
        {"time_shift_type": "linear"},
        {"shift_terminal": 0.02},
        {"invert_sigmas": True},
    ],
)
def test_a_noise_schedule_that_we_do_not_compute_is_refused(folder: Path, other: dict[str, object]) -> None:
    change(folder / "scheduler/scheduler_config.json", **other)
    with pytest.raises(CheckpointRefused, match="noise schedule"):
        find(str(folder))


def test_a_tokenizer_of_another_class_is_refused(folder: Path) -> None:
    change(folder / "model_index.json", tokenizer_2=["transformers", "AutoTokenizer"])
    with pytest.raises(CheckpointRefused, match="tokenizer_2"):
        find(str(folder))


def test_weights_in_shards_need_every_shard(folder: Path) -> None:
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    index = weights.with_name(f"{weights.name}.index.json")
    weights.rename(weights.with_name("a.safetensors"))
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(CheckpointMissing, match=r"b\.safetensors"):
        find(str(folder))
    shutil.copy(weights.with_name("a.safetensors"), weights.with_name("b.safetensors"))
    assert find(str(folder)).name == "my-weights"


@pytest.mark.parametrize("shard", ["../../secret.safetensors", "/etc/passwd", "weights.bin"])
def test_shards_lie_beside_their_index(folder: Path, shard: str) -> None:
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(CheckpointRefused, match="index"):
        find(str(folder))


@pytest.mark.parametrize(
    ("pipeline", "width", "reads"),
    [
        ("FluxPipeline", 64, "nothing"),
        ("FluxImg2ImgPipeline", 64, "nothing"),
        ("FluxKontextPipeline", 64, "references"),
        ("FluxFillPipeline", 384, "masked"),
        ("FluxControlPipeline", 128, "control"),
    ],
)
def test_what_weights_read_of_pictures_follows_from_their_width_and_name(
    folder: Path, pipeline: str, width: int, reads: str
) -> None:
    (folder / "vae/config.json").write_text('{"block_out_channels": [8, 8, 8, 8], "latent_channels": 16}')
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": pipeline}))
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": width}))
    assert find(str(folder)).reads == reads


def test_a_transformer_of_a_width_that_no_kind_has_is_refused(folder: Path) -> None:
    config = folder / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 65}))
    with pytest.raises(CheckpointRefused, match="reads 65 channels"):
        find(str(folder))


def test_a_vae_of_four_levels_has_eight_pixels_to_a_latent(folder: Path) -> None:
    (folder / "vae/config.json").write_text('{"block_out_channels": [8, 8, 8, 8], "latent_channels": 16}')
    assert find(str(folder)).vae_factor == 8
    (folder / "vae/config.json").write_text('{"decoder_block_out_channels": [8, 8, 8], "latent_channels": 16}')
    assert find(str(folder)).vae_factor == 4


def without_bounds(vae_factor: int) -> Checkpoint:
    return replace(find("mini"), native=(), vae_factor=vae_factor)


@pytest.mark.parametrize("size", [Size(1024, 768), Size(256, 1440), Size(3136, 1344)])
def test_without_a_cap_the_size_asked_for_is_drawn(size: Size) -> None:
    assert drawn_size(without_bounds(8), size) == size


def test_a_size_that_is_no_multiple_of_two_latents_is_drawn_at_the_nearest_that_is() -> None:
    drawn = drawn_size(without_bounds(32), Size(1024, 736))
    assert drawn.width % 64 == drawn.height % 64 == 0
    assert drawn.ratio == pytest.approx(1024 / 736, rel=0.06)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        (Size(256, 256), Size(512, 512)),
        (Size(320, 256), Size(768, 512)),
        (Size(512, 512), Size(512, 512)),
        (Size(2048, 2048), Size(512, 512)),
        (Size(1024, 768), Size(768, 512)),
        (Size(768, 1024), Size(512, 768)),
        (Size(1280, 720), Size(1024, 512)),
        (Size(3136, 1344), Size(1024, 512)),
        (Size(256, 1440), Size(512, 1024)),
    ],
)
def test_mini_draws_at_the_sizes_it_learnt(size: Size, drawn: Size) -> None:
    assert drawn_size(find("mini"), size) == drawn


@pytest.mark.parametrize("value", ["~nobody-of-this-name/weights", "a\0b"])
def test_what_can_be_no_path_is_missing(value: str) -> None:
    with pytest.raises(CheckpointMissing, match="names no file or folder"):
        find(value)


@pytest.mark.parametrize("recipe", [Fill(), Fill(left=8), Control(kind="canny"), Control(kind="depth")])
def test_weights_that_were_made_for_words_are_asked_with_the_guidance_of_words(recipe: Recipe) -> None:
    assert find(MINI).most_guidance(recipe) == 3.5


@pytest.mark.parametrize("recipe", [TextToImage(), ImageToImage(strength=0.5), Edit()])
def test_what_every_kind_of_weights_does_is_drawn_with_any_guidance(recipe: Recipe) -> None:
    assert find(MINI).most_guidance(recipe) == math.inf


@pytest.mark.parametrize(("reads", "own", "other"), [("masked", FILL, CANNY), ("control", CANNY, FILL)])
def test_weights_for_masks_and_for_structures_learnt_their_own(reads: Reads, own: Recipe, other: Recipe) -> None:
    made_for = replace(find(MINI), reads=reads)
    assert made_for.most_guidance(own) == math.inf
    assert made_for.most_guidance(other) == 3.5
