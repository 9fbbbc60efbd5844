"""FLUX.2: our loop draws what diffusers' own pipelines draw, and the same bits however it is scheduled."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from torch import Tensor

from fluxserve.catalogue import MODELS, Generation, InputPicture, Size
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, Recipe, TextToImage
from fluxserve.engine import forward
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Finished, Pixels
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.forward import ALONE, Company
from fluxserve.engine.means import USUAL, Means
from fluxserve.engine.trajectory import Trajectory, generator_seed
from fluxserve.settings import Settings

NAMES = ("dev", "klein", "klein-base")
SIDES = (128, 96)
SIZE = Size(*SIDES)
NOTHING_SAVED: Mapping[str, bytes] = {}
Drawers = dict[str, Drawer]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A generation and its pictures."""

    generation: Generation
    pictures: Mapping[str, Pixels] = field(default_factory=dict)


def wish(*shown: Pixels, seed: int = 7, steps: int = 4, guidance: float = 3.5, size: Size = SIZE) -> Wish:
    names = ("input_image", *(f"input_image_{number}" for number in range(2, 10)))
    pictures = dict(zip(names, shown, strict=False))
    wanted = Generation(
        model="flux-dev",
        prompt="a red apple",
        size=size,
        seed=seed,
        steps=steps,
        guidance=guidance,
        output_format="png",
        recipe=Edit(),
        pictures=tuple(
            InputPicture(name=name, size=one.size, sha256=pixels_of.sha256(one)) for name, one in pictures.items()
        ),
    )
    return Wish(generation=wanted, pictures=pictures)


def with_recipe(recipe: Recipe, **pictures: Pixels) -> Wish:
    named = tuple(
        InputPicture(name=name, size=one.size, sha256=pixels_of.sha256(one)) for name, one in pictures.items()
    )
    return Wish(generation=replace(wish().generation, recipe=recipe, pictures=named), pictures=pictures)


def picture(width: int, height: int, seed: int) -> Pixels:
    return Pixels(size=Size(width, height), data=Random(seed).randbytes(width * height * 3))


def start(drawer: Drawer, wanted: Wish, ref: str = "a") -> Trajectory:
    return drawer.start(ref, wanted.generation, 0, pictures=wanted.pictures)


def draw(drawer: Drawer, wanted: Wish) -> Trajectory:
    with torch.inference_mode():
        trajectory = start(drawer, wanted)
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
    return trajectory


@cache
def stock(folder: Path) -> Flux2Pipeline | Flux2KleinPipeline:
    """The stock pipeline over the folder as it lies there."""
    kind = Flux2Pipeline if folder.name == "dev" else Flux2KleinPipeline
    pipeline = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_stock(drawer: Drawer, wanted: Wish) -> tuple[Tensor, np.ndarray]:
    """The last latents, and the picture from 0 to 255."""
    steps: list[Tensor] = []

    def keep(_pipeline: object, _step: int, _time: object, values: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(values["latents"])
        return values

    checkpoint, generation = drawer.checkpoint, wanted.generation
    drawn = stock(checkpoint.path)(
        image=[pixels_of.to_image(one) for one in wanted.pictures.values()] or None,
        prompt=generation.prompt,
        height=generation.size.height,
        width=generation.size.width,
        num_inference_steps=generation.steps,
        guidance_scale=generation.guidance if checkpoint.guidance_embeds else checkpoint.cfg_scale,
        generator=torch.Generator("cpu").manual_seed(generator_seed(generation.seed)),
        max_sequence_length=checkpoint.text_length,
        callback_on_step_end=keep,
        output_type="np",
    ).images[0]
    return steps[-1], (drawn * 255).round().astype(int)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wanted",
    [
        wish(),
        wish(seed=2**32, steps=2, size=Size(64, 160)),
        wish(steps=12, guidance=2.0),
        wish(picture(100, 70, 1)),
        wish(picture(100, 70, 1), picture(64, 96, 2)),
    ],
    ids=["text", "another shape", "more steps", "one reference", "two references"],
)
def test_latents_and_pixels_are_the_pipelines(flux2_drawers: Drawers, name: str, wanted: Wish) -> None:
    drawer = flux2_drawers[name]
    ours = draw(drawer, wanted)
    latents, theirs = draw_stock(drawer, wanted)
    assert latents.abs().max() > 0.5
    np.testing.assert_allclose(ours.latents.numpy(), latents.numpy(), atol=1e-4, rtol=0)
    with torch.inference_mode():
        pixels = drawer.finish(ours, USUAL).pixels
    levels = np.frombuffer(pixels.data, dtype=np.uint8).reshape(theirs.shape).astype(int)
    assert np.abs(levels - theirs).max() <= 1
    assert (levels != theirs).mean() < 0.001


