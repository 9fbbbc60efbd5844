"""`fluxserve generate --image`: which field of which model a file goes to."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.catalogue import MODELS
from fluxserve.catalogue.params import MAX_FILE, Kind
from fluxserve.errors import ConfigurationError
from fluxserve.generate import Wish, check_takes, picture_fields, with_pictures


def wish(model: str, *images: Path, mask: Path | None = None) -> Wish:
    return Wish(
        prompt="a red apple", model=model, parameters={"seed": 7}, output=None, timeout=1, images=images, mask=mask
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{number}.png" for number in range(9)]
    for number, file in enumerate(made):
        file.write_bytes(bytes([number, 0xFF]))
    return made


def text(number: int) -> str:
    return base64.b64encode(bytes([number, 0xFF])).decode()


@pytest.mark.parametrize(
    ("model", "count", "fields"),
    [
        ("flux-dev", 1, ["image"]),
        ("flux-pro-1.1", 1, ["image_prompt"]),
        ("flux-kontext-pro", 2, ["input_image", "input_image_2"]),
        ("flux-2-pro", 8, ["input_image", *(f"input_image_{number}" for number in range(2, 9))]),
        ("flux-pro-1.0-expand", 1, ["image"]),
        ("flux-pro-1.0-canny", 1, ["control_image"]),
    ],
)
def test_files_go_to_the_fields_that_the_model_has_for_them(
    files: list[Path], model: str, count: int, fields: list[str]
) -> None:
    asked = with_pictures(wish(model, *files[:count]))
    assert asked.parameters == {"seed": 7} | {name: text(number) for number, name in enumerate(fields)}
    assert set(fields) <= {param.name for param in MODELS[model].params if param.kind is Kind.IMAGE}


def test_a_mask_goes_with_its_picture(files: list[Path]) -> None:
    asked = with_pictures(wish("flux-pro-1.0-fill", files[1], mask=files[2]))
    assert asked.parameters == {"seed": 7, "image": text(1), "mask": text(2)}


def test_urls_go_as_they_are_and_beside_files(files: list[Path]) -> None:
    url = "HTTPS://example.com//a.png?b=c"
    asked = with_pictures(replace(wish("flux-2-pro"), images=(url, str(files[1]))))
    assert asked.parameters == {"seed": 7, "input_image": url, "input_image_2": text(1)}
    masked = with_pictures(replace(wish("flux-pro-1.0-fill", files[2]), mask=url))
    assert masked.parameters == {"seed": 7, "image": text(2), "mask": url}


def test_a_wish_without_pictures_stays_as_it_is() -> None:
    assert with_pictures(wish("flux-2-pro")) == wish("flux-2-pro")


def test_a_model_without_a_field_for_pictures_says_so(files: list[Path]) -> None:
    spec = replace(MODELS["flux-dev"], params=MODELS["flux-dev"].params[:1])
    assert picture_fields(spec) == ()
    with pytest.raises(ConfigurationError, match="flux-dev takes no picture: leave --image out"):
        check_takes(spec, wish("flux-dev", files[0]))


def test_a_model_that_takes_fewer_says_how_many_and_which_take_some(files: list[Path]) -> None:
    with pytest.raises(ConfigurationError, match="flux-dev takes 1 picture at most"):
        with_pictures(wish("flux-dev", *files[:2]))
    with pytest.raises(ConfigurationError, match="flux-kontext-pro takes 4 pictures at most"):
        with_pictures(wish("flux-kontext-pro", *files[:5]))
    with pytest.raises(ConfigurationError, match=r"flux-dev takes no mask: .* draw with flux-pro-1\.0-fill"):
        with_pictures(wish("flux-dev", files[0], mask=files[1]))


def test_a_file_that_cannot_be_sent_is_refused_before_anything_is_started(files: list[Path], tmp_path: Path) -> None:
    for file in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ConfigurationError, match="There is no picture"):
            with_pictures(wish("flux-dev", file))
    files[0].write_bytes(b"")
    with pytest.raises(ConfigurationError, match="has 0 bytes"):
        with_pictures(wish("flux-dev", files[0]))
    with files[0].open("wb") as large:
        large.truncate(MAX_FILE + 1)
    with pytest.raises(ConfigurationError, match="20,000,001 bytes; pictures may have 1 to 20,000,000"):
        with_pictures(replace(wish("flux-dev"), images=(files[0],)))
