"""What a file says of its origin: in which words, that it is read back as it was written, and what is not in it."""

from __future__ import annotations

import getpass
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builders import generation
from fluxserve import __version__
from fluxserve.catalogue import InputPicture, OutputFormat, Size
from fluxserve.engine import marks, pixels
from fluxserve.engine.marks import Mark, mark_of
from sample_pictures import file_of, picture

FORMATS: tuple[OutputFormat, ...] = ("jpeg", "png", "webp")
MARK = Mark(drawn_by="fluxserve-mini", model="flux-dev", seed=7)
AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
TOLD = {
    "CreatorTool": f"fluxserve {__version__}",
    "DigitalSourceType": AI,
    "AISystemUsed": "fluxserve-mini",
    "Model": "flux-dev",
    "Seed": "7",
    "ExifSoftware": "AI generated;txt2img;fluxserve-mini",
    "ExifModel": "fluxserve-mini",
}


def encoded(folder: Path, mark: Mark, output_format: OutputFormat = "jpeg") -> Path:
    file = folder / f"picture.{output_format}"
    file.write_bytes(pixels.encode(pixels.from_image(picture()), output_format, mark))
    return file


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_says_all_of_it_and_no_more(output_format: OutputFormat, tmp_path: Path) -> None:
    assert marks.read(encoded(tmp_path, MARK, output_format)) == TOLD


def test_a_picture_drawn_over_others_says_so_in_its_software(tmp_path: Path) -> None:
    over = InputPicture(name="image", size=Size(64, 64), sha256="00")
    mark = mark_of(replace(generation(), pictures=(over,)), "fluxserve-mini", tells_prompt=False)
    assert marks.read(encoded(tmp_path, mark))["ExifSoftware"] == "AI generated;img2img;fluxserve-mini"


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_prompt_is_told_only_where_that_is_wanted(output_format: OutputFormat, tmp_path: Path) -> None:
    asked = generation(prompt="a canary on a wire")
    told = encoded(tmp_path, mark_of(asked, "fluxserve-mini", tells_prompt=True), output_format)
    assert marks.read(told)["AIPromptInformation"] == "a canary on a wire"
    kept = encoded(tmp_path, mark_of(asked, "fluxserve-mini", tells_prompt=False), output_format)
    assert b"canary" not in kept.read_bytes()
    assert marks.read(kept) == TOLD


@given(prompt=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=200))
def test_a_prompt_is_read_back_as_it_was_asked(prompt: str) -> None:
    """But for what XML has no way to write, and line ends, which it makes equal."""
    told = marks.told_by(replace(MARK, prompt=prompt).xmp)["AIPromptInformation"]
    assert len(told) == len(prompt)
    assert all(one == "\ufffd" or one == other for one, other in zip(told, prompt, strict=True))


@pytest.mark.parametrize("character", ["&", "\U0001f34e", "\ud800", "\x00", "'", '"', "\n"])
def test_the_longest_prompt_fits_into_every_format(character: str, tmp_path: Path) -> None:
    for output_format in FORMATS:
        file = encoded(tmp_path, replace(MARK, prompt=10_000 * character), output_format)
        assert len(marks.read(file)["AIPromptInformation"]) == 10_000


@pytest.mark.parametrize("output_format", FORMATS)
def test_nothing_of_the_machine_or_its_user_is_in_a_file(output_format: OutputFormat, tmp_path: Path) -> None:
    content = encoded(tmp_path, MARK, output_format).read_bytes()
    for secret in (socket.gethostname(), getpass.getuser() if len(getpass.getuser()) > 4 else str(tmp_path)):
        assert secret.encode() not in content


def test_pictures_of_others_are_read_as_far_as_they_say_the_same(tmp_path: Path) -> None:
    """In XMP a property is an attribute or an element; entities are not expanded, and no text breaks the reading."""
    rdf = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    iptc = 'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    inner = f"<i:DigitalSourceType>{AI}</i:DigitalSourceType>"
    element = f"<rdf:RDF {rdf}><rdf:Description {iptc}>{inner}</rdf:Description></rdf:RDF>"
    bomb = f'<!DOCTYPE x [<!ENTITY a "boom">]><rdf:RDF {rdf}><rdf:Description {iptc} i:AISystemUsed="&a;"/></rdf:RDF>'
    for packet, told in ((element, {"DigitalSourceType": AI}), (bomb, {}), ("<torn", {}), ("", {})):
        file = tmp_path / "other.jpeg"
        file.write_bytes(file_of(picture(), "JPEG", xmp=packet.encode()))
        assert marks.read(file) == told


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a picture")
    with pytest.raises(OSError, match="cannot identify"):
        marks.read(file)
    Image.new("RGB", (8, 8)).save(file, "GIF")
    with pytest.raises(OSError, match="cannot identify"):
        marks.read(file)
