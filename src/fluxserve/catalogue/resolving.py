"""From the checked fields of a request and its pictures to a Generation, its price and its work.

What it does not know: HTTP, how pictures come and where they are kept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import cast

from fluxserve.catalogue.spec import Asked, Finetune, Generation, InputPicture, ModelSpec, OutputFormat, Resolved
from fluxserve.errors import FieldRefused, JsonValue

#: Seeds drawn by us stay below this, so that every JSON reader holds them exactly.
DRAWN_SEED_LIMIT = 2**32


def resolve(
    spec: ModelSpec,
    values: Mapping[str, JsonValue],
    *,
    pictures: Mapping[str, InputPicture],
    ignored: tuple[str, ...],
    rng: random.Random,
    finetune_sha256: str | None = None,
) -> Resolved:
    """Fill defaults, draw the seed, choose the size and the recipe. Raises FieldRefused.

    `values` holds the fields that were set and passed the schema, but those of pictures: `pictures` holds these, and
    the mask that came as the alpha channel of another. `ignored` are the names the schema does not know,
    `finetune_sha256` is of the file that `finetune_id` names, if it is set.
    """
    _check_sides(spec, pictures)
    fields = {param.name: param.default for param in spec.params} | dict(values)
    draft = spec.draft(Asked(fields=fields, given=values.keys(), pictures=pictures))
    generation = Generation(
        model=spec.name,
        prompt=str(fields["prompt"]),
        size=draft.size,
        seed=rng.randrange(DRAWN_SEED_LIMIT) if fields["seed"] is None else cast("int", fields["seed"]),
        steps=cast("int", fields.get("steps", spec.steps)),
        guidance=float(cast("float", fields.get("guidance", spec.guidance))),
        output_format=cast("OutputFormat", fields["output_format"]),
        recipe=draft.recipe,
        pictures=tuple(pictures[param.name] for param in spec.params if param.name in pictures),
        finetune=None if finetune_sha256 is None else _finetune(fields, finetune_sha256),
        safety_tolerance=cast("int", fields["safety_tolerance"]),
    )
    inputs = [picture.size for picture in generation.pictures]
    return Resolved(
        generation=generation,
        cost=spec.price.of(generation.size, inputs),
        work=spec.network.work(generation.size, generation.steps, inputs=inputs, references=generation.references),
        warnings=_warnings(spec, {**values, **dict.fromkeys(pictures, "")}, ignored=ignored),
    )


def _finetune(fields: Mapping[str, JsonValue], sha256: str) -> Finetune:
    return Finetune(
        name=str(fields["finetune_id"]), strength=float(cast("float", fields["finetune_strength"])), sha256=sha256
    )


def _check_sides(spec: ModelSpec, pictures: Mapping[str, InputPicture]) -> None:
    for param in spec.params:
        size = pictures[param.name].size if param.name in pictures else None
        if size is not None and param.min_side is not None and min(size.width, size.height) < param.min_side:
            message = f"Picture should be at least {param.min_side} pixels wide and high, not {size}"
            raise FieldRefused(param.name, "picture_too_small", message, str(size))


def _warnings(spec: ModelSpec, values: Mapping[str, JsonValue], *, ignored: tuple[str, ...]) -> tuple[str, ...]:
    alone = [
        f"{param.name} changes nothing without {param.needs}"
        for param in spec.params
        if param.needs and param.name in values and param.needs not in values
    ]
    return (*alone, *(f"{name} is not a parameter of {spec.name} and was ignored" for name in ignored))
