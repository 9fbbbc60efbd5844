"""What a waiting task is told of its turn: its position, and seconds only where somebody knows."""

from __future__ import annotations

import pytest

from builders import NOW, generation
from fluxserve.service.forecast import QUIET_S, Forecast, Head, Outlook
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import Attempts, State

DEV, SCHNELL = ("flux-dev",), ("flux-schnell",)


class House:
    """A forecast whose clock is set by hand; tasks are known by their ids."""

    def __init__(self) -> None:
        self.now = NOW
        self.forecast = Forecast(lambda: self.now)
        self.turns: dict[str, tuple[float, float, str]] = {}

    def put(self, task_id: str, state: State, worker_id: str | None = None, progress: float = 0.0) -> None:
        """The task is in this state now."""
        turn, work, model = self.turns[task_id]
        self.forecast.put(
            TaskRecord(
                id=task_id, account_id="a", key_id="k", state=state, generation=generation(model=model), warnings=(),
                dialect="bfl", origin="", webhook_url=None, cost=0, turn=turn, work=work, fence=1, attempts=Attempts(),
                worker_id=worker_id, recipe=None, repeatable=False, created_at=NOW, started_at=None, finished_at=None,
                object_name=None, drawn=None, reason=None, refusal=None,
            ),
            progress,
        )  # fmt: skip

    def wait(self, task_id: str, *, turn: float, work: float = 100.0, model: str = "flux-dev") -> None:
        """A task that waits."""
        self.turns[task_id] = turn, work, model
        self.put(task_id, State.QUEUED)

    def draw(self, task_id: str, seconds: float, worker_id: str = "w1") -> None:
        """A worker draws it from beginning to end."""
        self.put(task_id, State.RUNNING, worker_id)
        self.now += seconds
        self.put(task_id, State.READY)

    def look(self, task_id: str) -> Outlook:
        """What is known of the task."""
        outlook = self.forecast.outlook(task_id)
        assert outlook is not None
        return outlook


def test_a_task_is_told_how_many_are_before_it_by_their_turns() -> None:
    house = House()
    for task_id, turn in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
        house.wait(task_id, turn=turn)
    assert [house.look(task_id).position for task_id in "abc"] == [0, 1, 2]
    house.put("a", State.CANCELLED)
    assert [house.look(task_id).position for task_id in "bc"] == [0, 1]
    assert house.forecast.outlook("a") is None


def test_of_equal_turns_the_one_that_came_first_is_first_also_after_it_was_lost() -> None:
    house = House()
    house.wait("a", turn=1.0)
    house.wait("b", turn=1.0)
    house.put("a", State.RUNNING, "w1")
    house.forecast.advance("a", 0.1)
    assert house.look("b").position == 0
    house.put("a", State.QUEUED)
    assert [house.look(task_id).position for task_id in "ab"] == [0, 1]


def test_nothing_is_said_of_seconds_before_a_worker_of_the_model_has_drawn_anything() -> None:
    house = House()
    house.wait("a", turn=1.0)
    assert house.look("a") == Outlook(position=0, seconds=None)
    house.forecast.arrive("w1", DEV)
    house.wait("b", turn=2.0)
    house.put("a", State.RUNNING, "w1")
    assert house.look("a") == Outlook(position=0, seconds=None)
    assert house.look("b").seconds is None


def test_what_a_worker_holds_without_having_made_a_step_for_it_waits_too() -> None:
    house = House()
    for task_id, turn in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)):
        house.wait(task_id, turn=turn)
    for task_id in "abc":
        house.put(task_id, State.RUNNING, "w1")
        house.forecast.take_up(task_id)
    assert [house.look(task_id).position for task_id in "abcd"] == [0, 1, 2, 3]
    house.forecast.advance("b", 0.1)
    assert [house.look(task_id).position for task_id in "abcd"] == [0, None, 1, 2]
    house.put("b", State.QUEUED, progress=0.1)
    assert [house.look(task_id).position for task_id in "abcd"] == [0, 1, 2, 3]


