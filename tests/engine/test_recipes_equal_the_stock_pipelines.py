"""Each recipe, on weights that were made for it, ends in the latents of diffusers' own pipeline for it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from kinds import SIZE, begin, build_depth, build_kind, build_redux, end, half_white, picture, wish
from PIL import Image
from tiny import CPU
from torch import Tensor
from transformers import DPTForDepthEstimation, DPTImageProcessorPil, SiglipImageProcessorPil

from fluxserve.catalogue import MODELS, Size
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, Recipe, TextToImage
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import find
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.forward import ALONE
from fluxserve.engine.preparation import Preparation
from fluxserve.engine.weights import load
from fluxserve.errors import CheckpointMissing, CheckpointRefused
from fluxserve.settings import Composed

PICTURE, MASK = picture(1), half_white()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawer]:
    known: dict[str, Drawer] = {}

    def open_kind(kind: str) -> Drawer:
        if kind not in known:
            folder = build_kind(tmp_path_factory.mktemp("weights") / kind, kind)
            known[kind] = open_drawer(find(str(folder)), CPU)
        return known[kind]

    return open_kind


def stock(pipeline: type[DiffusionPipeline], drawer: Drawer) -> DiffusionPipeline:
    parts = load(drawer.checkpoint.path, CPU)
    made = pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(drawer.checkpoint.path / "scheduler"),
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        text_encoder_2=parts.text_encoder_2,
        tokenizer_2=parts.tokenizer_2,
        transformer=parts.transformer,
    )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipeline: DiffusionPipeline, drawer: Drawer, size: Size = SIZE, **more: object) -> np.ndarray:
    drawn = pipeline(
        prompt="a red apple",
        height=size.height,
        width=size.width,
        num_inference_steps=4,
        guidance_scale=3.5,
        generator=torch.Generator("cpu").manual_seed(7),
        max_sequence_length=drawer.checkpoint.text_length,
        output_type="latent",
        **more,
    ).images
    return np.asarray(drawn)


def ours(drawer: Drawer, recipe: Recipe, pictures: Mapping[str, Pixels]) -> np.ndarray:
    with torch.inference_mode():
        return end(drawer, begin(drawer, wish(recipe, pictures), pictures)).latents.numpy()


def clean(pipeline: DiffusionPipeline, one: Pixels) -> Tensor:
    """The mode of what the autoencoder makes of a picture: where pipelines sample, they draw other noise than ours."""
    vae = pipeline.vae
    with torch.no_grad():
        mode = vae.encode(pipeline.image_processor.preprocess(pixels_of.to_image(one))).latent_dist.mode()
    return (mode - vae.config.shift_factor) * vae.config.scaling_factor


def assert_equal(one: np.ndarray, other: np.ndarray) -> None:
    assert np.abs(other).max() > 0.5
    np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_image_to_image(opened: Callable[[str], Drawer], strength: float) -> None:
    drawer = opened("plain")
    pipeline = stock(FluxImg2ImgPipeline, drawer)
    expected = theirs(pipeline, drawer, image=clean(pipeline, PICTURE), strength=strength)
    assert_equal(ours(drawer, ImageToImage(strength=strength), {"image": PICTURE}), expected)


def test_filling_by_plain_weights(opened: Callable[[str], Drawer]) -> None:
    drawer = opened("plain")
    pipeline = stock(FluxInpaintPipeline, drawer)
    latents = clean(pipeline, PICTURE)
    expected = theirs(
        pipeline,
        drawer,
        image=latents,
        mask_image=pixels_of.to_image(MASK),
        masked_image_latents=latents,
        strength=1.0,
    )
    assert_equal(ours(drawer, Fill(), {"image": PICTURE, "mask": MASK}), expected)


@pytest.mark.parametrize("reference", [picture(1), picture(2, Size(320, 256))])
def test_editing_by_kontext_weights(opened: Callable[[str], Drawer], reference: Pixels) -> None:
    drawer = opened("kontext")
    pipeline = stock(FluxKontextPipeline, drawer)
    expected = theirs(pipeline, drawer, image=pixels_of.to_image(reference), max_area=SIZE.area)
    assert_equal(ours(drawer, Edit(), {"input_image": reference}), expected)


def test_filling_by_weights_made_for_it(opened: Callable[[str], Drawer]) -> None:
    drawer = opened("fill")
    pipeline = stock(FluxFillPipeline, drawer)
    expected = theirs(
        pipeline,
        drawer,
        image=pixels_of.to_image(PICTURE),
        mask_image=pixels_of.to_image(MASK),
        latents=drawer.network.noise(7, SIZE),
    )
    assert_equal(ours(drawer, Fill(), {"image": PICTURE, "mask": MASK}), expected)


def test_expanding_by_weights_made_for_filling(opened: Callable[[str], Drawer]) -> None:
    drawer = opened("fill")
    pipeline = stock(FluxFillPipeline, drawer)
    inner, margins = picture(1, Size(160, 192)), Fill(left=32, right=64, top=64, bottom=0)
    levels = np.frombuffer(inner.data, dtype=np.uint8).reshape(192, 160, 3)
    around = ((64, 0), (32, 64))
    image = np.pad(levels, (*around, (0, 0)), constant_values=77)  # what lies under the mask is not looked at
    mask = np.pad(np.zeros((192, 160), dtype=np.uint8), around, constant_values=255)
    expected = theirs(
        pipeline,
        drawer,
        image=Image.fromarray(image),
        mask_image=Image.fromarray(mask),
        latents=drawer.network.noise(7, SIZE),
    )
    assert_equal(ours(drawer, margins, {"image": inner}), expected)


@pytest.mark.parametrize(
    ("size", "top", "left"), [(SIZE, 16, 0), (Size(512, 256), 16, 0), (Size(256, 512), 0, 16)], ids=str
)
def test_editing_with_a_second_reference_beside_or_below_the_first(
    opened: Callable[[str], Drawer], monkeypatch: pytest.MonkeyPatch, size: Size, top: int, left: int
) -> None:
    """The stock pipeline reads one; it is given the tokens that it makes of a second, in places of their own."""
    drawer = opened("kontext")
    pipeline = stock(FluxKontextPipeline, drawer)
    first, second = picture(1), picture(2, size)
    one_picture = pipeline.prepare_latents

    def two_pictures(image: Tensor, *rest: object) -> tuple[Tensor, ...]:
        ratio = size.width / size.height
        _, width, height = min((abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        step = drawer.checkpoint.token_side
        scaled = pixels_of.to_image(second).resize((width // step * step, height // step * step), pixels_of.SCALED)
        latents, tokens, places, first_places = one_picture(image, *rest)
        _, more, _, more_places = one_picture(pipeline.image_processor.preprocess(scaled), *rest[:-2], None, None)
        more_places[..., 1] += top
        more_places[..., 2] += left
        return latents, torch.cat([tokens, more], dim=1), places, torch.cat([first_places, more_places])

    monkeypatch.setattr(pipeline, "prepare_latents", two_pictures)
    expected = theirs(pipeline, drawer, image=pixels_of.to_image(first), max_area=SIZE.area)
    pictures = {"input_image": first, "input_image_2": second}
    assert_equal(ours(drawer, Edit(), pictures), expected)
    assert np.abs(ours(drawer, Edit(), {"input_image": first}) - expected).max() > 1e-3


def test_following_a_control_picture(opened: Callable[[str], Drawer]) -> None:
    drawer = opened("control")
    pipeline = stock(FluxControlPipeline, drawer)
    latents = clean(pipeline, PICTURE)
    packed = pipeline._pack_latents(latents, 1, *latents.shape[1:])
    expected = theirs(pipeline, drawer, control_image=packed)
    assert_equal(ours(drawer, Control(kind="depth"), {"preprocessed_image": PICTURE}), expected)


@pytest.fixture(scope="module")
def with_redux(opened: Callable[[str], Drawer], tmp_path_factory: pytest.TempPathFactory) -> Drawer:
    """The plain weights with a Redux beside them."""
    redux = build_redux(tmp_path_factory.mktemp("redux") / "tiny-redux")
    return open_drawer(find(Composed(base=str(opened("plain").checkpoint.path), redux=str(redux))), CPU)


def test_a_picture_in_the_likeness_of_another(with_redux: Drawer) -> None:
    drawer = with_redux
    pipeline = stock(FluxPipeline, drawer)
    prior = FluxPriorReduxPipeline.from_pretrained(
        drawer.checkpoint.beside.redux,
        feature_extractor=SiglipImageProcessorPil.from_pretrained(drawer.checkpoint.beside.redux / "feature_extractor"),
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer_2=pipeline.tokenizer_2,
    )
    words, pooled, _ = pipeline.encode_prompt("a red apple", None, max_sequence_length=drawer.checkpoint.text_length)
    seen = prior(pixels_of.to_image(PICTURE), prompt_embeds=words, pooled_prompt_embeds=pooled)
    expected = pipeline(
        prompt_embeds=seen.prompt_embeds,
        pooled_prompt_embeds=seen.pooled_prompt_embeds,
        height=SIZE.height,
        width=SIZE.width,
        num_inference_steps=4,
        guidance_scale=3.5,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="latent",
    ).images
    assert_equal(ours(drawer, TextToImage(), {"image_prompt": PICTURE}), expected.numpy())


def test_likeness_scales_what_is_taken_of_a_picture(with_redux: Drawer) -> None:
    prompt = {"image_prompt": PICTURE}
    none, some, all_of_it, unasked = (
        ours(with_redux, TextToImage(likeness=likeness), pictures)
        for likeness, pictures in ((0.0, prompt), (0.5, prompt), (1.0, prompt), (1.0, {}))
    )
    assert (none == unasked).all()
    assert len({one.tobytes() for one in (none, some, all_of_it)}) == 3


def test_a_picture_in_the_likeness_of_another_is_drawn_alone_and_taken_up_again(with_redux: Drawer) -> None:
    drawer, pictures = with_redux, {"image_prompt": PICTURE}
    wanted = wish(TextToImage(likeness=0.5), pictures)
    with torch.inference_mode():
        start, plain = begin(drawer, wanted, pictures), begin(drawer, wish(TextToImage(), {}), {})
        assert drawer.company_of(start) == ALONE
        assert start.shape != plain.shape
        saved = drawer.save(start.moved(drawer.velocities([start])[0]))
        assert saved is not None
        resumed = drawer.resume("a", wanted, 0, saved, pictures=pictures)
        assert end(drawer, resumed).latents.equal(end(drawer, start).latents)


def test_a_redux_is_part_of_the_fingerprint_and_of_what_is_told(
    opened: Callable[[str], Drawer], with_redux: Drawer
) -> None:
    assert with_redux.fingerprint != opened("plain").fingerprint
    assert "image prompts by tiny-redux" in with_redux.checkpoint.describe()


def test_a_folder_that_is_no_redux_is_refused(opened: Callable[[str], Drawer]) -> None:
    base = str(opened("plain").checkpoint.path)
    with pytest.raises(CheckpointRefused, match="as redux name a folder of a FluxPriorReduxPipeline"):
        find(Composed(base=base, redux=base))


@pytest.mark.parametrize("size", [SIZE, Size(256, 192)])
def test_depths_are_those_of_the_stock_network(opened: Callable[[str], Drawer], tmp_path: Path, size: Size) -> None:
    folder = build_depth(tmp_path / "tiny-depth")
    drawer = open_drawer(find(Composed(base=str(opened("control").checkpoint.path), depth=str(folder))), CPU)
    assert "depths by tiny-depth" in drawer.checkpoint.describe()
    seen = drawer.network._parts.depth.depths(picture(1, size))
    prepared = DPTImageProcessorPil.from_pretrained(folder)(pixels_of.to_image(picture(1, size)), return_tensors="pt")
    with torch.no_grad():
        near = DPTForDepthEstimation.from_pretrained(folder)(**prepared).predicted_depth
        large = torch.nn.functional.interpolate(near[:, None], (size.height, size.width), mode="bicubic")[0, 0]
    expected = ((large - large.min()) / (large.max() - large.min()) * 255).numpy()
    levels = np.frombuffer(seen.data, dtype=np.uint8).reshape(size.height, size.width, 3)
    assert np.abs(levels[..., 0] - expected).max() < 1
    control = {"control_image": picture(1)}
    assert (
        ours(drawer, Control(kind="depth"), control)
        == ours(drawer, Control(kind="depth"), {"preprocessed_image": drawer.network._parts.depth.depths(picture(1))})
    ).all()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [Size(512, 512), Size(1024, 384), Size(96, 320)])
def test_pictures_are_prepared_as_the_stock_processor_prepares_them(size: Size, keep: bool) -> None:
    stock_one = DPTImageProcessorPil(
        size={"height": 70, "width": 70}, keep_aspect_ratio=keep, ensure_multiple_of=14, resample=3
    )
    expected = stock_one(pixels_of.to_image(picture(1, size)), return_tensors="np").pixel_values
    described = {name: getattr(stock_one, name) for name in ("image_mean", "image_std")}
    described |= {"size": {"height": 70, "width": 70}, "keep_aspect_ratio": keep, "ensure_multiple_of": 14}
    prepared = msgspec.convert(described, Preparation).prepared(picture(1, size))
    np.testing.assert_allclose(prepared.numpy(), expected, atol=1e-5)


def test_a_folder_that_sees_no_depth_is_refused(opened: Callable[[str], Drawer], tmp_path: Path) -> None:
    base, folder = str(opened("control").checkpoint.path), build_depth(tmp_path / "tiny-depth")
    (folder / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
    with pytest.raises(CheckpointRefused, match="holds no network that sees depth"):
        find(Composed(base=base, depth=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointMissing, match=r"config\.json missing"):
        find(Composed(base=base, depth=str(folder)))


def test_what_weights_do_not_read_is_said_before_anybody_asks(
    opened: Callable[[str], Drawer], with_redux: Drawer, tmp_path: Path
) -> None:
    depth, canny, krea = (MODELS[name] for name in ("flux-pro-1.0-depth", "flux-pro-1.0-canny", "flux-krea-dev"))
    control = opened("control").checkpoint
    (line,) = control.does_otherwise(depth)
    assert line.startswith("Without a network that sees depth")
    assert not control.does_otherwise(canny)
    seeing = find(Composed(base=str(control.path), depth=str(build_depth(tmp_path / "tiny-depth"))))
    assert not seeing.does_otherwise(depth)
    (line,) = opened("plain").checkpoint.does_otherwise(krea)
    assert line.startswith("Without a Redux folder")
    assert not with_redux.checkpoint.does_otherwise(krea)
    assert with_redux.checkpoint.does_otherwise(depth) == [depth.plainly]
