"""What raw and interval make of a guidance, and how many steps a strength leaves."""

import pytest

from fluxserve.engine.sampling import guidance_at, last_share


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("guidance", [1.5, 3.5, 4.9, 60.0])
def test_an_interval_of_two_leaves_the_guidance_as_it_is_to_the_bit(sigma: float, guidance: float) -> None:
    assert guidance_at(sigma, guidance, raw=False, interval=2.0) == guidance


def test_a_long_interval_takes_of_it_where_the_composition_is_decided_and_a_short_one_adds() -> None:
    assert guidance_at(1.0, 3.5, raw=False, interval=4.0) == 1.0
    assert guidance_at(0.5, 3.5, raw=False, interval=4.0) == 2.25
    assert guidance_at(0.0, 3.5, raw=False, interval=4.0) == 3.5
    assert guidance_at(1.0, 3.5, raw=False, interval=1.0) == 4.75


def test_raw_takes_two_fifths_of_it_everywhere() -> None:
    assert guidance_at(0.0, 3.5, raw=True, interval=2.0) == guidance_at(1.0, 3.5, raw=True, interval=2.0) == 2.5


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.8, 4), (0.75, 3), (0.3, 2), (0.01, 1), (0.0, 0)])
def test_a_strength_leaves_the_last_steps_and_one_that_is_begun_is_made(strength: float, steps: int) -> None:
    levels = (1.0, 0.8, 0.6, 0.3, 0.0)
    left = last_share(levels, strength)
    assert left == levels[4 - steps :]
