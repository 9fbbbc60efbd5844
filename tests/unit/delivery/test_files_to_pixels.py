"""Files of callers to pixels: every kind that may come, and what must not get through."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from fluxserve.delivery.decoding import Decoded, File, Unreadable
from fluxserve.delivery.pictures import decode
from hostile_pictures import chunk
from sample_pictures import file_of, picture, text_of

BLUE, RED, WHITE, BLACK = (0, 0, 255), (255, 0, 0), (255, 255, 255), (0, 0, 0)


def decoded(file: bytes, *, max_area: int | None = None, with_mask: bool = False) -> Decoded:
    """What a file comes to."""
    return decode(text_of(file).encode(), max_area=max_area, with_mask=with_mask)


def pixels(file: File) -> Image.Image:
    """The picture, which says of itself what it is and nothing else."""
    image = Image.open(BytesIO(file.png))
    image.load()
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (file.width, file.height))
    assert image.info == {}
    return image


def refused(file: bytes) -> str:
    """Why a file is not taken."""
    with pytest.raises(Unreadable) as caught:
        decoded(file)
    return str(caught.value)


def png(width: int, height: int, colour_type: int, depth: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG of these packed rows, with `more` chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_each_kind_of_file_is_read(kind: str, options: dict[str, object]) -> None:
    image = pixels(decoded(file_of(picture(80, 64), kind, **options)).picture)
    assert image.size == (80, 64)
    assert near(image, (4, 4), BLUE)
    assert near(image, (76, 60), RED)


def test_a_jpeg_that_goes_over_its_picture_again_and_again_is_refused_before_that() -> None:
    file = file_of(picture(640, 480), "JPEG", progressive=True)
    last = file[file.rindex(b"\xff\xda") : -2]
    assert pixels(decoded(file).picture).size == (640, 480)
    assert "too many scans" in refused(file[:-2] + 200 * last + file[-2:])


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    """Whether the pixel has about this colour."""
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return all(abs(one - other) < 12 for one, other in zip(found, colour, strict=True))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_each_mode_becomes_plain_rgb(mode: str) -> None:
    image = pixels(decoded(file_of(picture(mode=mode), "JPEG" if mode == "CMYK" else "PNG")).picture)
    assert near(image, (60, 60), RED) or mode in ("L", "1", "LA")


def test_base64_may_come_with_a_data_uri_without_padding_and_with_line_breaks() -> None:
    text = text_of(file_of(picture()))
    for form in (
        f"data:image/png;base64,{text}",
        f"DATA:;base64,{text}",
        text.rstrip("="),
        "\r\n".join((text[:70], text[70:])),
    ):
        assert decode(form.encode(), max_area=None, with_mask=False) == decoded(file_of(picture()))


@pytest.mark.parametrize(
    "text", ["", "a", "?", "data:image/png,abc", "data:image/png;base64", "aGk=aGk=", "aG-k", "aGk"]
)
def test_what_is_no_picture_in_base64_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        decode(text.encode(), max_area=None, with_mask=False)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "ICO", "PPM"])
def test_other_kinds_of_files_are_refused(kind: str) -> None:
    assert refused(file_of(picture(), kind)) == "This is no PNG, JPEG or WebP, or it is damaged"


def test_drawings_and_programs_are_refused() -> None:
    for file in (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe",
        b"\x7fELF",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8X",
    ):
        refused(file)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked() -> None:
    assert "50000x50000" in refused(png(50_000, 50_000, 2, 8, b""))
    assert "8193x64" in refused(png(8193, 64, 2, 8, b""))
    assert "5000x4001" in refused(png(5000, 4001, 2, 8, b""))


def test_a_picture_that_is_too_small_is_refused() -> None:
    assert "at least 64" in refused(file_of(picture(64, 63)))


def test_a_file_over_twenty_megabytes_is_refused() -> None:
    assert "20 MB" in refused(file_of(picture()).ljust(20_000_001, b"\0"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_off_is_refused(kind: str) -> None:
    whole = file_of(Image.effect_noise((256, 256), 80).convert("RGB"), kind)
    for part in (0.2, 0.5, 0.9):
        refused(whole[: int(len(whole) * part)])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_moving_picture_is_refused(kind: str) -> None:
    moving = file_of(picture(), kind, save_all=True, append_images=[picture(colour="green")], duration=100)
    assert refused(moving) == "A picture should not move"


def test_of_a_photograph_with_another_behind_it_the_first_is_taken() -> None:
    both = file_of(picture(), "MPO", save_all=True, append_images=[picture(colour="green")])
    assert near(pixels(decoded(both).picture), (60, 60), RED)


def test_nothing_but_pixels_gets_through() -> None:
    exif, info = Image.Exif(), PngInfo()
    exif[0x010E] = "the name of somebody"
    info.add_text("comment", "<script>")
    plain = decoded(file_of(picture()))
    assert decoded(file_of(picture(), exif=exif, pnginfo=info)) == plain
    assert decoded(file_of(picture()) + b"<html><script>alert(1)</script>") == plain
    jpeg = file_of(picture(), "JPEG")
    both = jpeg[:2] + b"\xff\xfe\x00\x1a<html><script>alert(1)//" + jpeg[2:] + b"<!-- </html>"
    assert b"html" not in decoded(both).picture.png


def test_a_photograph_is_turned_as_the_camera_was_held() -> None:
    upright = picture(96, 64)
    for orientation, back in {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }.items():  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = orientation
        shown = pixels(decoded(file_of(upright.transpose(back), exif=exif)).picture)
        assert shown.tobytes() == upright.tobytes()


def test_sixteen_bits_become_eight() -> None:
    grey = png(64, 64, 0, 16, b"".join(b"\0" + struct.pack(">H", 0x8123) * 64 for _ in range(64)))
    assert pixels(decoded(grey).picture).getpixel((5, 5)) == (0x81, 0x81, 0x81)
    colours = png(64, 64, 2, 16, b"".join(b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x0100) * 64 for _ in range(64)))
    assert pixels(decoded(colours).picture).getpixel((5, 5)) == (255, 128, 1)


def test_colours_of_another_space_are_brought_into_srgb() -> None:
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decoded(file_of(picture(), icc_profile=lab_like)) == decoded(file_of(picture()))
    assert decoded(file_of(picture(), icc_profile=b"nonsense")) == decoded(file_of(picture()))


def see_through() -> Image.Image:
    """Red, and nothing in the upper left quarter."""
    image = picture(colour="red", mode="RGBA")
    image.paste((0, 0, 255, 0), (0, 0, 32, 32))
    return image


def test_white_shines_through_what_has_no_mask() -> None:
    found = decoded(file_of(see_through()))
    assert found.mask is None
    assert pixels(found.picture).getpixel((5, 5)) == WHITE
    assert pixels(found.picture).getpixel((60, 60)) == RED
    palette = see_through().quantize(8)
    assert pixels(decoded(file_of(palette)).picture).getpixel((5, 5)) == WHITE
    clear = png(
        64, 64, 2, 8, b"".join(b"\0" + bytes((1, 2, 3)) * 64 for _ in range(64)), chunk(b"tRNS", b"\0\1\0\2\0\3")
    )
    assert pixels(decoded(clear).picture).getpixel((5, 5)) == WHITE


def test_an_alpha_channel_is_a_mask_where_one_is_wanted() -> None:
    found = decoded(file_of(see_through()), with_mask=True)
    assert found.mask is not None
    assert pixels(found.mask).getpixel((5, 5)) == WHITE
    assert pixels(found.mask).getpixel((60, 60)) == BLACK
    assert pixels(found.picture).getpixel((5, 5)) == BLUE
    assert decoded(file_of(picture(mode="RGBA")), with_mask=True).mask is None


def test_a_picture_over_the_most_is_shrunk_and_keeps_its_shape() -> None:
    found = decoded(file_of(picture(400, 200)), max_area=20_000).picture
    assert (found.width, found.height) == (200, 100)
    assert decoded(file_of(picture(400, 200)), max_area=80_000).picture.width == 400
