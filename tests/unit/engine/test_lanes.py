"""Lanes: one piece of work at a time, by turn, beside the steps or between them, and nobody is passed by twice."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from fluxserve.engine.device import Runtime
from fluxserve.engine.lanes import Lane

PATIENCE_S = 10.0


def lane_of(threads: int, name: str = "beside") -> tuple["Lane[str]", threading.Condition]:
    news = threading.Condition()
    return Lane(name, Runtime(device="cpu", dtype="float32", threads=threads, token_budget=1), news), news


def taken(lane: "Lane[str]", news: threading.Condition, count: int) -> list[tuple[str, str]]:
    """So many pieces of work, as they are done."""
    done: list[tuple[str, str]] = []
    while len(done) < count:
        with news:
            assert news.wait_for(lambda: lane.has_news, PATIENCE_S)
        done += lane.take()
    return done


def test_kernels_use_as_many_threads_in_a_lane_as_in_the_steps() -> None:
    """Each thread of a process has a number of its own, and other numbers may make other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        news = threading.Condition()
        lane = Lane[int]("counted", Runtime(device="cpu", dtype="float32", threads=1, token_budget=1), news)
        lane.submit("a", 0.0, torch.get_num_threads)
        with news:
            assert news.wait_for(lambda: lane.has_news, PATIENCE_S)
        assert list(lane.take()) == [("a", 1)]
    finally:
        torch.set_num_threads(before)


class Gate:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def work(self) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "gate"


@pytest.fixture
def busy() -> Iterator[tuple["Lane[str]", threading.Condition, Gate]]:
    """A lane with a thread of its own that is at work."""
    lane, news = lane_of(1)
    gate = Gate()
    lane.submit("gate", 0.0, gate.work)
    assert gate.begun.wait(PATIENCE_S)
    yield lane, news, gate
    gate.go_on.set()


def says(text: str) -> Callable[[], str]:
    return lambda: text


def test_work_goes_on_beside_whoever_submits_it(busy: tuple["Lane[str]", threading.Condition, Gate]) -> None:
    lane, news, gate = busy
    assert list(lane.take()) == []
    gate.go_on.set()
    assert taken(lane, news, 1) == [("gate", "gate")]


def test_what_waits_is_done_in_the_order_of_turns_and_equal_turns_as_they_came(
    busy: tuple["Lane[str]", threading.Condition, Gate],
) -> None:
    lane, news, gate = busy
    for ref, turn in {"one": 1.0, "other": 1.0, "late": 2.0, "first": -1.0}.items():
        lane.submit(ref, turn, says(ref))
    gate.go_on.set()
    assert [ref for ref, _ in taken(lane, news, 5)] == ["gate", "first", "one", "other", "late"]


def test_a_short_one_waits_for_two_pieces_at_most_however_many_came_before_it() -> None:
    lane, _ = lane_of(2, "between")
    for number in range(9):
        lane.submit(str(number), 1.0 + number, says("long"))
    for passed_by in range(3):
        lane.submit("short", 0.0, says("short"))
        order = [next(lane.take())[0] for _ in range(2)]
        assert "short" in order, passed_by


def test_who_waits_longest_is_passed_by_once_only_however_many_lower_turns_come() -> None:
    lane, _ = lane_of(2, "between")
    lane.submit("large", 1000.0, says("large"))
    order = []
    for number in range(4):
        lane.submit(f"tiny {number}", float(number), says("tiny"))
        order.append(next(lane.take())[0])
    assert order == ["tiny 0", "large", "tiny 1", "tiny 2"]


def test_what_is_withdrawn_is_not_done(busy: tuple["Lane[str]", threading.Condition, Gate]) -> None:
    lane, news, gate = busy
    done: list[str] = []
    lane.submit("gone", 1.0, lambda: done.append("gone") or "gone")
    lane.submit("stays", 2.0, says("stays"))
    assert lane.withdraw("gone")
    assert not lane.withdraw("never heard of")
    gate.go_on.set()
    assert [ref for ref, _ in taken(lane, news, 2)] == ["gate", "stays"]
    assert done == []


def test_what_is_done_and_forgotten_before_it_is_taken_does_not_come_out() -> None:
    lane, news = lane_of(1)
    lane.submit("gone", 1.0, says("gone"))
    with news:
        assert news.wait_for(lambda: lane.has_news, PATIENCE_S)
    assert not lane.withdraw("gone")
    lane.forget("gone")
    assert list(lane.take()) == []


def breaks() -> str:
    raise ZeroDivisionError


def test_what_breaks_breaks_whoever_takes(busy: tuple["Lane[str]", threading.Condition, Gate]) -> None:
    lane, news, gate = busy
    lane.submit("broken", 1.0, breaks)
    gate.go_on.set()
    with pytest.raises(ZeroDivisionError):
        taken(lane, news, 2)


def test_where_steps_take_all_cores_one_piece_is_done_each_time_somebody_takes() -> None:
    lane, news = lane_of(2, "between")
    for ref, turn in {"late": 2.0, "first": 1.0}.items():
        lane.submit(ref, turn, says(ref))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fluxserve-between")]
    assert [list(lane.take()) for _ in range(3)] == [[("first", "first")], [("late", "late")], []]
    with news:
        assert not lane.has_news
