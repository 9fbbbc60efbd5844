"""What is drawn over: laid out in the size asked for, taken to the drawn size and back, and kept to the bit."""

import pytest
from PIL import Image, ImageChops, ImageStat

from fluxserve.catalogue import Size
from fluxserve.catalogue.recipes import Fill
from fluxserve.engine import canvas
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels


def plain(colour: str, size: Size) -> Pixels:
    return pixels_of.from_image(Image.new("RGB", (size.width, size.height), colour))


def slope(size: Size) -> Pixels:
    """Darker to the left, redder to the top: neither end is like the other."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L").rotate(180)
    sides = (size.width, size.height)
    return pixels_of.from_image(
        Image.merge("RGB", [down.resize(sides), across.resize(sides), Image.new("L", sides, 128)])
    )


def test_margins_are_white_in_the_mask_and_continue_the_edges_of_the_picture() -> None:
    picture = slope(Size(40, 30))
    laid_out = canvas.lay_out(Fill(top=5, left=10), {"image": picture}, Size(50, 35))
    mask, image = pixels_of.to_image(laid_out.mask), pixels_of.to_image(laid_out.picture)
    assert mask.convert("L").point(lambda level: 255 - level).getbbox() == (10, 5, 50, 35)
    assert image.crop((10, 5, 50, 35)).tobytes() == picture.data
    assert image.crop((0, 5, 1, 35)).tobytes() == image.crop((10, 5, 11, 35)).tobytes()
    assert image.crop((10, 0, 50, 1)).tobytes() == image.crop((10, 5, 50, 6)).tobytes()


def test_without_margins_and_a_mask_all_is_drawn_anew() -> None:
    laid_out = canvas.lay_out(Fill(), {"image": plain("red", Size(8, 8))}, Size(8, 8))
    assert laid_out.mask == plain("white", Size(8, 8))


def test_a_mask_of_another_size_is_taken_to_the_pictures() -> None:
    laid_out = canvas.lay_out(
        Fill(right=8), {"image": plain("red", Size(8, 8)), "mask": plain("black", Size(4, 4))}, Size(16, 8)
    )
    assert pixels_of.to_image(laid_out.mask).convert("L").getbbox() == (8, 0, 16, 8)


def test_only_what_is_white_is_taken_of_what_was_drawn() -> None:
    pictures = {"image": plain("red", Size(8, 8))}
    laid_out = canvas.lay_out(Fill(left=8), pictures, Size(16, 8))
    kept = pixels_of.to_image(laid_out.kept_in(plain("blue", Size(16, 8))))
    assert kept.crop((0, 0, 8, 8)).tobytes() == plain("blue", Size(8, 8)).data
    assert kept.crop((8, 0, 16, 8)).tobytes() == plain("red", Size(8, 8)).data


@pytest.mark.parametrize("asked", [Size(512, 512), Size(500, 300), Size(1440, 256), Size(256, 1440), Size(600, 500)])
@pytest.mark.parametrize("drawn", [Size(512, 512), Size(768, 512), Size(512, 1024)])
def test_what_is_taken_to_the_drawn_size_comes_back_in_its_place(asked: Size, drawn: Size) -> None:
    picture = slope(asked)
    taken = pixels_of.unfit(picture, drawn)
    assert taken.size == drawn
    back = pixels_of.fit(taken, asked)
    # Where the drawn picture is much less wide or high than the one asked for, the ends are continued, not kept.
    reach = min(asked.width, asked.height) // 8
    middle = (asked.width // 2 - reach, asked.height // 2 - reach, asked.width // 2 + reach, asked.height // 2 + reach)
    difference = ImageChops.difference(pixels_of.to_image(back).crop(middle), pixels_of.to_image(picture).crop(middle))
    assert max(ImageStat.Stat(difference).mean) < 2.5
