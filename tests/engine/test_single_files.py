"""A single file in BFL's or ComfyUI's layout draws what the folder draws that it was written from."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import COMFY, in_bfl, in_comfy, tensors_of, transformer, write
from torch import Tensor

from fluxserve import mini
from fluxserve.catalogue import Generation, Size
from fluxserve.cli import models
from fluxserve.doctor import examine
from fluxserve.engine.checkpoints import find
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import open_drawer
from fluxserve.engine.fingerprint import weights_hash
from fluxserve.engine.means import USUAL
from fluxserve.engine.single_file import PARTS
from fluxserve.engine.weights import load
from fluxserve.errors import CheckpointMissing, CheckpointRefused
from fluxserve.settings import Composed, Settings
from fluxserve.settings import load as load_settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
WANTED = Generation(
    model="flux-dev",
    prompt="a red apple",
    size=Size(64, 96),
    seed=7,
    steps=3,
    guidance=3.5,
    output_format="png",
)
FLOAT8 = {torch.float8_e4m3fn: 2**-4, torch.float8_e5m2: 2**-3}


def composed(base: Path, *files: Path) -> Composed:
    return Composed(base=str(base), files=tuple(map(str, files)))


def drawn(value: str | Composed) -> tuple[Tensor, bytes]:
    """The latents and the pixels of the picture that is wanted."""
    drawer = open_drawer(find(value), CPU)
    with torch.inference_mode():
        trajectory = drawer.start("a", WANTED, 0)
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
        return trajectory.latents, drawer.finish(trajectory, USUAL).pixels.data


def assert_the_same_is_drawn(value: Composed, folder: Path) -> None:
    latents, pixels = drawn(value)
    expected, expected_pixels = drawn(str(folder))
    assert latents.equal(expected)
    assert pixels == expected_pixels


def without_weights(folder: Path, copy: Path) -> Path:
    """The small files of a folder."""
    return Path(shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors")))


def state(value: Composed, part: str) -> Mapping[str, Tensor]:
    checkpoint = find(value)
    return getattr(load(checkpoint.path, CPU, checkpoint.pieces), part).state_dict()


@pytest.fixture(params=["dev", "schnell"])
def folder(request: pytest.FixtureRequest, dev_folder: Path, schnell_folder: Path) -> Path:
    return {"dev": dev_folder, "schnell": schnell_folder}[request.param]


def test_a_transformer_in_bfls_layout_draws_the_same_picture_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1.safetensors", in_bfl(folder, "transformer"))
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    (base / "transformer/diffusion_pytorch_model.safetensors").unlink()
    assert_the_same_is_drawn(composed(base, file), folder)


def test_a_transformer_in_comfyuis_layout_draws_the_same_picture_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1.safetensors", in_comfy(folder, "transformer"))
    assert_the_same_is_drawn(composed(folder, file), folder)


def test_the_names_of_newer_versions_of_comfyui_are_known(dev_folder: Path, tmp_path: Path) -> None:
    tensors = in_comfy(dev_folder, "transformer")
    renamed = {name.replace("_norm.scale", "_norm.weight"): one for name, one in tensors.items()}
    assert renamed.keys() != tensors.keys()
    assert_the_same_is_drawn(composed(dev_folder, write(tmp_path / "new.safetensors", renamed)), dev_folder)


def test_an_all_in_one_file_needs_only_the_small_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    extra = {
        f"{COMFY['text_encoder']}text_projection.weight": torch.zeros(2, 2),
        f"{COMFY['text_encoder']}text_model.embeddings.position_ids": torch.arange(4)[None],
        "text_encoders.clip_l.logit_scale": torch.zeros(()),
    }
    file = write(tmp_path / "all.safetensors", in_comfy(folder, *PARTS) | extra)
    value = composed(without_weights(folder, tmp_path / "base"), file)
    assert set(find(value).pieces) == set(PARTS)
    assert_the_same_is_drawn(value, folder)


def test_every_part_may_lie_in_a_file_of_its_own_named_in_any_order(dev_folder: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{part}.safetensors", in_bfl(dev_folder, part)) for part in reversed(PARTS)]
    assert_the_same_is_drawn(composed(without_weights(dev_folder, tmp_path / "base"), *files), dev_folder)


def test_an_autoencoder_alone_is_taken_from_the_file_and_the_card_still_holds(
    shifted_folder: Path, dev_folder: Path, tmp_path: Path
) -> None:
    other = {name: one + 0.01 for name, one in in_bfl(dev_folder, "vae").items()}
    checkpoint = find(composed(shifted_folder, write(tmp_path / "ae.safetensors", other)))
    assert checkpoint.cfg_scale == 2.0
    taken = load(checkpoint.path, CPU, checkpoint.pieces)
    assert taken.vae.decoder.conv_in.bias.equal(other["decoder.conv_in.bias"])
    assert drawn(composed(shifted_folder, tmp_path / "ae.safetensors"))[1] != drawn(str(shifted_folder))[1]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_numbers_of_8_bits_are_loaded_as_they_are_and_draw_what_a_folder_with_them_draws(
    dev_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    rounded = Path(shutil.copytree(dev_folder, tmp_path / "rounded"))
    eighths = {name: one.to(dtype) for name, one in tensors_of(dev_folder, "transformer").items()}
    save_file({n: one.float() for n, one in eighths.items()}, next((rounded / "transformer").glob("*.safetensors")))
    file = write(tmp_path / "flux1-fp8.safetensors", in_comfy_8_bits(dev_folder, dtype))
    assert_the_same_is_drawn(composed(dev_folder, file), rounded)


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("by_rows", [False, True])
def test_scaled_numbers_of_8_bits_are_the_folders_within_their_rounding(
    dev_folder: Path, tmp_path: Path, dtype: torch.dtype, scale_name: str, by_rows: bool
) -> None:
    tensors = scaled(in_comfy(dev_folder, "transformer"), dtype, scale_name, by_rows=by_rows)
    taken = state(composed(dev_folder, write(tmp_path / "scaled.safetensors", tensors)), "transformer")
    for name, exact in tensors_of(dev_folder, "transformer").items():
        assert not taken[name].isnan().any()
        if exact.ndim == 2:
            # Beside the rounding of what is normal there is that of what is too small for its scale.
            assert ((taken[name] - exact).abs() <= FLOAT8[dtype] * exact.abs() + exact.abs().max() * 2**-15).all()
            assert not taken[name].equal(exact)
        else:
            assert taken[name].equal(exact)


def test_what_scaled_numbers_draw_is_near_to_what_exact_ones_do(dev_folder: Path, tmp_path: Path) -> None:
    tensors = scaled(in_comfy(dev_folder, *PARTS), torch.float8_e4m3fn, "scale_weight", by_rows=False)
    value = composed(without_weights(dev_folder, tmp_path / "base"), write(tmp_path / "all.safetensors", tensors))
    latents, exact = drawn(value)[0], drawn(str(dev_folder))[0]
    assert not latents.equal(exact)
    assert (latents - exact).norm() < 0.05 * exact.norm()


def test_half_precision_is_used_as_it_is(dev_folder: Path, tmp_path: Path) -> None:
    halves = {name: one.half() for name, one in in_bfl(dev_folder, "transformer").items()}
    checkpoint = find(composed(dev_folder, write(tmp_path / "half.safetensors", halves)))
    parts = load(checkpoint.path, Runtime(device="cpu", dtype="float16", threads=1, token_budget=1), checkpoint.pieces)
    assert parts.transformer.dtype == torch.float16
    back = transformer(parts.transformer.state_dict())
    assert all(back[name].equal(half) for name, half in halves.items())


def test_models_that_share_a_base_are_told_apart_by_their_files(
    dev_folder: Path, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    tensors = in_bfl(dev_folder, "transformer")
    other = tensors | {"final_layer.linear.bias": tensors["final_layer.linear.bias"] + 1}
    one, two = write(tmp_path / "one.safetensors", tensors), write(tmp_path / "two.safetensors", other)
    values = {"flux-dev": composed(dev_folder, one), "flux-pro": composed(dev_folder, two)}
    engine = DiffusionEngine(settings_for({}).model_copy(update={"models": values}))
    engine.warm()
    assert engine.fingerprints["flux-dev"] != engine.fingerprints["flux-pro"]


def test_the_fingerprint_covers_the_files_and_what_is_taken_from_which(dev_folder: Path, tmp_path: Path) -> None:
    tensors, vae = in_comfy(dev_folder, "transformer", "vae"), in_bfl(dev_folder, "vae")
    changed = {name: one + 1 if name.endswith("img_in.bias") else one for name, one in tensors.items()}
    alone = {name: one for name, one in tensors.items() if not name.startswith("vae.")}

    def word(base: Path, *named: tuple[str, Mapping[str, Tensor]]) -> str:
        checkpoint = find(composed(base, *(write(tmp_path / name, content) for name, content in named)))
        return weights_hash(checkpoint.path, checkpoint.pieces)

    words = [
        weights_hash(dev_folder),
        word(dev_folder, ("a.safetensors", tensors)),
        word(dev_folder, ("a.safetensors", changed)),
        word(dev_folder, ("a.safetensors", alone)),
        word(dev_folder, ("a.safetensors", alone), ("b.safetensors", vae)),
    ]
    assert len(set(words)) == len(words)
    assert word(dev_folder, ("renamed.safetensors", tensors)) == words[1]
    small = without_weights(dev_folder, tmp_path / "small")
    for part in ("text_encoder", "text_encoder_2"):
        shutil.copytree(dev_folder / part, small / part, dirs_exist_ok=True)
    assert word(small, ("a.safetensors", tensors)) == words[1]


def in_comfy_8_bits(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: one.to(dtype) for name, one in in_comfy(folder, "transformer").items()}


def scaled(tensors: Mapping[str, Tensor], dtype: torch.dtype, scale_name: str, *, by_rows: bool) -> dict[str, Tensor]:
    """As ComfyUI writes it: matrices in 8 bits, so scaled that their greatest number is that of the format."""
    written = {f"{COMFY['transformer']}scaled_fp8": torch.zeros(2, dtype=dtype)}
    for name, one in tensors.items():
        written[name] = one
        if one.ndim == 2 and name.endswith(".weight"):
            one = one.float()
            greatest = one.abs().amax(dim=1, keepdim=True) if by_rows else one.abs().max()
            scale = greatest.clamp(min=1e-12) / torch.finfo(dtype).max
            written[name] = (one / scale).to(dtype)
            written[f"{name.removesuffix('weight')}{scale_name}"] = scale
            written[f"{name.removesuffix('weight')}comfy_quant"] = torch.tensor(list(b"{}"), dtype=torch.uint8)
            written[f"{name.removesuffix('weight')}scale_input"] = torch.ones(())
    return written


def test_people_are_told_which_part_comes_from_where(
    dev_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "flux1-dev-fp8.safetensors", in_comfy(dev_folder, "transformer", "vae"))
    config = tmp_path / "fluxserve.toml"
    config.write_text(f'[models]\nflux-dev = {{base = "{dev_folder}", files = ["{file}"]}}\n')
    line = (
        "flux1-dev-fp8 (licence: flux-1-dev): draws at the size asked for; transformer from flux1-dev-fp8.safetensors, "
        "vae from flux1-dev-fp8.safetensors, the rest from tiny-dev"
    )
    (finding,) = (one for one in examine(load_settings(config)) if one.text.startswith("flux-dev: "))
    assert (finding.grade, finding.text) == (
        "bad", f'flux-dev: {line}; set accept_licenses = ["flux-1-dev"] first'
    )  # fmt: skip
    models(["--config", str(config)], standalone_mode=False)
    assert f"{line} [{dev_folder}, {file}]" in capsys.readouterr().out


def test_a_files_card_is_not_that_of_the_folder_whose_other_parts_it_uses(dev_folder: Path, tmp_path: Path) -> None:
    base = without_weights(dev_folder, tmp_path / "base")
    (base / "fluxserve.toml").write_text('name = "free"\nlicense = "mit"\ncfg_scale = 3.0\nnative_sizes = [[64, 64]]')
    checkpoint = find(composed(base, write(tmp_path / "flux1.safetensors", in_comfy(dev_folder, *PARTS))))
    assert (checkpoint.name, checkpoint.license_needed) == ("flux1", "flux-1-dev")
    assert (checkpoint.cfg_scale, checkpoint.native) == (1.0, ())


def test_the_bytes_of_weights_are_those_that_are_used(dev_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "all.safetensors", in_comfy(dev_folder, *PARTS))
    used = find(composed(without_weights(dev_folder, tmp_path / "base"), file)).weight_bytes
    assert used == sum(one.nbytes for one in load_file(file).values())
    vae = write(tmp_path / "ae.safetensors", in_bfl(dev_folder, "vae"))
    assert find(composed(dev_folder, vae)).weight_bytes == pytest.approx(find(str(dev_folder)).weight_bytes, rel=0.01)


# What is refused, and what is said of it.


def lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(2, 2)}


def sdxl(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}


def without_a_block(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if not name.startswith("single_blocks.0.")}


def without_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if not name.startswith("single_blocks.")}


def with_more(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "pulid_ca.0.weight": torch.zeros(2, 2)}


def in_integers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "img_in.weight": tensors["img_in.weight"].to(torch.int8)}


def that_reads_more(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "img_in.weight": tensors["img_in.weight"].repeat(1, 7)}


def in_other_ranks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "img_in.weight": tensors["img_in.weight"].flatten()}


def scaling_nothing(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "double_blocks.7.img_mod.lin.scale_weight": torch.ones(())}


def in_blocks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "img_in.weight_scale": torch.ones(len(tensors["img_in.weight"]), 2)}


def reading_other_texts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "txt_in.weight": tensors["txt_in.weight"].repeat(1, 2)}


def with_other_heads(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one.repeat(2) if name.endswith("_norm.scale") else one for name, one in tensors.items()}


def in_diffusers_layout(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"transformer_blocks.0.attn.to_q.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lora, "a LoRA, which changes a transformer"),
        (sdxl, "Stable Diffusion"),
        (in_diffusers_layout, "diffusers layout"),
        (lambda _: {"some.weight": torch.zeros(2)}, "no part of FLUX .* but some.weight"),
        (lambda _: {}, "no part of FLUX .* but nothing"),
        (without_a_block, r"not a whole transformer .* missing, such as single_blocks\.0\..* Download it again"),
        (without_blocks, r"not a whole transformer .* missing, such as single_blocks\.0\..* Download it again"),
        (with_more, "not the transformer of FLUX.1: it also holds pulid_ca.0.weight"),
        (in_integers, "numbers in I8, which are not read: get it in BF16"),
        (in_blocks, r"numbers in blocks with scales of their own \(img_in.weight\), which are not read"),
        (that_reads_more, r"wrong\.safetensors has a transformer that reads 112 channels"),
        (in_other_ranks, "img_in.weight has shape"),
        (scaling_nothing, "also holds double_blocks.7.img_mod.lin.weight"),
        (reading_other_texts, "reads texts 384 wide, and those of the folder's T5 are 192. Name the folder"),
        (with_other_heads, "reads places 32 wide"),
    ],
)
def test_a_wrong_file_is_refused_at_the_first_look_with_what_it_is_and_what_to_do(
    dev_folder: Path, tmp_path: Path, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], words: str
) -> None:
    file = write(tmp_path / "wrong.safetensors", change(in_bfl(dev_folder, "transformer")))
    with pytest.raises(CheckpointRefused, match=words) as refused:
        find(composed(dev_folder, file))
    assert str(file) in refused.value.message


def test_a_tensor_of_another_shape_is_refused_by_name_before_anything_is_loaded(
    dev_folder: Path, tmp_path: Path
) -> None:
    tensors = in_bfl(dev_folder, "transformer")
    for name in ("single_blocks.0.linear1.weight", "final_layer.adaLN_modulation.1.bias"):
        file = write(tmp_path / "wrong.safetensors", tensors | {name: tensors[name][:-1]})
        checkpoint = find(composed(dev_folder, file))
        with pytest.raises(CheckpointRefused, match=f"{name} has shape .* is wanted"):
            load(checkpoint.path, CPU, checkpoint.pieces)


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(dev_folder: Path, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", in_bfl(dev_folder, "transformer")).read_bytes()
    file = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointRefused, match="Download it again"):
            find(composed(dev_folder, file))
    file.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointRefused, match="1 bytes too long"):
        find(composed(dev_folder, file))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("flux1.ckpt", b"", "could run code: only safetensors"),
        ("flux1.PT", b"", "could run code: only safetensors"),
        ("flux1.safetensors", b"PK\x03\x04and more", "is a pickle: only safetensors"),
        ("flux1.safetensors", b"\x80\x02}q\x00.and more", "is a pickle: only safetensors"),
        ("flux1.gguf", b"GGUF\x03\0\0\0and more", "is cut off, or damaged: its header is longer than the file"),
        ("flux1.safetensors", b"version https://git-lfs", "header cannot be read. Download it again"),
    ],
)
def test_a_file_in_another_format_is_refused(
    dev_folder: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointRefused, match=words):
        find(composed(dev_folder, tmp_path / name))


def test_a_file_that_is_not_there_is_missing(dev_folder: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(CheckpointMissing, match=str(file)):
            find(composed(dev_folder, file))


def test_a_file_without_a_base_is_refused_with_how_to_name_one(dev_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1.safetensors", in_bfl(dev_folder, "transformer"))
    for value in (str(file), composed(file, file)):
        with pytest.raises(CheckpointRefused, match=r'has no tokenizers: .* like \{base = "FOLDER", files = \["'):
            find(value)


def test_a_part_in_two_files_is_refused(dev_folder: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.safetensors", in_bfl(dev_folder, "transformer")) for i in range(2)]
    with pytest.raises(CheckpointRefused, match=r"Both .*0\.safetensors and .*1\.safetensors hold a transformer"):
        find(composed(dev_folder, *files))


def test_a_base_of_another_kind_is_refused(dev_folder: Path, schnell_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1-schnell.safetensors", in_bfl(schnell_folder, "transformer"))
    with pytest.raises(CheckpointRefused, match=r"noise schedule is another\. Name a folder of the same kind"):
        find(composed(dev_folder, file))


def test_a_base_that_lacks_what_the_file_has_not_is_missing_something(dev_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "flux1.safetensors", in_bfl(dev_folder, "transformer"))
    with pytest.raises(CheckpointMissing, match=r"vae/diffusion_pytorch_model\.safetensors"):
        find(composed(without_weights(dev_folder, tmp_path / "base"), file))


def test_an_autoencoder_of_another_kind_is_refused(dev_folder: Path, tmp_path: Path) -> None:
    vae = in_bfl(dev_folder, "vae")
    file = write(tmp_path / "ae.safetensors", vae)
    with pytest.raises(CheckpointRefused, match="made for an AutoencoderTiny"):
        find(composed(mini.folder(), file))
    for name in ("quant_conv.weight", "decoder.up.0.block.9.conv1.weight"):
        checkpoint = find(composed(dev_folder, write(file, vae | {name: torch.zeros(4, 4, 1, 1)})))
        with pytest.raises(CheckpointRefused, match=f"also holds {name}"):
            load(checkpoint.path, CPU, checkpoint.pieces)
    lower = {name: one for name, one in vae.items() if "up.3" not in name}
    with pytest.raises(CheckpointRefused, match=r"3 levels, and .* tells of 4"):
        find(composed(dev_folder, write(file, lower)))
    decoder = {name: one for name, one in vae.items() if name.startswith("decoder.")}
    checkpoint = find(composed(dev_folder, write(file, decoder)))
    with pytest.raises(CheckpointRefused, match="tensors are missing, such as encoder"):
        load(checkpoint.path, CPU, checkpoint.pieces)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_that_lacks_a_layer_or_has_one_more_is_refused(
    dev_folder: Path, tmp_path: Path, part: str
) -> None:
    tensors = in_bfl(dev_folder, part)
    last = next(name for name in reversed(tensors) if ".0." in name)
    for wrong in (
        {name: one for name, one in tensors.items() if name != last},
        tensors | {last.replace(".0.", ".99.", 1): tensors[last]},
    ):
        checkpoint = find(composed(dev_folder, write(tmp_path / "wrong.safetensors", wrong)))
        with pytest.raises(CheckpointRefused, match=f"The {part} in .*wrong.safetensors does not fit"):
            load(checkpoint.path, CPU, checkpoint.pieces)


def test_the_files_shapes_are_believed_where_the_bases_config_tells_of_others(dev_folder: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(dev_folder, tmp_path / "base"))
    config = base / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 19, "num_single_layers": 38}))
    file = write(tmp_path / "flux1.safetensors", in_bfl(dev_folder, "transformer"))
    assert_the_same_is_drawn(composed(base, file), dev_folder)


def test_what_is_written_for_these_tests_is_whole(dev_folder: Path) -> None:
    for part in ("transformer", "vae"):
        (file,) = (dev_folder / part).glob("*.safetensors")
        assert sum(t.numel() for t in in_bfl(dev_folder, part).values()) == sum(
            t.numel() for t in load_file(file).values()
        )
