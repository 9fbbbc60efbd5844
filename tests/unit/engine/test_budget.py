"""The token budget: what is worth a forward pass, from times alone."""

from collections.abc import Callable

import pytest

from fluxserve.engine.budget import MOST_PICTURES, PATIENCE_S, Budget, measure

TOKENS = 100


def device(first: float, further: float) -> Callable[[int], float]:
    """A pass takes `first` seconds for a picture and `further` for each that comes with it."""
    return lambda count: first + further * (count - 1)


@pytest.mark.parametrize(
    ("times", "pictures", "padded"),
    [
        (device(0.004, 0.004), 1, 1),  # a picture fills the device
        (device(0.004, 0.0025), 4, 1),  # one core: some gain for some longer steps
        (device(0.004, 0.0), MOST_PICTURES, MOST_PICTURES),  # a device that is busy starting kernels
        (device(0.1, 0.03), 8, 2),
    ],
)
def test_the_budget_is_the_fewest_pictures_that_are_nearly_as_fast_as_the_most(
    times: Callable[[int], float], pictures: int, padded: int
) -> None:
    assert measure(times, TOKENS) == Budget(tokens=pictures * TOKENS, padded=padded * TOKENS)


def test_a_pass_that_something_else_held_up_does_not_count() -> None:
    passes: list[int] = []

    def seconds_of(count: int) -> float:
        passes.append(count)
        return 0.004 if passes.count(count) == 2 else 0.1

    assert measure(seconds_of, TOKENS).tokens == MOST_PICTURES * TOKENS


@pytest.mark.parametrize(("fits", "most"), [(0, 1), (1, 1), (2, 2), (7, 4), (8, 8)])
def test_measuring_ends_with_what_fits_into_memory(fits: int, most: int) -> None:
    passes: list[int] = []

    def seconds_of(count: int) -> float | None:
        passes.append(count)
        return 0.004 if count <= fits else None

    assert measure(seconds_of, TOKENS) == Budget(tokens=most * TOKENS, padded=most * TOKENS)
    assert [count for count in passes if count > fits] == ([2 * most] if fits else [1])


def test_a_number_of_pictures_that_fits_only_sometimes_does_not_count() -> None:
    passes: list[int] = []

    def seconds_of(count: int) -> float | None:
        passes.append(count)
        return None if passes.count(4) == 2 else 0.004

    assert measure(seconds_of, TOKENS).tokens == 2 * TOKENS


def test_measuring_a_slow_device_stops_after_one_pass() -> None:
    passes: list[int] = []

    def seconds_of(count: int) -> float:
        passes.append(count)
        return PATIENCE_S

    assert measure(seconds_of, TOKENS) == Budget(tokens=TOKENS, padded=TOKENS)
    assert passes == [1]
