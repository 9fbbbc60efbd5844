"""mini, which was made for words only, draws over pictures: what comes out follows what went in."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinds import begin, end, wish
from PIL import Image, ImageDraw
from tiny import CPU

from fluxserve.catalogue import Size
from fluxserve.catalogue.recipes import Edit, Fill, ImageToImage, Recipe
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Finished, Pixels
from fluxserve.engine.checkpoints import find
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.means import USUAL
from fluxserve.settings import MINI

SIZE = Size(512, 512)


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return open_drawer(find(MINI), CPU)


def disc(colour: str, size: Size = SIZE) -> Pixels:
    """On white, in the middle."""
    image = Image.new("RGB", (size.width, size.height), "white")
    ImageDraw.Draw(image).circle((size.width / 2, size.height / 2), min(size.width, size.height) / 3, fill=colour)
    return pixels_of.from_image(image)


def box(*sides: int) -> Pixels:
    """A mask that is white inside left, top, right and bottom."""
    image = Image.new("RGB", (SIZE.width, SIZE.height))
    ImageDraw.Draw(image).rectangle(sides, fill="white")
    return pixels_of.from_image(image)


def drawn(drawer: Drawer, recipe: Recipe, pictures: Mapping[str, Pixels], size: Size = SIZE) -> Finished:
    with torch.inference_mode():
        return drawer.finish(end(drawer, begin(drawer, wish(recipe, pictures, size=size), pictures)), USUAL)


def rows(pixels: Pixels) -> np.ndarray:
    levels = np.frombuffer(pixels.data, dtype=np.uint8).reshape(pixels.size.height, pixels.size.width, 3)
    return levels.astype(int)


@pytest.mark.parametrize(("recipe", "name"), [(ImageToImage(strength=0.5), "image"), (Edit(), "input_image")])
def test_other_pictures_make_other_pictures(drawer: Drawer, recipe: Recipe, name: str) -> None:
    red, blue = (drawn(drawer, recipe, {name: disc(colour)}).pixels for colour in ("red", "blue"))
    assert np.abs(rows(red) - rows(blue)).mean() > 2


@pytest.mark.parametrize("size", [SIZE, Size(400, 300), Size(768, 320), Size(1440, 256)])
def test_a_picture_over_which_nothing_is_drawn_comes_out_in_its_place(drawer: Drawer, size: Size) -> None:
    picture = disc("red", size)
    finished = drawn(drawer, ImageToImage(strength=0.0), {"image": picture}, size)
    assert finished.pixels.size == size
    assert np.abs(rows(finished.pixels) - rows(picture)).mean() < 16


def test_a_picture_of_another_shape_is_fitted_to_the_size_asked_for(drawer: Drawer) -> None:
    wide = Size(768, 512)
    assert drawn(drawer, Edit(), {"input_image": disc("red")}, wide).pixels.size == wide


def test_what_is_not_masked_is_kept_to_the_bit(drawer: Drawer) -> None:
    picture, mask = disc("red"), box(300, 100, 420, 230)
    filled = drawn(drawer, Fill(), {"image": picture, "mask": mask}).pixels
    is_masked = rows(mask).any(axis=2)
    assert (rows(filled)[~is_masked] == rows(picture)[~is_masked]).all()
    assert (rows(filled)[is_masked] != rows(picture)[is_masked]).mean() > 0.5


def test_what_lies_outside_the_mask_decides_what_is_drawn_inside(drawer: Drawer) -> None:
    mask = box(128, 128, 383, 383)
    red, blue = (drawn(drawer, Fill(), {"image": disc(one), "mask": mask}).pixels for one in ("red", "blue"))
    assert (rows(red)[130:380, 130:380] != rows(blue)[130:380, 130:380]).any()


def test_margins_are_drawn_around_a_picture_that_is_kept_to_the_bit(drawer: Drawer) -> None:
    picture = disc("red")
    recipe = Fill(top=64, left=128, right=100)
    wider = drawn(drawer, recipe, {"image": picture}, Size(740, 576)).pixels
    assert (rows(wider)[64:, 128 : 128 + 512] == rows(picture)).all()
    assert len(np.unique(rows(wider)[:64], axis=0)) > 1


def test_the_guidance_that_fill_and_control_are_usually_asked_with_is_more_than_these_weights_learnt(
    drawer: Drawer,
) -> None:
    pictures = {"image": disc("red"), "mask": box(256, 0, 511, 511)}
    with torch.inference_mode():
        usual, much = (
            end(drawer, begin(drawer, replace(wish(Fill(), pictures, size=SIZE), guidance=guidance), pictures))
            for guidance in (3.5, 60.0)
        )
    assert much.latents.equal(usual.latents)


def test_half_a_mask_at_grey_is_a_share_of_both(drawer: Drawer) -> None:
    picture = disc("red")
    grey = Pixels(size=SIZE, data=bytes([64]) * (3 * SIZE.area))
    filled = drawn(drawer, Fill(), {"image": picture, "mask": grey}).pixels
    assert np.abs(rows(filled) - rows(picture)).max() <= 64
