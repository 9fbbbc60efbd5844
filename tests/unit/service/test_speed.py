"""How fast a worker is: seconds for each task and for each TFLOP, told apart by tasks of different sizes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.service.speed import Speed

WORKS = (15.0, 200.0, 600.0, 2000.0)


def taught(each: float, per_work: float, *works: float, noise: float = 0.0) -> Speed:
    """A worker that takes so many seconds for each task and for each TFLOP."""
    speed, rng = Speed(), random.Random(1)
    for work in works:
        speed.learn(1.0, work, (each + per_work * work) * (1 + noise * rng.uniform(-1, 1)))
    return speed


def test_nothing_is_known_before_anything_was_drawn() -> None:
    assert Speed().seconds_for(1.0, 100.0) is None


@pytest.mark.parametrize(("each", "per_work"), [(0.5, 0.0), (0.0, 0.01), (0.5, 0.001)])
@pytest.mark.parametrize("work", WORKS)
def test_seconds_for_each_task_and_for_its_work_are_told_apart(each: float, per_work: float, work: float) -> None:
    speed = taught(each, per_work, *(WORKS * 5), noise=0.2)
    assert speed.seconds_for(1.0, work) == pytest.approx(each + per_work * work, rel=0.25, abs=0.35)


def test_of_tasks_like_those_that_were_drawn_it_is_known_how_long_they_take() -> None:
    speed = taught(2.0, 0.0, *([100.0] * 8))
    assert speed.seconds_for(1.0, 100.0) == pytest.approx(2.0)
    assert speed.seconds_for(7.0, 700.0) == pytest.approx(14.0)


def test_of_tasks_unlike_all_that_were_drawn_nothing_is_said() -> None:
    speed = taught(2.0, 0.0, *([100.0] * 8))
    assert speed.seconds_for(1.0, 2000.0) is None
    assert speed.seconds_for(1.0, 10.0) is None
    speed.learn(1.0, 2000.0, 2.0)
    assert speed.seconds_for(1.0, 2000.0) == pytest.approx(2.0, rel=0.1)


def test_what_takes_no_time_at_all_is_not_known() -> None:
    assert taught(0.0, 0.0, 100.0).seconds_for(1.0, 100.0) is None


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1, 1e5), st.floats(0, 1e4)), min_size=1, max_size=40))
def test_no_number_of_seconds_is_negative_and_all_that_was_drawn_takes_as_long_as_it_took(
    seen: list[tuple[float, float, float]],
) -> None:
    speed = Speed()
    for part, work, seconds in seen:
        speed.learn(part, part * work, seconds)
    for work in (1.0, 1e5):
        assert (speed.seconds_for(1.0, work) or 0.0) >= 0.0
    again = speed.seconds_for(speed.tasks, speed.work)
    assert again == pytest.approx(speed.seconds) if speed.seconds else again is None
