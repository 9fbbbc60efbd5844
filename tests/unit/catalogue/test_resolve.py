"""From checked fields to a Generation: defaults, seeds, sizes, prices, and what the caller is told."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from fluxserve.catalogue import MODELS, Generation, Resolved, Size, find, resolve
from fluxserve.catalogue.params import MAX_SEED
from fluxserve.catalogue.spec import DRAWN_SEED_LIMIT
from fluxserve.errors import JsonValue, UnknownModel


def resolved(
    model: str = "flux-dev",
    fields: Mapping[str, JsonValue] | None = None,
    *,
    ignored: tuple[str, ...] = (),
    seed: int = 1,
) -> Resolved:
    """What a request becomes."""
    values = {"prompt": "a red apple", **(fields or {})}
    return resolve(find(model), values, pictures={}, ignored=ignored, rng=random.Random(seed))


@pytest.mark.parametrize(
    ("model", "size", "steps", "cost"),
    [
        ("flux-pro-1.1", Size(1024, 768), 28, 4000),
        ("flux-pro", Size(1024, 768), 40, 5000),
        ("flux-dev", Size(1024, 768), 28, 2500),
        ("flux-schnell", Size(1024, 768), 4, 300),
        ("flux-pro-1.1-ultra", Size(2752, 1536), 28, 6000),
    ],
)
def test_a_prompt_alone_is_drawn_with_the_models_defaults(model: str, size: Size, steps: int, cost: int) -> None:
    drawn = resolved(model, {"seed": 5})
    assert drawn == Resolved(
        generation=Generation(
            model=model, prompt="a red apple", size=size, seed=5, steps=steps, guidance=3.5, output_format="jpeg"
        ),
        cost=cost,
        work=MODELS[model].network.work(size, steps),
        warnings=(),
    )


def test_the_table_above_names_every_model() -> None:
    assert set(MODELS) == {"flux-pro-1.1", "flux-pro", "flux-dev", "flux-schnell", "flux-pro-1.1-ultra"}
    assert [name for name, spec in MODELS.items() if not spec.price.published] == ["flux-schnell"]


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
def test_every_field_without_effect_says_so_when_it_is_used_and_only_then(model: str) -> None:
    spec = find(model)
    silent = [param for param in spec.params if param.no_effect]
    assert silent
    for param in silent:
        (warning,) = resolved(model, {param.name: True}).warnings
        assert warning == param.no_effect
        assert param.name in warning
    assert resolved(model).warnings == ()


@pytest.mark.parametrize("name", ["raw", "prompt_upsampling"])
def test_a_flag_that_is_off_needs_no_warning(name: str) -> None:
    model = "flux-pro-1.1-ultra"
    assert resolved(model, {name: False}).warnings == ()
    assert len(resolved(model, {name: True}).warnings) == 1


def test_fields_that_are_drawn_from_warn_of_nothing() -> None:
    fields = {"width": 512, "height": 512, "steps": 9, "guidance": 2.0, "seed": 1, "output_format": "png", "user": "u"}
    assert resolved(fields=fields).warnings == ()


def test_unknown_fields_are_named_after_those_without_effect() -> None:
    warnings = resolved("flux-pro", {"interval": 2.0}, ignored=("sampler", "n")).warnings
    assert [warning.split()[0] for warning in warnings] == ["interval", "sampler", "n"]
    assert warnings[1] == "sampler is not a parameter of flux-pro and was ignored"


def test_tasks_of_one_model_and_size_can_be_drawn_together() -> None:
    one, other = resolved(fields={"seed": 1, "steps": 2}), resolved(fields={"seed": 2, "guidance": 5.0})
    assert one.generation.batch_key == other.generation.batch_key
    assert one.generation.batch_key != resolved(fields={"width": 512}).generation.batch_key
    assert one.generation.batch_key != resolved("flux-pro").generation.batch_key


def test_an_unknown_model_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UnknownModel, match=r"flux-pro-1\.1-ultra") as caught:
        find("flux-<script>")
    assert "script" not in caught.value.message
