"""What is foreseen before pictures are there: never less than they turn out to cost, and refused only if none fits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.catalogue import MODELS, InputPicture, ModelSpec, Resolved, Size, foresee, resolve
from fluxserve.catalogue.params import MASK, MAX_AREA, Kind
from fluxserve.errors import FieldRefused

SIDES = st.integers(256, 8192)
SIZES = st.builds(Size, SIDES, SIDES).map(
    lambda size: size if size.area <= MAX_AREA else Size(size.width, max(256, MAX_AREA // size.width))
).filter(lambda size: size.area <= MAX_AREA)  # fmt: skip
#: One model of each kind.
KINDS = list({spec.draft: spec for spec in MODELS.values()}.values())
SIDE = st.sampled_from([None, 512, 1024, 1440])
MARGIN = st.sampled_from([None, 0, 16, 512, 2048])


def asked(draw: st.DrawFn, spec: ModelSpec) -> dict[str, object]:
    """Fields of a request but its pictures."""
    values: dict[str, object] = {"prompt": "an owl", "seed": draw(st.sampled_from([None, 7]))}
    for name, choices in (("width", SIDE), ("height", SIDE), *((side, MARGIN) for side in ("top", "left", "right"))):
        if spec.param(name) is not None:
            values[name] = draw(choices)
    return {name: value for name, value in values.items() if value is not None}


def come_to(spec: ModelSpec, values: dict[str, object], pictures: dict[str, InputPicture]) -> Resolved:
    return resolve(spec, values, pictures=pictures, ignored=("x",), rng=random.Random(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec.name)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_foreseen_holds_for_every_picture_that_may_come(spec: ModelSpec, data: st.DataObject) -> None:
    names = [param.name for param in spec.params if param.kind is Kind.IMAGE]
    needed = [param.name for param in spec.params if param.kind is Kind.IMAGE and param.required]
    chosen = sorted({*needed, *data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))})
    unseen = data.draw(st.lists(st.sampled_from(chosen), min_size=1, unique=True))
    sizes = {name: data.draw(SIZES) for name in chosen}
    if MASK in sizes and "image" in sizes and data.draw(st.booleans()):
        sizes[MASK] = sizes["image"]
    pictures = {name: InputPicture(name=name, size=size, sha256="00") for name, size in sizes.items()}
    values = data.draw(st.composite(asked)(spec))
    try:
        came = come_to(spec, values, pictures)
    except FieldRefused:
        return
    known = {name: picture for name, picture in pictures.items() if name not in unseen}
    foreseen = foresee(
        spec, values, pictures=known, unseen=unseen, ignored=("x",), rng=random.Random(1)  # type: ignore[arg-type]
    )  # fmt: skip
    assert foreseen.cost >= came.cost
    assert foreseen.work > 0
    assert {one.name for one in foreseen.generation.pictures} == set(known)
    assert foreseen.warnings == came.warnings
    final = {"size": came.generation.size, "pictures": came.generation.pictures, "seed": came.generation.seed}
    assert replace(foreseen.generation, **final) == came.generation  # type: ignore[arg-type]
    if "seed" in values:
        assert foreseen.generation.seed == 7


def test_only_what_pictures_decide_is_reserved_for() -> None:
    spec = MODELS["flux-2-pro"]
    rng = random.Random(1)
    size = {"width": 512, "height": 512}
    sized = foresee(spec, {"prompt": "x", **size}, pictures={}, unseen=["input_image"], ignored=(), rng=rng)
    assert sized.cost == 3000 + 4 * 1500
    free = foresee(spec, {"prompt": "x"}, pictures={}, unseen=["input_image"], ignored=(), rng=rng)
    assert free.cost == 3000 + 7 * 1500
    first = {"input_image": InputPicture(name="input_image", size=Size(512, 512), sha256="00")}
    second = foresee(spec, {"prompt": "x"}, pictures=first, unseen=["input_image_2"], ignored=(), rng=rng)
    assert second.cost == 3000 + 5 * 1500
