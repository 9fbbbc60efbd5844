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


def test_measuring_a_slow_device_stops_after_one_pass() -> None:
    passes: list[int] = []

    def seconds_of(count: int) -> float:
        passes.append(count)
        return PATIENCE_S

    assert measure(seconds_of, TOKENS) == Budget(tokens=TOKENS, padded=TOKENS)
    assert passes == [1]
