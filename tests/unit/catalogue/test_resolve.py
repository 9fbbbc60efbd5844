"""From checked fields to a Generation: defaults, seeds, sizes, prices, and what the caller is told."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from fluxserve.catalogue import MODELS, NOT_DRAWN, Generation, InputPicture, Resolved, Size, find, resolve
from fluxserve.catalogue.params import MAX_SEED, Kind
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, Recipe, TextToImage
from fluxserve.catalogue.resolving import DRAWN_SEED_LIMIT
from fluxserve.errors import FieldRefused, JsonValue, ModelNotDrawn, UnknownModel

#: Model, size, steps, guidance and thousandths of a credit of what a prompt alone comes to.
PROMPTED = [
    ("flux-pro-1.1", Size(1024, 768), 28, 3.5, 4000),
    ("flux-pro", Size(1024, 768), 40, 3.5, 5000),
    ("flux-dev", Size(1024, 768), 28, 3.5, 2500),
    ("flux-schnell", Size(1024, 768), 4, 3.5, 300),
    ("flux-pro-1.1-ultra", Size(2752, 1536), 28, 3.5, 6000),
    ("flux-krea-dev", Size(1024, 768), 28, 4.5, 2500),
    ("flux-kontext-pro", Size(1024, 1024), 28, 2.5, 4000),
    ("flux-kontext-max", Size(1024, 1024), 50, 2.5, 8000),
    ("flux-kontext-dev", Size(1024, 1024), 28, 2.5, 2500),
    ("flux-2-max", Size(1024, 1024), 50, 4.0, 7000),
    ("flux-2-pro", Size(1024, 1024), 28, 4.0, 3000),
    ("flux-2-pro-preview", Size(1024, 1024), 28, 4.0, 3000),
    ("flux-2-flex", Size(1024, 1024), 50, 5.0, 5000),
    ("flux-2-klein-4b", Size(1024, 1024), 4, 1.0, 1400),
    ("flux-2-klein-9b", Size(1024, 1024), 4, 1.0, 1500),
    ("flux-2-klein-9b-preview", Size(1024, 1024), 4, 1.0, 1500),
    ("flux-2-dev", Size(1024, 1024), 28, 4.0, 1200),
]
FILL, EXPAND, CANNY, DEPTH = (f"flux-pro-1.0-{name}" for name in ("fill", "expand", "canny", "depth"))
#: What these models cannot do without.
NEEDED: dict[str, tuple[dict[str, JsonValue], dict[str, tuple[int, int]]]] = {
    FILL: ({}, {"image": (256, 256), "mask": (256, 256)}),
    EXPAND: ({"top": 1}, {"image": (256, 256)}),
    CANNY: ({}, {"control_image": (256, 256)}),
    DEPTH: ({}, {"control_image": (256, 256)}),
}
#: Model, fields, sizes of pictures by field; the size and the recipe that they come to.
PICTURED: list[tuple[str, dict[str, JsonValue], dict[str, tuple[int, int]], tuple[int, int], Recipe]] = [
    ("flux-dev", {}, {"image": (500, 301)}, (500, 301), ImageToImage(strength=0.75)),
    ("flux-dev", {"strength": 1}, {"image": (2880, 1440)}, (1440, 720), ImageToImage(strength=1.0)),
    ("flux-dev", {"width": 512}, {"image": (500, 301)}, (512, 768), ImageToImage(strength=0.75)),
    ("flux-kontext-pro", {}, {"input_image": (1600, 900)}, (1392, 752), Edit()),
    ("flux-kontext-pro", {"aspect_ratio": "4:3"}, {"input_image": (1600, 900)}, (1184, 880), Edit()),
    ("flux-kontext-pro", {"aspect_ratio": "9:21"}, {}, (672, 1568), Edit()),
    ("flux-kontext-max", {}, {"input_image_3": (256, 2560), "input_image_2": (300, 300)}, (1024, 1024), Edit()),
    ("flux-kontext-dev", {}, {"input_image": (256, 4096)}, (672, 1568), Edit()),
    (FILL, {}, {"image": (515, 333), "mask": (515, 333)}, (515, 333), Fill()),
    (EXPAND, {"left": 10, "bottom": 7}, {"image": (300, 400)}, (310, 407), Fill(left=10, bottom=7)),
    (EXPAND, {"top": 1, "right": 2}, {"image": (300, 400)}, (302, 401), Fill(top=1, right=2)),
    (CANNY, {}, {"control_image": (700, 500)}, (700, 500), Control(kind="canny")),
    (CANNY, {"canny_low_threshold": 0, "canny_high_threshold": 9}, {"control_image": (256, 256)}, (256, 256),
     Control(kind="canny", low=0.0, high=9.0)),
    (CANNY, {}, {"control_image": (700, 500), "preprocessed_image": (512, 512)}, (512, 512), Control(kind="canny")),
    (DEPTH, {}, {"preprocessed_image": (2048, 1024)}, (1440, 720), Control(kind="depth")),
    ("flux-2-pro", {}, {"input_image": (1919, 1087)}, (1904, 1072), Edit()),
    ("flux-2-pro", {"width": 512}, {"input_image": (1919, 1087)}, (512, 1072), Edit()),
    ("flux-2-pro", {"width": 512}, {}, (512, 1024), Edit()),
    ("flux-2-max", {"width": 2048, "height": 2048}, {}, (2048, 2048), Edit()),
    ("flux-2-klein-4b", {}, {"input_image_2": (79, 64), "input_image": (64, 64)}, (64, 64), Edit()),
]  # fmt: skip
#: Model, fields, sizes of pictures by field; the field that is refused, and as what.
UNFIT: list[tuple[str, dict[str, JsonValue], dict[str, tuple[int, int]], str, str]] = [
    ("flux-dev", {}, {"image": (300, 255)}, "image", "picture_too_small"),
    ("flux-dev", {}, {"image": (256, 1500)}, "image", "picture_shape"),
    ("flux-dev", {}, {"image": (256, 256), "image_prompt": (256, 256)}, "image_prompt", "pictures_disagree"),
    ("flux-pro", {}, {"image_prompt": (255, 255)}, "image_prompt", "picture_too_small"),
    ("flux-kontext-pro", {}, {"input_image_4": (255, 300)}, "input_image_4", "picture_too_small"),
    (FILL, {}, {"image": (256, 256)}, "mask", "missing"),
    (FILL, {}, {"image": (256, 257), "mask": (257, 256)}, "mask", "mask_size"),
    (EXPAND, {}, {"image": (256, 256)}, "top", "no_margin"),
    (EXPAND, {"left": 0}, {"image": (256, 256)}, "top", "no_margin"),
    (EXPAND, {"left": 1, "right": 2}, {"image": (2048, 2047)}, "right", "size_too_large"),
    (CANNY, {}, {}, "control_image", "missing"),
    (CANNY, {"canny_low_threshold": 201}, {"control_image": (256, 256)}, "canny_low_threshold", "thresholds_disagree"),
    (DEPTH, {}, {}, "control_image", "missing"),
    (DEPTH, {}, {"control_image": (256, 1500)}, "control_image", "picture_shape"),
    ("flux-2-pro", {"width": 2048, "height": 2064}, {}, "width", "size_too_large"),
    ("flux-2-pro", {"height": 8192}, {}, "height", "size_too_large"),
    ("flux-2-pro", {}, {"input_image_8": (64, 63)}, "input_image_8", "picture_too_small"),
]
#: Model, size, sizes of input pictures; thousandths of a credit, as the published price list has them.
PRICED = [
    ("flux-2-klein-4b", (1024, 1024), [], 1400),
    ("flux-2-klein-4b", (1024, 1040), [], 1500),
    ("flux-2-klein-4b", (2048, 2048), [(1024, 1024)], 1800),
    ("flux-2-klein-9b", (64, 64), [(64, 64)], 1700),
    ("flux-2-pro", (1024, 1024), [(1024, 1024)], 4500),
    ("flux-2-pro", (1920, 1072), [(800, 800), (600, 600)], 6000),
    ("flux-2-max", (1024, 1024), [(2048, 2048)] * 2, 31_000),
    ("flux-2-flex", (1024, 1024), [], 5000),
    ("flux-2-flex", (1440, 1440), [(1024, 1024)], 15_000),
]


def picture(name: str, size: Size) -> InputPicture:
    """A decoded picture."""
    return InputPicture(name=name, size=size, sha256=f"of {name}")


def resolved(
    model: str = "flux-dev",
    fields: Mapping[str, JsonValue] | None = None,
    pictures: Mapping[str, tuple[int, int]] | None = None,
    *,
    ignored: tuple[str, ...] = (),
    seed: int = 1,
) -> Resolved:
    """What a request becomes; `pictures` are their sizes by field."""
    values = {"prompt": "a red apple", **(fields or {})}
    decoded = {name: picture(name, Size(*sides)) for name, sides in (pictures or {}).items()}
    return resolve(find(model), values, pictures=decoded, ignored=ignored, rng=random.Random(seed))


@pytest.mark.parametrize(("model", "size", "steps", "guidance", "cost"), PROMPTED)
def test_a_prompt_alone_is_drawn_with_the_models_defaults(
    model: str, size: Size, steps: int, guidance: float, cost: int
) -> None:
    drawn = resolved(model, {"seed": 5})
    edits = model.startswith(("flux-kontext", "flux-2"))
    assert drawn == Resolved(
        generation=Generation(
            model=model,
            prompt="a red apple",
            size=size,
            seed=5,
            steps=steps,
            guidance=guidance,
            output_format="png" if "kontext" in model else "jpeg",
            recipe=Edit() if edits else TextToImage(),
        ),
        cost=cost,
        work=MODELS[model].network.work(size, steps),
        warnings=(),
    )


def test_the_tables_name_every_model() -> None:
    assert {row[0] for row in PROMPTED} | {row[0] for row in PICTURED} == set(MODELS)
    ours = {name for name, spec in MODELS.items() if not spec.price.published}
    assert ours == {
        "flux-schnell", "flux-krea-dev", "flux-kontext-dev", "flux-pro-1.0-canny", "flux-pro-1.0-depth", "flux-2-dev",
    }  # fmt: skip


@pytest.mark.parametrize(("model", "fields", "pictures", "size", "recipe"), PICTURED)
def test_pictures_decide_what_is_drawn_and_how_large(
    model: str,
    fields: dict[str, JsonValue],
    pictures: dict[str, tuple[int, int]],
    size: tuple[int, int],
    recipe: Recipe,
) -> None:
    generation = resolved(model, fields, pictures).generation
    assert (generation.size, generation.recipe) == (Size(*size), recipe)
    order = [param.name for param in find(model).params if param.name in pictures]
    assert [one.name for one in generation.pictures] == order
    assert generation.references == tuple(Size(*pictures[name]) for name in order if isinstance(recipe, Edit))


@pytest.mark.parametrize(("model", "fields", "pictures", "field", "kind"), UNFIT)
def test_what_does_not_fit_is_refused_by_the_name_of_its_field(
    model: str, fields: dict[str, JsonValue], pictures: dict[str, tuple[int, int]], field: str, kind: str
) -> None:
    with pytest.raises(FieldRefused) as caught:
        resolved(model, fields, pictures)
    assert (caught.value.field, caught.value.kind) == (field, kind)


@pytest.mark.parametrize(("model", "size", "inputs", "cost"), PRICED)
def test_the_price_counts_megapixels_rounded_up(
    model: str, size: tuple[int, int], inputs: list[tuple[int, int]], cost: int
) -> None:
    names = ["input_image", *(f"input_image_{number}" for number in range(2, 9))]
    width, height = size
    drawn = resolved(model, {"width": width, "height": height}, dict(zip(names, inputs, strict=False)))
    assert drawn.cost == cost


def test_pictures_are_work_too() -> None:
    network, size = find("flux-kontext-pro").network, Size(1024, 1024)
    alone, edit = (
        resolved("flux-kontext-pro").work,
        resolved("flux-kontext-pro", {}, {"input_image": (1024, 1024)}).work,
    )
    steps = 28 * (network.step_work(size, [size]) - network.step_work(size))
    assert edit - alone == pytest.approx(steps + 4.09 * 1.048576, rel=1e-6)
    expanded = {"image": (512, 512)}
    assert resolved("flux-pro-1.0-expand", {"top": 256}, expanded).work == pytest.approx(
        network.work(Size(512, 768), 50) + 4.09 * 512 * 512 / 1e6, rel=1e-6
    )


def test_a_picture_that_is_as_small_as_may_be_is_taken() -> None:
    for model, spec in MODELS.items():
        for param in spec.params:
            if param.kind is Kind.IMAGE:
                assert param.min_side == (64 if model.startswith("flux-2") else 256)
                assert param.max_area == 2048 * 2048


def test_raw_interval_and_likeness_are_part_of_the_recipe_and_likeness_only_where_there_is_a_picture() -> None:
    assert resolved("flux-pro", {"interval": 3}).generation.recipe == TextToImage(interval=3.0)
    ultra: dict[str, JsonValue] = {"raw": True, "image_prompt_strength": 0.4}
    assert resolved("flux-pro-1.1-ultra", ultra).generation.recipe == TextToImage(raw=True)
    pictures = {"image_prompt": (256, 256)}
    assert resolved("flux-pro-1.1-ultra", ultra, pictures).generation.recipe == TextToImage(raw=True, likeness=0.4)
    assert resolved("flux-pro-1.1-ultra", {}, pictures).generation.recipe == TextToImage(likeness=0.1)
    assert resolved("flux-dev", {}, pictures).generation.recipe == TextToImage()


def test_a_published_model_that_is_not_drawn_says_why() -> None:
    assert NOT_DRAWN.keys().isdisjoint(MODELS)
    with pytest.raises(ModelNotDrawn, match="flux-2-klein-9b"):
        find("flux-3-image-klein")


def test_fields_that_are_set_win_over_defaults() -> None:
    fields = {"width": 256, "height": 1440, "steps": 3, "guidance": 2, "output_format": "webp", "seed": 0}
    generation = resolved(fields=fields).generation
    assert generation.size == Size(256, 1440)
    assert (generation.steps, generation.guidance, generation.output_format) == (3, 2.0, "webp")
    assert generation.seed == 0
    assert isinstance(generation.guidance, float)


def test_a_seed_is_drawn_below_2_to_the_32_and_differs_between_requests() -> None:
    rng = random.Random(1)
    seeds = [
        resolve(find("flux-dev"), {"prompt": ""}, pictures={}, ignored=(), rng=rng).generation.seed for _ in range(1000)
    ]
    assert all(0 <= seed < DRAWN_SEED_LIMIT == 2**32 for seed in seeds)
    assert max(seeds) > 2**31
    assert len(set(seeds)) > 990


def test_a_seed_of_the_callers_is_kept_up_to_the_largest() -> None:
    assert resolved(fields={"seed": MAX_SEED}).generation.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("ratio", "size"), [("1:1", Size(2048, 2048)), ("9:16", Size(1536, 2752)), ("21:9", Size(3136, 1344))]
)
def test_ultra_is_sized_by_its_aspect_ratio(ratio: str, size: Size) -> None:
    assert resolved("flux-pro-1.1-ultra", {"aspect_ratio": ratio}).generation.size == size


@pytest.mark.parametrize("model", MODELS)
def test_a_request_that_says_no_more_than_it_has_to_is_told_nothing(model: str) -> None:
    fields, pictures = NEEDED.get(model, ({}, {}))
    assert resolved(model, fields, pictures).warnings == ()


def test_fields_that_are_drawn_from_warn_of_nothing() -> None:
    fields = {"width": 512, "height": 512, "steps": 9, "guidance": 2.0, "seed": 1, "output_format": "png", "user": "u"}
    assert resolved(fields=fields).warnings == ()


def test_unknown_fields_are_named_after_those_that_need_another() -> None:
    warnings = resolved("flux-pro-1.1-ultra", {"image_prompt_strength": 0.5}, ignored=("sampler", "n")).warnings
    assert [warning.split()[0] for warning in warnings] == ["image_prompt_strength", "sampler", "n"]
    assert warnings[1] == "sampler is not a parameter of flux-pro-1.1-ultra and was ignored"


def test_tasks_of_one_model_and_size_can_be_drawn_together() -> None:
    one, other = resolved(fields={"seed": 1, "steps": 2}), resolved(fields={"seed": 2, "guidance": 5.0})
    assert one.generation.batch_key == other.generation.batch_key
    assert one.generation.batch_key != resolved(fields={"width": 512}).generation.batch_key
    assert one.generation.batch_key != resolved("flux-pro").generation.batch_key


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"flux-pro-1\.1-ultra") as caught:
        find("flux-<script>")
    assert "script" not in caught.value.message
