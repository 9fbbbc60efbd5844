"""The watchdog: how long it waits, and that nothing in its process can hold it up."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from builders import generation
from fluxserve.catalogue import Size
from fluxserve.worker.watchdog import HANG_FACTOR, Watchdog, step_work


class Clock:
    """A watchdog that is never let off, and when it would have been."""

    def __init__(self, patience: float = 30.0) -> None:
        self.armed: list[float | None] = []
        self.dog = Watchdog(patience, arm=self.armed.append, disarm=lambda: self.armed.append(None))

    def expect(self, work: float, *, since: float, now: float) -> float | None:
        """How long it waits from `now` on, if it was set anew."""
        before = len(self.armed)
        self.dog.expect(work, since=since, now=now)
        return self.armed[-1] if len(self.armed) > before else None


def test_work_grows_with_the_size_and_faster_than_the_size() -> None:
    small, medium, large = (step_work(generation(size=Size(side, side))) for side in (256, 512, 1024))
    assert small == 1.0
    assert 4 * medium > large > 3 * medium > 3.0


def test_it_waits_for_its_patience_where_steps_are_quick() -> None:
    clock = Clock()
    clock.dog.heard(0.1, 1.0)
    assert clock.expect(8.0, since=100.0, now=100.0) == 30.0


def test_it_waits_longer_for_more_work_and_for_slow_work() -> None:
    clock = Clock()
    clock.dog.heard(6.0, 2.0)
    assert clock.expect(1.0, since=0.0, now=0.0) == 30.0
    assert clock.expect(4.0, since=0.0, now=0.0) == pytest.approx(HANG_FACTOR * 3.0 * 4.0)


def test_before_the_first_news_it_waits_as_long_as_warming_took() -> None:
    clock = Clock()
    clock.dog.warmed(70.0)
    assert clock.expect(2.0, since=0.0, now=0.0) == pytest.approx(140.0)


def test_one_slow_step_is_remembered_through_quick_ones() -> None:
    """A tenth less with each: what took so long once may do so again."""
    clock = Clock()
    clock.dog.heard(100.0, 1.0)
    for _ in range(3):
        clock.dog.heard(0.1, 1.0)
    assert clock.expect(1.0, since=0.0, now=0.0) == pytest.approx(HANG_FACTOR * 72.9)


def test_one_slow_step_is_forgotten_after_a_while() -> None:
    clock = Clock()
    clock.dog.heard(100.0, 1.0)
    for _ in range(60):
        clock.dog.heard(0.1, 1.0)
    assert clock.expect(1.0, since=0.0, now=0.0) == 30.0


def test_its_moment_is_counted_from_the_last_news_whatever_comes_in_between() -> None:
    clock = Clock()
    assert clock.expect(1.0, since=0.0, now=0.0) == 30.0
    assert clock.expect(1.0, since=0.0, now=20.0) is None
    clock.dog.heard(40.0, 10.0)
    assert clock.expect(1.0, since=0.0, now=20.0) == pytest.approx(20.0)
    assert clock.expect(1.0, since=20.0, now=20.0) == pytest.approx(40.0)


def test_it_rests_once() -> None:
    clock = Clock()
    clock.dog.rest()
    clock.expect(1.0, since=0.0, now=0.0)
    clock.dog.rest()
    clock.dog.rest()
    assert clock.armed == [30.0, None]
    assert clock.expect(1.0, since=5.0, now=5.0) == 30.0


STUCK = """
import re, time
from fluxserve.worker.watchdog import Watchdog
dog = Watchdog(0.3)
now = time.monotonic()
dog.expect(1.0, since=now, now=now)
re.match("(a+)+$", "a" * 64 + "b")  # takes for ever, and never lets another thread of Python run
"""
CALM = """
import time
from fluxserve.worker.watchdog import Watchdog
dog = Watchdog(0.3)
now = time.monotonic()
dog.expect(1.0, since=now, now=now)
dog.rest()
time.sleep(1.0)  # what does not happen in it is what this is about
"""


def test_a_process_that_lets_no_thread_run_is_ended_and_says_where_it_stood() -> None:
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", STUCK], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "line 7" in ended.stderr
    assert time.monotonic() - began < 60


def test_a_process_that_is_no_longer_watched_is_left_alone() -> None:
    ended = subprocess.run([sys.executable, "-c", CALM], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
