"""Stages: one piece of work at a time, the lowest turn first, beside the steps or between them."""

import threading
from collections.abc import Callable, Iterator

import pytest

from fluxserve.engine.device import Runtime
from fluxserve.engine.stages import Stage

PATIENCE_S = 10.0


def stage_of(threads: int) -> tuple["Stage[str]", threading.Condition]:
    news = threading.Condition()
    return Stage("test", Runtime(device="cpu", dtype="float32", threads=threads, token_budget=1), news), news


def taken(stage: "Stage[str]", news: threading.Condition, count: int) -> list[tuple[str, str]]:
    """So many pieces of work, as they are done."""
    done: list[tuple[str, str]] = []
    while len(done) < count:
        with news:
            assert news.wait_for(lambda: stage.has_news, PATIENCE_S)
        done += stage.take()
    return done


class Gate:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def work(self) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "gate"


@pytest.fixture
def busy() -> Iterator[tuple["Stage[str]", threading.Condition, Gate]]:
    """A stage with a thread of its own that is at work."""
    stage, news = stage_of(1)
    gate = Gate()
    stage.submit("gate", 0.0, gate.work)
    assert gate.begun.wait(PATIENCE_S)
    yield stage, news, gate
    gate.go_on.set()


def says(text: str) -> Callable[[], str]:
    return lambda: text


def test_work_goes_on_beside_whoever_submits_it(busy: tuple["Stage[str]", threading.Condition, Gate]) -> None:
    stage, news, gate = busy
    assert list(stage.take()) == []
    gate.go_on.set()
    assert taken(stage, news, 1) == [("gate", "gate")]


def test_what_waits_is_done_in_the_order_of_turns_and_equal_turns_as_they_came(
    busy: tuple["Stage[str]", threading.Condition, Gate],
) -> None:
    stage, news, gate = busy
    for ref, turn in {"late": 2.0, "one": 1.0, "other": 1.0, "first": -1.0}.items():
        stage.submit(ref, turn, says(ref))
    gate.go_on.set()
    assert [ref for ref, _ in taken(stage, news, 5)] == ["gate", "first", "one", "other", "late"]


def test_what_is_dropped_is_not_done(busy: tuple["Stage[str]", threading.Condition, Gate]) -> None:
    stage, news, gate = busy
    done: list[str] = []
    stage.submit("gone", 1.0, lambda: done.append("gone") or "gone")
    stage.submit("stays", 2.0, says("stays"))
    stage.drop("gone")
    stage.drop("never heard of")
    gate.go_on.set()
    assert [ref for ref, _ in taken(stage, news, 2)] == ["gate", "stays"]
    assert done == []


def breaks() -> str:
    raise ZeroDivisionError


def test_what_breaks_breaks_whoever_takes(busy: tuple["Stage[str]", threading.Condition, Gate]) -> None:
    stage, news, gate = busy
    stage.submit("broken", 1.0, breaks)
    gate.go_on.set()
    with pytest.raises(ZeroDivisionError):
        taken(stage, news, 2)


def test_where_steps_take_all_cores_one_piece_is_done_each_time_somebody_takes() -> None:
    stage, news = stage_of(2)
    for ref, turn in {"late": 2.0, "first": 1.0}.items():
        stage.submit(ref, turn, says(ref))
    assert threading.active_count() == 1
    assert [list(stage.take()) for _ in range(3)] == [[("first", "first")], [("late", "late")], []]
    with news:
        assert not stage.has_news
