"""The catalogue's nouns: a `ModelSpec` per public model, and the `Generation` a request resolves to.

Whoever adds a model writes one `ModelSpec`; schema, route, OpenAPI, docs and price follow from it.
What it does not know: accounts, tasks, how anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal, cast

from fluxserve.catalogue.network import Network
from fluxserve.catalogue.params import Param
from fluxserve.catalogue.recipes import Edit, Recipe, TextToImage
from fluxserve.catalogue.sizes import Size
from fluxserve.errors import JsonValue

OutputFormat = Literal["jpeg", "png", "webp"]
#: What everything that models draw is, in the words of IPTC that files and signatures use.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
#: Pixels of a megapixel as the published price list counts.
BILLED_MEGAPIXEL = 1024 * 1024
_TEXT_TO_IMAGE = TextToImage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Thousandths of a credit: of a picture, of which the first megapixel, and `further` of each other, in or out.

    Megapixels are rounded up, those of all input pictures together. `published` is False where the hosted API names no
    price.
    """

    millicredits: int
    further: int = 0
    published: bool = True

    def of(self, size: Size, inputs: Sequence[Size]) -> int:
        """What a picture of this size costs that is made from `inputs`."""
        return self.millicredits + self.further * (_billed([size]) - 1 + _billed(inputs))


def _billed(sizes: Sequence[Size]) -> int:
    return -(-sum(size.area for size in sizes) // BILLED_MEGAPIXEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPicture:
    """A picture that a request brought in its field `name`; `sha256` of its pixels says which one (see `pixels`)."""

    name: str
    size: Size
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """The fine-tune called `name`, `strength` times as strong as it was made; `sha256` of its file says which one."""

    name: str
    strength: float
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as its model reads it: `fields` with their defaults, which of them were `given`, pictures by field."""

    fields: Mapping[str, JsonValue]
    given: AbstractSet[str]
    pictures: Mapping[str, InputPicture]

    def whole(self, name: str) -> int:
        """The value of a whole number's field."""
        return cast("int", self.fields[name])

    def number(self, name: str) -> float:
        """The value of a number's field."""
        return float(cast("float", self.fields[name]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a request comes to: how large, and made from what."""

    size: Size
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelSpec:
    """One public model: what it accepts and costs, and the open weights nearest to it. There is one of each.

    `draft` reads a request; it raises FieldRefused where fields or pictures do not fit each other. `example` is what
    an example has beside its prompt. `plainly` says what weights do that draw from prompts alone. `takes_depths`: a
    control picture is looked at for how near things are.
    """

    name: str
    title: str
    help: str
    params: tuple[Param, ...]
    draft: Callable[[Asked], Draft]
    price: Price
    nearest_weights: str
    network: Network
    steps: int
    guidance: float = 3.5
    example: Mapping[str, JsonValue] = field(default_factory=lambda: {"width": 512, "height": 512})
    plainly: str = ""
    takes_depths: bool = False

    def param(self, name: str) -> Param | None:
        """The field called `name`, if the model has it."""
        return next((param for param in self.params if param.name == name), None)

    def wants_upsampling(self, values: Mapping[str, object]) -> bool:
        """Whether a request with these fields wants its prompt enriched; some models do unless they are told not to."""
        if not values.get("prompt"):
            return False
        if (asked := self.param("prompt_upsampling")) is not None:
            told = values.get(asked.name)
            return bool(asked.default if told is None else told)
        return self.param("disable_pup") is not None and not values.get("disable_pup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What to draw, fully resolved. Frozen once the request was accepted; a retry draws the same picture.

    The pixels of `pictures` travel beside it. `safety_tolerance`, from 0 to 6, decides whether anybody may see it.
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
    finetune: Finetune | None = None
    safety_tolerance: int = 2

    @property
    def batch_key(self) -> str:
        """Tasks with equal keys can share forward passes."""
        return f"{self.model}/{self.size}"

    @property
    def references(self) -> tuple[Size, ...]:
        """The sizes of those pictures that the model's network sees beside the one it draws."""
        return tuple(picture.size for picture in self.pictures) if isinstance(self.recipe, Edit) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request after `resolve`: the generation, its price, its work in TFLOP, and what the caller should be told."""

    generation: Generation
    cost: int
    work: float
    warnings: tuple[str, ...]