def test_what_is_drawn_of_a_task_has_the_step_in_it_that_is_being_made() -> None:
    house = House()
    house.wait("a", turn=1.0)
    assert [house.forecast.drawn(task_id) for task_id in ("a", "nobody")] == [0.0, 0.0]
    house.put("a", State.RUNNING, "w1")
    assert house.forecast.drawn("a") == 0.0
    house.forecast.take_up("a")
    assert house.forecast.drawn("a") == 1 / 28
    house.forecast.advance("a", 27 / 28)
    assert house.forecast.drawn("a") == 1.0
    house.put("a", State.QUEUED, progress=0.5)
    assert house.forecast.drawn("a") == 0.5


def test_seconds_follow_from_the_work_before_a_task_and_the_speed_that_was_measured() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.wait("first", turn=1.0, work=100.0)
    house.draw("first", 5.0)  # 20 a second
    house.wait("a", turn=2.0, work=100.0)
    house.wait("b", turn=3.0, work=40.0)
    house.put("a", State.RUNNING, "w1")
    assert house.look("a") == Outlook(position=0, seconds=5.0)
    assert house.look("b") == Outlook(position=1, seconds=8.5)  # 40 of 100 take 2 s by work, and 5 s by tasks
    house.forecast.advance("a", 0.5)
    assert house.look("a") == Outlook(position=None, seconds=2.5)
    assert house.look("b") == Outlook(position=0, seconds=6.0)


def test_what_a_short_task_overtakes_is_not_counted_before_it() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    for work in (10.0, 100.0, 900.0):
        house.wait("first", turn=1.0, work=work)
        house.draw("first", work / 10)
    house.wait("long", turn=900.0, work=900.0)
    house.put("long", State.RUNNING, "w1")
    house.wait("short", turn=10.0, work=10.0)
    assert house.look("short") == Outlook(position=0, seconds=pytest.approx(1.0, abs=0.5))
    assert house.look("long") == Outlook(position=1, seconds=pytest.approx(90.0, rel=0.01))
    house.put("short", State.RUNNING, "w1")
    assert house.look("long") == Outlook(position=1, seconds=pytest.approx(91.0, rel=0.01))


def test_workers_share_what_waits_but_each_task_is_drawn_by_one() -> None:
    house = House()
    for name in ("w1", "w2"):
        house.forecast.arrive(name, DEV)
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    for number in range(4):
        house.wait(str(number), turn=2.0 + number)
    assert house.look("3").seconds == 300 / 20 + 100 / 10
    house.forecast.leave("w2")
    assert house.look("3").seconds == 400 / 10


def test_what_no_common_worker_draws_is_in_another_line() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.forecast.arrive("w2", SCHNELL)
    house.wait("dev", turn=1.0)
    house.wait("schnell", turn=2.0, model="flux-schnell")
    assert house.look("schnell").position == 0
    house.forecast.arrive("w3", (*DEV, *SCHNELL))
    assert house.look("schnell").position == 1
    house.draw("dev", 1.0, "w1")
    assert house.look("schnell").seconds is None  # neither of its workers has drawn anything yet


def test_a_speed_is_forgotten_with_the_workers_that_had_it() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    house.wait("a", turn=2.0)
    assert house.look("a").seconds == 10.0
    house.forecast.leave("w1")
    assert house.look("a").seconds is None


def test_newer_speeds_outweigh_older_ones() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    for number in range(400):
        house.wait(f"t{number}", turn=1.0 + number)
        house.draw(f"t{number}", 10.0 if number < 100 else 1.0)
    house.wait("a", turn=1000.0)
    seconds = house.look("a").seconds
    assert seconds is not None
    assert 1.0 <= seconds < 1.05


def test_pictures_that_end_together_make_no_worker_look_faster() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    for number in range(8):
        house.wait(f"t{number}", turn=1.0)
        house.put(f"t{number}", State.RUNNING, "w1")
    house.now += 40.0
    for number in range(8):
        house.put(f"t{number}", State.READY)
    house.wait("a", turn=2.0)
    seconds = house.look("a").seconds
    assert seconds is not None
    assert 4.0 < seconds < 5.5


def test_what_a_worker_did_not_draw_itself_does_not_make_it_look_faster() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.wait("resumed", turn=1.0)
    house.put("resumed", State.RUNNING, "w1", progress=0.9)
    house.now += 1.0
    house.put("resumed", State.READY)
    house.wait("a", turn=2.0)
    seconds = house.look("a").seconds
    assert seconds is not None
    assert round(seconds, 6) == 10.0


