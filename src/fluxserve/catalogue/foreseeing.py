"""What a request comes to at most whose pictures nobody has seen yet: pure, from what its other fields say.

Pictures of several sizes are tried, the largest first; the first that fits the other fields stands for those to come.
What it does not know: where they come from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fluxserve.catalogue.params import MASK, MASKED, MAX_AREA, MIN_SIDE
from fluxserve.catalogue.resolving import resolve
from fluxserve.catalogue.sizes import Size
from fluxserve.catalogue.spec import InputPicture, ModelSpec, Resolved
from fluxserve.errors import FieldRefused, JsonValue

#: The largest picture that is kept, down to the smallest that every model takes.
_SQUARES = tuple(Size(side, side) for side in (math.isqrt(MAX_AREA), 1024, 512, MIN_SIDE))


def foresee(
    spec: ModelSpec,
    values: Mapping[str, JsonValue],
    *,
    pictures: Mapping[str, InputPicture],
    unseen: Sequence[str],
    ignored: tuple[str, ...],
    rng: random.Random,
    finetune_sha256: str | None = None,
) -> Resolved:
    """As `resolve`, before the pictures of the fields `unseen` are there. Raises FieldRefused where none would fit.

    The cost is the most that it can be, the seed and all that pictures do not decide are final; the generation's size
    is the largest that it can be, and it names those `pictures` alone that are known.
    """
    names = unseen_names(spec, pictures, unseen)
    found: list[Resolved] = []
    refused: list[FieldRefused] = []
    for size in (*(picture.size for picture in pictures.values()), *_SQUARES):
        guessed = {name: InputPicture(name=name, size=size, sha256="") for name in names}
        try:
            found.append(
                resolve(
                    spec, values, pictures={**pictures, **guessed}, ignored=ignored, rng=rng,
                    finetune_sha256=finetune_sha256,
                )
            )  # fmt: skip
        except FieldRefused as error:
            refused.append(error)
    if not found:
        raise refused[-1]
    generation = found[0].generation
    sizes = {one.generation.size for one in found}
    drawn = generation.size if len(sizes) == 1 and not refused else max(*sizes, _SQUARES[0], key=_area)
    seen = [picture.size for picture in pictures.values()]
    return replace(
        found[0],
        generation=replace(
            generation, size=drawn, pictures=tuple(one for one in generation.pictures if one.name in pictures)
        ),
        cost=spec.price.of(drawn, [*seen, *[_SQUARES[0]] * len(unseen)]),
    )


def _area(size: Size) -> int:
    return size.area


def unseen_names(spec: ModelSpec, pictures: Mapping[str, InputPicture], unseen: Sequence[str]) -> tuple[str, ...]:
    """The fields `unseen`, with that of the mask that may be one's alpha channel."""
    has_mask = spec.param(MASK) is None or MASK in pictures or MASK in unseen
    return (*unseen, MASK) if MASKED in unseen and not has_mask else tuple(unseen)
