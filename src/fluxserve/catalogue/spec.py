"""The catalogue's nouns: a `ModelSpec` per public model, and the `Generation` a request resolves to.

Whoever adds a model writes one `ModelSpec`; schema, route, OpenAPI, docs and price follow from it.
What it does not know: accounts, tasks, how anything is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from fluxserve.catalogue.network import Network
from fluxserve.catalogue.params import Param
from fluxserve.catalogue.recipes import Recipe, TextToImage
from fluxserve.catalogue.sizes import Size, ultra_size
from fluxserve.errors import JsonValue

OutputFormat = Literal["jpeg", "png", "webp"]
#: Seeds drawn by us stay below this, so that every JSON reader holds them exactly.
DRAWN_SEED_LIMIT = 2**32
_TEXT_TO_IMAGE = TextToImage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Thousandths of a credit per picture. `published` is False where the hosted API names no price."""

    millicredits: int
    published: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """One public model: what it accepts and costs, and the open weights nearest to it. There is one of each."""

    name: str
    title: str
    help: str
    params: tuple[Param, ...]
    price: Price
    nearest_weights: str
    network: Network
    steps: int
    guidance: float = 3.5

    def param(self, name: str) -> Param | None:
        """The field called `name`, if the model has it."""
        return next((param for param in self.params if param.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPicture:
    """A picture that a request brought in its field `name`; `sha256` of its pixels says which one (see `pixels`)."""

    name: str
    size: Size
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to draw, fully resolved. Frozen once the request was accepted; a retry draws the same picture.

    The pixels of `pictures` travel beside it.
    """

    model: str
    prompt: str
    size: Size
    seed: int
    steps: int
    guidance: float
    output_format: OutputFormat
    recipe: Recipe = _TEXT_TO_IMAGE
    pictures: tuple[InputPicture, ...] = ()

    @property
    def batch_key(self) -> str:
        """Tasks with equal keys can share forward passes."""
        return f"{self.model}/{self.size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request after `resolve`: the generation, its price, its work in TFLOP, and what the caller should be told."""

    generation: Generation
    cost: int
    work: float
    warnings: tuple[str, ...]


def resolve(
    spec: ModelSpec,
    values: Mapping[str, JsonValue],
    *,
    pictures: Mapping[str, InputPicture],
    ignored: tuple[str, ...],
    rng: random.Random,
) -> Resolved:
    """Fill defaults, draw the seed, choose the size.

    `values` holds the fields that were set and passed the schema, but those of pictures: `pictures` holds these, and
    the mask that came as the alpha channel of another. `ignored` are the names the schema does not know.
    """
    fields = {param.name: param.default for param in spec.params} | dict(values)
    generation = Generation(
        model=spec.name,
        prompt=str(fields["prompt"]),
        size=_size(fields),
        seed=rng.randrange(DRAWN_SEED_LIMIT) if fields["seed"] is None else cast("int", fields["seed"]),
        steps=cast("int", fields.get("steps", spec.steps)),
        guidance=float(cast("float", fields.get("guidance", spec.guidance))),
        output_format=cast("OutputFormat", fields["output_format"]),
        pictures=tuple(pictures.values()),
    )
    return Resolved(
        generation=generation,
        cost=spec.price.millicredits,
        work=spec.network.work(generation.size, generation.steps),
        warnings=_warnings(spec, {**values, **dict.fromkeys(pictures, "")}, ignored=ignored),
    )


def _size(fields: Mapping[str, JsonValue]) -> Size:
    if "aspect_ratio" in fields:
        return ultra_size(str(fields["aspect_ratio"]))
    return Size(cast("int", fields["width"]), cast("int", fields["height"]))


def _warnings(spec: ModelSpec, values: Mapping[str, JsonValue], *, ignored: tuple[str, ...]) -> tuple[str, ...]:
    unused = [
        param.no_effect
        for param in spec.params
        if param.no_effect and param.name in values and values[param.name] is not False
    ]
    return (*unused, *(f"{name} is not a parameter of {spec.name} and was ignored" for name in ignored))