def test_where_nothing_moves_for_long_nobody_pretends_to_know() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    house.wait("a", turn=2.0)
    house.put("a", State.RUNNING, "w1")
    house.wait("b", turn=3.0)
    house.now += QUIET_S + 1
    assert house.look("a").seconds is None
    assert house.look("b") == Outlook(position=1, seconds=None)
    house.forecast.advance("a", 0.1)
    assert house.look("a").seconds == 9.0


def test_a_clock_that_goes_back_makes_no_number_negative() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    for task_id, seconds in (("a", 10.0), ("b", -3600.0), ("c", 10.0)):
        house.wait(task_id, turn=1.0)
        house.draw(task_id, seconds)
    house.wait("d", turn=2.0)
    seconds_left = house.look("d").seconds
    assert seconds_left is not None
    assert seconds_left > 0


def test_a_task_that_got_an_earlier_turn_moves_up() -> None:
    house = House()
    house.wait("a", turn=1.0)
    house.wait("b", turn=2.0)
    house.forecast.move_up("b", 3.0)
    assert house.look("b").position == 1
    house.forecast.move_up("b", 0.5)
    assert [house.look(task_id).position for task_id in "ab"] == [1, 0]
    house.forecast.move_up("nobody", 0.1)


def test_the_head_is_the_lowest_turn_of_what_waits_for_a_model() -> None:
    house = House()
    assert house.forecast.head(DEV) is None
    house.wait("a", turn=5.0)
    house.wait("b", turn=2.0, model="flux-schnell")
    assert house.forecast.head(DEV) == Head(turn=5.0, model="flux-dev")
    assert house.forecast.head((*DEV, *SCHNELL)) == Head(turn=2.0, model="flux-schnell")
    house.put("a", State.RUNNING, "w1")
    assert house.forecast.head(DEV) is None


def test_weights_that_have_to_come_count_once_whatever_needs_them() -> None:
    house = House()
    house.forecast.arrive("w1", (*DEV, *SCHNELL))
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    for number, model in enumerate(("flux-dev", "flux-schnell", "flux-schnell", "flux-dev")):
        house.wait(str(number), turn=2.0 + number, model=model)
    house.forecast.swap("w1", {frozenset(SCHNELL): 7.0})
    assert [house.look(str(number)).seconds for number in range(4)] == [10.0, 27.0, 37.0, 47.0]
    for number in range(4):
        house.put(str(number), State.RUNNING, "w1")
    assert [house.look(str(number)).seconds for number in range(4)] == [10.0, 27.0, 37.0, 47.0]
    house.forecast.swap("w1", {})
    assert [house.look(str(number)).seconds for number in range(4)] == [10.0, 20.0, 30.0, 40.0]


def test_models_that_share_weights_wait_for_them_together() -> None:
    house = House()
    house.forecast.arrive("w1", (*DEV, *SCHNELL))
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    house.wait("a", turn=2.0)
    house.wait("b", turn=3.0, model="flux-schnell")
    house.forecast.swap("w1", {frozenset((*DEV, *SCHNELL)): 7.0})
    assert house.look("b").seconds == 27.0


def test_weights_that_one_of_the_workers_has_need_not_come() -> None:
    house = House()
    for name in ("w1", "w2"):
        house.forecast.arrive(name, DEV)
    house.wait("first", turn=1.0)
    house.draw("first", 10.0)
    house.wait("a", turn=2.0)
    house.forecast.swap("w1", {frozenset(DEV): 7.0})
    assert house.look("a").seconds == 10.0
    house.forecast.swap("w2", {frozenset(DEV): 5.0})
    assert house.look("a").seconds == 15.0
    house.forecast.leave("w2")
    assert house.look("a").seconds == 17.0


def test_waiting_for_weights_makes_no_worker_look_slower() -> None:
    house = House()
    house.forecast.arrive("w1", DEV)
    house.wait("first", turn=1.0)
    house.put("first", State.RUNNING, "w1")
    house.now += 30.0
    house.forecast.swap("w1", {}, waited=20.0)
    house.put("first", State.READY)
    house.wait("a", turn=2.0)
    assert house.look("a").seconds == 10.0
