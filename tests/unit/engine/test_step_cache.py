"""Which steps are foretold follows from their number, and so does what a picture can go on from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.engine.step_cache import Velocity, foretold, is_made, needs_nothing
from fluxserve.settings import StepCacheChoice

CACHES: list[StepCacheChoice] = ["taylor", "first-block"]


def told(cache: StepCacheChoice, steps: int) -> str:
    return "".join(" ."[is_made(cache, step, steps)] for step in range(steps))


def test_of_28_steps_a_third_or_a_half_of_those_after_the_first_are_foretold() -> None:
    assert told("off", 28) == "." * 28
    assert told("taylor", 28) == "...... .. .. .. .. .. .. .. "[:27] + "."
    assert told("first-block", 28) == "..... . . . . . . . . . . . "[:27] + "."


@pytest.mark.parametrize("cache", CACHES)
def test_few_steps_are_all_made(cache: StepCacheChoice) -> None:
    assert told(cache, 4) == "...."
    assert told(cache, 7) == "......."


@given(cache=st.sampled_from(CACHES), steps=st.integers(1, 100))
def test_first_and_last_steps_are_made_and_no_two_foretold_ones_follow_each_other(
    cache: StepCacheChoice, steps: int
) -> None:
    line = told(cache, steps)
    assert line[:2] == ".."[:steps]
    assert line[-1] == "."
    assert "  " not in line


@given(cache=st.sampled_from(CACHES), steps=st.integers(8, 60), step=st.integers(0, 59))
def test_whoever_goes_on_from_a_state_that_needs_nothing_makes_all_that_it_needs(
    cache: StepCacheChoice, steps: int, step: int
) -> None:
    takes = {"taylor": 2, "first-block": 1}[cache]
    if step >= steps or not needs_nothing(cache, step, steps):
        return
    made = 0
    for later in range(step, steps):
        if is_made(cache, later, steps):
            made += 1
        else:
            assert made >= takes


def test_a_foretold_velocity_lies_on_the_line_through_the_last_two() -> None:
    made = [Velocity(sigma=0.8, velocity=torch.tensor([1.0])), Velocity(sigma=0.6, velocity=torch.tensor([2.0]))]
    torch.testing.assert_close(foretold(made, 0.5), torch.tensor([2.5]))
