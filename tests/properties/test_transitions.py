"""The task machine's table by itself: what may follow what, and when a task is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.tasks.task import (
    ACTIVE,
    FINAL,
    MAX_ATTEMPTS,
    SUSPECT_AFTER,
    TRANSITIONS,
    Attempts,
    Event,
    State,
    sources,
    target,
)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_nothing_can_happen_to_a_final_state(state: State) -> None:
    assert state.is_final
    assert not state.is_active
    assert [event for event in Event if target(state, event) is not None] == []


@pytest.mark.parametrize("state", ACTIVE)
def test_every_active_state_can_end_well_and_badly_and_be_cancelled(state: State) -> None:
    reached = {state}
    while new := {to for (source, _), to in TRANSITIONS.items() if source in reached} - reached:
        reached |= new
    assert {State.READY, State.ERROR, State.CANCELLED} <= reached
    assert target(state, Event.FAILED) is State.ERROR
    assert target(state, Event.CANCELLED) is State.CANCELLED


@pytest.mark.parametrize("event", Event)
def test_sources_and_targets_are_the_same_table(event: Event) -> None:
    assert sources(event)
    assert {state for state in State if target(state, event) is not None} == set(sources(event))


def test_every_state_is_reached_by_some_event_but_the_one_in_which_a_task_only_begins() -> None:
    assert set(TRANSITIONS.values()) == set(State) - {State.PREPARING}


def test_only_a_running_task_is_drawn_or_lost() -> None:
    for event in (Event.FINISHED, Event.RELEASED):
        assert sources(event) == (State.RUNNING,)
    assert set(sources(Event.CONTENT_REFUSED)) == {State.RUNNING, State.FOLLOWING}  # and who waits for its picture
    assert sources(Event.CLAIMED) == (State.QUEUED,)


def test_a_task_that_is_drawn_gets_no_picture_of_another_and_only_a_follower_is_promoted() -> None:
    assert State.RUNNING not in sources(Event.ANSWERED)
    assert sources(Event.PROMOTED) == (State.FOLLOWING,)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=100))
def test_a_task_is_given_up_only_for_losses_that_were_its_fault_and_brought_nothing(
    losses: list[tuple[int, bool]],
) -> None:
    attempts = Attempts()
    for step, suspected in losses:
        before, attempts = attempts, attempts.after_loss(step=step, suspected=suspected)
        assert attempts.best_step == max(before.best_step, step)
        is_new = step > before.best_step and before.spoiled < SUSPECT_AFTER
        assert attempts.spoiled == (before.spoiled if not suspected else 1 if is_new else before.spoiled + 1)
        assert attempts.is_suspect == (attempts.spoiled >= SUSPECT_AFTER)
        assert attempts.is_exhausted == (attempts.spoiled >= MAX_ATTEMPTS)


@given(st.integers(0, 100), st.lists(st.integers(0, 100)))
def test_a_task_that_always_kills_its_worker_at_the_same_step_does_so_twice_and_once_alone(
    step: int, restarts: list[int]
) -> None:
    attempts, tries = Attempts(), []
    for lost_at in restarts:
        attempts = attempts.after_loss(step=min(lost_at, step), suspected=False)
    while not attempts.is_exhausted:
        tries.append(attempts.is_suspect)
        attempts = attempts.after_loss(step=step, suspected=True)
    assert tries == [False, False, True]