def test_a_reference_its_place_and_guidance_change_what_is_drawn(flux2_drawers: Drawers) -> None:
    one, other = picture(64, 64, 1), picture(64, 64, 2)
    wishes = (wish(), wish(one), wish(other), wish(one, other), wish(other, one), wish(one, guidance=2.0))
    drawn = {draw(flux2_drawers["dev"], wanted).latents.numpy().tobytes() for wanted in wishes}
    assert len(drawn) == len(wishes)


def test_pictures_beyond_those_that_the_weights_read_are_left_out_and_the_result_says_so(
    flux2_drawers: Drawers,
) -> None:
    shown = [picture(32, 32, seed) for seed in range(5)]
    drawer = flux2_drawers["klein"]
    some, more = (draw(drawer, wish(*pictures, steps=1)) for pictures in (shown[:4], shown))
    assert some.latents.equal(more.latents)
    with torch.inference_mode():
        assert drawer.finish(some, USUAL).warnings == ()
        assert drawer.finish(more, USUAL).warnings == ("klein reads 4 pictures: the others were left out",)


def test_what_is_drawn_over_is_kept_where_the_mask_is_black_and_begun_from_where_it_is_not_filled(
    flux2_drawers: Drawers,
) -> None:
    drawer, image = flux2_drawers["klein"], picture(*SIDES, 1)
    half = Pixels(size=SIZE, data=bytes([0, 255][row >= SIZE.height // 2] for row in range(SIZE.height)
                                        for _ in range(3 * SIZE.width)))  # fmt: skip
    filled = draw(drawer, with_recipe(Fill(), image=image, mask=half))
    with torch.inference_mode():
        pixels = drawer.finish(filled, USUAL).pixels.data
    upper = len(pixels) // 2
    assert pixels[:upper] == image.data[:upper]
    assert pixels[upper:] != image.data[upper:]
    little, much = (draw(drawer, with_recipe(ImageToImage(strength=one), image=image)) for one in (0.3, 1.0))
    assert (little.steps, much.steps) == (2, 4)
    assert not little.latents.equal(much.latents)


def test_what_weights_without_guidance_or_control_cannot_do_is_told(flux2_drawers: Drawers) -> None:
    seen = picture(32, 32, 1)
    wishes = {
        "interval": with_recipe(TextToImage(interval=3.0)),
        "took the picture as a reference": with_recipe(Control(kind="canny"), control_image=seen),
    }
    with torch.inference_mode():
        for word, wanted in wishes.items():
            (warning,) = flux2_drawers["klein"].network.look(wanted.generation, wanted.pictures, SIZE, USUAL).warnings
            assert word in warning
        wanted = with_recipe(TextToImage(), image_prompt=seen)
        looked = flux2_drawers["dev"].network.look(wanted.generation, wanted.pictures, SIZE, USUAL)
    assert looked.tokens is not None
    assert looked.warnings == ()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_in_one_pass_that_join_late_or_have_references_end_as_they_do_alone(
    flux2_drawers: Drawers, name: str
) -> None:
    shared = replace(flux2_drawers[name], company={SIZE: Company(most=4)})
    rows = shared.checkpoint.rows_per_picture
    wishes = [wish(), wish(seed=8, steps=6, guidance=2.0), wish(seed=9, steps=2), wish(seed=10, steps=5)]
    with torch.inference_mode():
        holds = forward.holds(shared.network, SIZE, Company(most=4), per_picture=rows, seconds=0)
        going = {str(number): start(shared, one, str(number)) for number, one in enumerate(wishes[:2])}
        waiting = {str(number): start(shared, one, str(number)) for number, one in enumerate(wishes[2:], 2)}
        done: dict[str, Tensor] = {}
        while going:
            together = list(going.values())
            for trajectory, velocity in zip(together, shared.velocities(together), strict=True):
                going[trajectory.ref] = trajectory.moved(velocity)
            done |= {ref: one.latents for ref, one in going.items() if one.is_done}
            going = {ref: one for ref, one in (going | waiting).items() if not one.is_done}
            waiting = {}
    assert holds
    assert all(done[str(number)].equal(draw(shared, one).latents) for number, one in enumerate(wishes))
    assert shared.company_of(start(shared, wish(picture(32, 32, 1)))) == ALONE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shown", [(), (picture(48, 64, 1),)], ids=["text", "one reference"])
def test_latents_taken_up_after_any_step_are_equal_at_the_end(
    flux2_drawers: Drawers, name: str, shown: tuple[Pixels, ...]
) -> None:
    drawer, wanted = flux2_drawers[name], wish(*shown)
    end = draw(drawer, wanted).latents
    with torch.inference_mode():
        trajectory = start(drawer, wanted)
        for _ in range(3):
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
            saved = drawer.save(trajectory)
            assert saved is not None
            resumed = drawer.resume("a", wanted.generation, 0, saved, pictures=wanted.pictures)
            while not resumed.is_done:
                resumed = resumed.moved(drawer.velocities([resumed])[0])
            assert resumed.latents.equal(end)


def test_only_the_part_of_the_text_encoder_that_is_read_stays_in_memory(flux2_drawers: Drawers) -> None:
    reader = flux2_drawers["dev"].network._parts.text_encoder  # type: ignore[attr-defined]
    assert type(reader).__name__ == "MistralModel"
    assert not any("vision" in name or "lm_head" in name for name, _ in reader.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_previews_show_where_it_leads(flux2_drawers: Drawers, name: str) -> None:
    drawer = flux2_drawers[name]
    with torch.inference_mode():
        trajectory = start(drawer, wish())
        preview = drawer.preview(trajectory, drawer.velocities([trajectory])[0])
    assert trajectory.latents.shape[2] == 128
    assert preview.size.ratio == pytest.approx(SIZE.ratio, rel=0.05)
    assert len(set(preview.data)) > 10


@pytest.mark.parametrize("means", [Means(tiled=True), Means(exact=True)], ids=str)
def test_other_means_draw_it_too(flux2_drawers: Drawers, means: Means) -> None:
    drawer, wanted = flux2_drawers["klein"], wish(picture(64, 64, 1), steps=1, size=Size(576, 64))
    with torch.inference_mode():
        trajectory = drawer.start("a", wanted.generation, 0, means, pictures=wanted.pictures)
        trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
        finished, usual = drawer.finish(trajectory, means), drawer.finish(trajectory, USUAL)
    assert finished.facts["drawn_with"] == ", ".join(means.words)
    assert (finished.pixels == usual.pixels) is means.exact


def test_an_engine_draws_in_company_from_a_waypoint_and_with_references_what_it_draws_alone(
    flux2_drawers: Drawers,
) -> None:
    shared = replace(flux2_drawers["klein"], company={SIZE: Company(most=2)})
    settings = Settings(models=dict.fromkeys(MODELS, str(shared.checkpoint.path)), device="cpu", token_budget=1)
    engine = DiffusionEngine(settings, lambda _checkpoint, _runtime: shared)
    engine.warm()
    wishes = {"text": wish(), "seen": wish(picture(64, 48, 1)), "other": wish(seed=9, steps=3)}
    alone = {ref: drawn(engine, {ref: wanted})[ref].pixels for ref, wanted in wishes.items()}
    engine.admit("seen", wishes["seen"].generation, pictures=wishes["seen"].pictures)
    while (saved := engine.save("seen")) is None:
        engine.step()
    engine.discard("seen")
    together = drawn(engine, wishes, {"seen": saved})
    assert {ref: finished.pixels for ref, finished in together.items()} == alone
    assert len({pixels.data for pixels in alone.values()}) == len(wishes)


def drawn(
    engine: DiffusionEngine, wishes: Mapping[str, Wish], saved: Mapping[str, bytes] = NOTHING_SAVED
) -> dict[str, Finished]:
    for ref, wanted in wishes.items():
        engine.admit(ref, wanted.generation, saved.get(ref), pictures=wanted.pictures)
    finished: dict[str, Finished] = {}
    while engine.active:
        finished |= {event.ref: event for event in engine.step() if isinstance(event, Finished)}
    return finished
