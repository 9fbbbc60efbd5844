"""What models make of pictures, over HTTP: recipes, sizes, prices, and what does not fit told as every 422 is."""

from __future__ import annotations

import pytest
from facts import PREFIXES
from inprocess import Server
from PIL import Image
from shapes import is_error

from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, Recipe
from sample_pictures import file_of, picture, text_of

LYING, UPRIGHT = text_of(file_of(picture(480, 320))), text_of(file_of(picture(256, 512)))
FILL, EXPAND, CANNY, DEPTH = (f"flux-pro-1.0-{name}" for name in ("fill", "expand", "canny", "depth"))


def with_alpha() -> str:
    """Half of it is see-through."""
    image = picture(480, 320, mode="RGBA")
    image.paste((0, 0, 0, 0), (240, 0, 480, 320))
    return text_of(file_of(image))


DRAWN: list[tuple[str, dict[str, object], str, Recipe, float]] = [
    ("flux-dev", {"image": LYING, "strength": 0.5}, "480x320", ImageToImage(strength=0.5), 2.5),
    ("flux-kontext-pro", {"input_image": UPRIGHT, "input_image_2": LYING}, "720x1456", Edit(), 4.0),
    (FILL, {"image": LYING, "mask": LYING}, "480x320", Fill(), 5.0),
    (FILL, {"image": with_alpha(), "prompt": None}, "480x320", Fill(), 5.0),
    (EXPAND, {"image": LYING, "top": 32, "right": 8}, "488x352", Fill(top=32, right=8), 5.0),
    (CANNY, {"control_image": LYING, "canny_low_threshold": 10}, "480x320", Control(kind="canny", low=10.0), 5.0),
    (DEPTH, {"preprocessed_image": UPRIGHT}, "256x512", Control(kind="depth"), 5.0),
    ("flux-2-pro", {"input_image": LYING, "input_image_8": UPRIGHT}, "480x320", Edit(), 4.5),
    ("flux-2-klein-4b", {"input_image": LYING, "width": 2048, "height": 1024}, "2048x1024", Edit(), 1.6),
]
REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    (FILL, {"image": LYING}, "mask", "missing"),
    (FILL, {"image": LYING, "mask": UPRIGHT}, "mask", "mask_size"),
    (EXPAND, {"image": LYING}, "top", "no_margin"),
    (CANNY, {}, "control_image", "missing"),
    (DEPTH, {"control_image": text_of(file_of(picture(255, 300)))}, "control_image", "picture_too_small"),
    ("flux-dev", {"image": LYING, "image_prompt": LYING}, "image_prompt", "pictures_disagree"),
]


@pytest.mark.parametrize(("model", "fields", "size", "recipe", "cost"), DRAWN)
def test_pictures_decide_recipe_size_and_price(
    shared: Server, model: str, fields: dict[str, object], size: str, recipe: Recipe, cost: float
) -> None:
    for prefix in PREFIXES:
        answer = shared.post(f"{prefix}/{model}", {"prompt": "x", **fields})
        assert answer.status_code == 200, answer.text
        task = answer.json()
        generation = shared.record(task).generation
        assert (str(generation.size), generation.recipe, task["cost"]) == (size, recipe, cost)
        sizes = [one.size.area for one in generation.pictures]
        assert task["input_mp"] == pytest.approx(sum(sizes) / 1e6, abs=0.005)
        assert task["output_mp"] == generation.size.megapixels
    names = [one.name for one in generation.pictures]
    assert names == (["image", "mask"] if model == FILL else sorted(names))


def test_a_mask_may_come_as_the_alpha_channel(shared: Server) -> None:
    one = shared.record(shared.post(f"/v1/{FILL}", {"image": with_alpha()}).json()).generation
    mask = Image.new("L", (480, 320))
    mask.paste(255, (240, 0, 480, 320))
    opaque = Image.new("RGB", (480, 320))
    opaque.paste(picture(480, 320).crop((0, 0, 240, 320)))
    fields = {"image": text_of(file_of(opaque)), "mask": text_of(file_of(mask))}
    assert shared.record(shared.post(f"/v1/{FILL}", fields).json()).generation.pictures == one.pictures


@pytest.mark.parametrize(("model", "fields", "field", "kind"), REFUSED)
def test_what_does_not_fit_is_a_422_that_names_the_field(
    shared: Server, model: str, fields: dict[str, object], field: str, kind: str
) -> None:
    for prefix in PREFIXES:
        body = is_error(shared.post(f"{prefix}/{model}", {"prompt": "x", **fields}), 422, prefix)
        (item,) = body["detail"]
        assert (item["type"], item["loc"]) == (kind, ["body", field])
        assert body["message"] == f"{field}: {item['msg']}"
