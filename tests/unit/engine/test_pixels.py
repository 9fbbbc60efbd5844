from io import BytesIO

import pytest
from PIL import Image, ImageChops, ImageDraw

from fluxserve.catalogue import OutputFormat, Size
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.marks import Mark

EXIF_SOFTWARE, EXIF_MODEL, EXIF_DESCRIPTION, EXIF_TIME = 0x0131, 0x0110, 0x010E, 0x0132
MARK = Mark(drawn_by="fluxserve-mini", model="flux-dev", seed=7)
FORMATS: tuple[OutputFormat, ...] = ("jpeg", "png", "webp")


def gradient(size: Size) -> Pixels:
    image = Image.linear_gradient("L").resize((size.width, size.height))
    return pixels_of.from_image(Image.merge("RGB", (image, image.transpose(Image.Transpose.ROTATE_180), image)))


def opened(file: bytes) -> Image.Image:
    return Image.open(BytesIO(file))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_has_the_format_and_the_size_asked_for(output_format: OutputFormat) -> None:
    image = opened(pixels_of.encode(gradient(Size(96, 64)), output_format, MARK))
    assert (image.format, image.size) == (output_format.upper(), (96, 64))


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_file_says_that_it_was_generated_and_by_which_weights_and_nothing_else(output_format: OutputFormat) -> None:
    image = opened(pixels_of.encode(gradient(Size(64, 64)), output_format, MARK))
    assert dict(image.getexif()) == {
        EXIF_SOFTWARE: "AI generated;txt2img;fluxserve-mini",
        EXIF_MODEL: "fluxserve-mini",
    }


def test_a_png_carries_the_same_words_as_plain_text() -> None:
    image = opened(pixels_of.encode(gradient(Size(64, 64)), "png", MARK))
    assert image.info["Software"] == "AI generated;txt2img;fluxserve-mini"


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_same_pixels_make_the_same_bytes(output_format: OutputFormat) -> None:
    files = {pixels_of.encode(gradient(Size(64, 64)), output_format, MARK) for _ in range(2)}
    assert len(files) == 1


def test_a_png_keeps_every_pixel() -> None:
    drawn = gradient(Size(64, 96))
    assert opened(pixels_of.encode(drawn, "png", MARK)).tobytes() == drawn.data


def test_a_jpeg_keeps_the_colour_of_every_pixel_apart() -> None:
    red_and_blue = Image.new("RGB", (64, 64), (255, 0, 0))
    red_and_blue.paste((0, 0, 255), (0, 0, 1, 64))
    image = opened(pixels_of.encode(pixels_of.from_image(red_and_blue), "jpeg", MARK))
    red, green, blue = image.getpixel((0, 32))  # type: ignore[misc]
    assert blue > 230
    assert red < 25
    assert green < 25


@pytest.mark.parametrize("name", ["weights-ü", "重み", "a" * 300])
@pytest.mark.parametrize("output_format", FORMATS)
def test_any_name_of_weights_can_be_written(output_format: OutputFormat, name: str) -> None:
    mark = Mark(drawn_by=name, model=name, seed=7, prompt=name)
    assert opened(pixels_of.encode(gradient(Size(64, 64)), output_format, mark)).size == (64, 64)


@pytest.mark.parametrize("size", [Size(1024, 768), Size(257, 1440), Size(3136, 1344), Size(64, 64), Size(1440, 256)])
def test_fit_makes_exactly_the_size_asked_for(size: Size) -> None:
    fitted = pixels_of.fit(gradient(Size(160, 96)), size)
    assert fitted.size == size
    assert len(fitted.data) == 3 * size.area


def test_fit_leaves_a_picture_of_the_right_size_alone() -> None:
    drawn = gradient(Size(64, 64))
    assert pixels_of.fit(drawn, Size(64, 64)) is drawn


def test_fit_cuts_a_little_evenly_on_both_sides() -> None:
    striped = Image.new("RGB", (104, 100), (0, 0, 0))
    striped.paste((255, 255, 255), (2, 0, 102, 100))
    assert set(pixels_of.fit(pixels_of.from_image(striped), Size(100, 100)).data) == {255}


def disc(side: int) -> Image.Image:
    """A flat drawing with smooth edges, the same at every size."""
    large = Image.new("RGB", (1024, 1024), (250, 210, 30))
    ImageDraw.Draw(large).ellipse((200, 150, 800, 900), fill=(20, 60, 200), outline=(10, 10, 10), width=40)
    return large.resize((side, side), Image.Resampling.BOX)


def error(one: Image.Image, other: Image.Image) -> float:
    """Mean squared difference of two pictures."""
    squares = ImageChops.difference(one, other).convert("L").histogram()
    return sum(level * level * count for level, count in enumerate(squares)) / sum(squares)


@pytest.mark.parametrize(("drawn", "asked"), [(128, 256), (128, 192), (128, 512), (240, 256)])
def test_an_enlarged_drawing_is_nearer_to_the_large_one_than_plain_enlarging_brings_it(drawn: int, asked: int) -> None:
    small, large = disc(drawn), disc(asked)
    fitted = pixels_of.to_image(pixels_of.fit(pixels_of.from_image(small), Size(asked, asked)))
    assert error(fitted, large) < 0.8 * error(small.resize((asked, asked), Image.Resampling.LANCZOS), large)


def test_enlarging_makes_no_halos() -> None:
    step = Image.new("RGB", (64, 64), (60, 60, 60))
    step.paste((180, 180, 180), (32, 0, 64, 64))
    fitted = pixels_of.to_image(pixels_of.fit(pixels_of.from_image(step), Size(256, 256)))
    assert fitted.getextrema() == ((60, 180), (60, 180), (60, 180))


def test_a_picture_that_is_made_smaller_is_not_sharpened() -> None:
    drawn = disc(256)
    fitted = pixels_of.to_image(pixels_of.fit(pixels_of.from_image(drawn), Size(160, 160)))
    assert error(fitted, drawn.resize((160, 160), Image.Resampling.LANCZOS)) == 0


@pytest.mark.parametrize("size", [Size(512, 256), Size(256, 512), Size(1344, 576), Size(576, 1344), Size(320, 256)])
def test_fit_keeps_the_whole_picture_in_the_middle_and_continues_its_edges(size: Size) -> None:
    framed = Image.new("RGB", (128, 128), (10, 200, 30))
    framed.paste((250, 0, 0), (32, 32, 96, 96))
    fitted = pixels_of.to_image(pixels_of.fit(pixels_of.from_image(framed), size))
    red = fitted.getchannel("R").point(lambda value: 255 if value > 128 else 0)
    side = min(size.width, size.height) / 2
    left, top, right, bottom = red.getbbox() or (0, 0, 0, 0)
    assert right - left == pytest.approx(side, abs=2)
    assert bottom - top == pytest.approx(side, abs=2)
    assert (left + right) / 2 == pytest.approx(size.width / 2, abs=side / 32)
    assert (top + bottom) / 2 == pytest.approx(size.height / 2, abs=side / 32)
    corners = [(0, 0), (size.width - 1, 0), (0, size.height - 1), (size.width - 1, size.height - 1)]
    assert {fitted.getpixel(corner) for corner in corners} == {(10, 200, 30)}


def test_the_digest_is_over_the_pixels_alone() -> None:
    drawn = gradient(Size(64, 64))
    other = Pixels(size=Size(64, 64), data=drawn.data[:-1] + b"\0")
    assert pixels_of.sha256(drawn) == pixels_of.sha256(gradient(Size(64, 64)))
    assert pixels_of.sha256(drawn) != pixels_of.sha256(other)
