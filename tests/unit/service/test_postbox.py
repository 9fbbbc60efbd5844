"""The postbox under a clock that is moved by hand: its limits for each receiver, and what they do for the others."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given

from fluxserve.service.postbox import BREAKER_FAILURES, BREAKER_PAUSE_S, HOST_AT_ONCE, Postbox, Waiting


@dataclass
class Play:
    """Receivers by how long they take and whether they answer well; what is due is tried again after a second."""

    box: Postbox
    seconds: dict[str, float] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    now: float = 0.0
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    #: When attempts began, by host; how long each delivery waited from when it was due to its good end.
    begun: dict[str, list[float]] = field(default_factory=dict)
    waited: dict[str, list[float]] = field(default_factory=dict)
    _ends: list[tuple[float, Waiting]] = field(default_factory=list)

    def put(self, host: str, *, account: str = "a", due_at: float | None = None) -> None:
        """One more for a host."""
        task_id = str(next(self.numbers))
        at = self.now if due_at is None else due_at
        self.box.put(Waiting(due_at=at, task_id=task_id, account_id=account, host=host))

    def run(self, until: float) -> None:
        """Attempts begin as soon as they may, and end when their receiver has taken its time."""
        while True:
            while (taken := self.box.take(self.now)) is not None:
                self.begun.setdefault(taken.host, []).append(self.now)
                heapq.heappush(self._ends, (self.now + self.seconds.get(taken.host, 0.01), taken))
            ends = self._ends[0][0] if self._ends else math.inf
            due = self.box.next_at()
            self.now = min(ends, due if due > self.now else math.inf)
            if self.now > until:
                self.now = until
                return
            while self._ends and self._ends[0][0] <= self.now:
                _, over = heapq.heappop(self._ends)
                good = over.host not in self.down
                self.box.done(over.task_id, good=good, now=self.now)
                if good:
                    self.waited.setdefault(over.host, []).append(self.now - over.due_at)
                else:
                    again = Waiting(self.now + 1.0, over.task_id, over.account_id, over.host, over.attempts + 1)
                    self.box.put(again)


def most_a_minute(times: list[float]) -> int:
    """In the worst minute."""
    return max(sum(begin <= at < begin + 60 for at in times) for begin in times)


def test_ten_thousand_webhooks_of_a_dead_host_make_few_calls_and_hold_nobody_up() -> None:
    """Target S11."""
    play = Play(Postbox(1024), seconds={"dead": 5.0}, down={"dead"})
    for _ in range(10_000):
        play.put("dead")
    for second in range(600):
        play.put("alive", account="b", due_at=float(second))
    play.run(3600.0)
    assert most_a_minute(play.begun["dead"]) <= 50
    assert len(play.begun["dead"]) < 3600 / BREAKER_PAUSE_S + BREAKER_FAILURES + HOST_AT_ONCE + 5
    assert len(play.waited["alive"]) == 600
    assert max(play.waited["alive"]) < 2.0


def test_a_hundred_slow_receivers_hold_no_other_up() -> None:
    """Target R11b, each receiver an account of its own."""
    slow = {f"slow{number}": 29.0 for number in range(100)}
    play = Play(Postbox(1024), seconds=slow)
    for host in slow:
        for _ in range(100):
            play.put(host, account=host)
    for second in range(120):
        play.put("alive", account="b", due_at=float(second))
    play.run(150.0)
    assert len(play.waited["alive"]) == 120
    assert max(play.waited["alive"]) < 2.0


def test_one_account_with_countless_slow_receivers_leaves_room_for_others() -> None:
    play = Play(Postbox(64), seconds={f"slow{number}": 29.0 for number in range(1000)})
    for host in play.seconds:
        play.put(host, account="greedy")
    play.put("alive", account="b", due_at=1.0)
    play.run(5.0)
    assert play.box.under_way == 16
    assert max(play.waited["alive"]) < 0.1


def test_a_host_is_called_by_few_at_once_and_at_a_pace() -> None:
    play = Play(Postbox(1024), seconds={"quick": 0.001, "slow": 1.0})
    for _ in range(300):
        play.put("quick")
        play.put("slow")
    play.run(2.0)
    quick = play.begun["quick"]
    assert max(sum(begin <= at < begin + 1 for at in quick) for begin in quick) <= 50 + HOST_AT_ONCE
    assert len(quick) > 90
    assert len(play.begun["slow"]) <= 3 * HOST_AT_ONCE


def test_a_host_that_comes_back_is_found_by_one_probe_and_then_gets_all() -> None:
    play = Play(Postbox(1024), down={"host"})
    for _ in range(100):
        play.put("host")
    play.run(299.0)
    before = len(play.begun["host"])
    assert before < BREAKER_FAILURES + HOST_AT_ONCE
    play.down.clear()
    play.run(330.0)
    first, second = play.begun["host"][before : before + 2]
    assert second >= first + 0.01  # the probe is back before anything else begins
    assert len(play.waited["host"]) == 100


def test_what_is_not_due_is_not_taken_and_what_is_put_again_is_taken_once() -> None:
    box = Postbox(10)
    box.put(Waiting(100.0, "t", "a", "h"))
    assert (box.take(99.9), box.next_at(), len(box)) == (None, 100.0, 1)
    box.put(Waiting(50.0, "t", "a", "h"))
    taken = box.take(60.0)
    assert taken is not None
    assert taken.due_at == 50.0
    box.put(Waiting(55.0, "t", "a", "h"))  # a replay while it is under way
    assert box.take(1000.0) is None
    box.done("t", good=True, now=61.0)
    assert (box.take(1000.0), len(box), box.under_way, box.next_at()) == (None, 0, 0, math.inf)


@given(
    st.lists(
        st.tuples(st.sampled_from("put take good bad unknown".split()), st.integers(0, 11), st.floats(0, 400)),  # noqa: SIM905
        max_size=200,
    )
)
def test_nothing_is_lost_or_taken_twice_whatever_happens(steps: list[tuple[str, int, float]]) -> None:
    box, now = Postbox(8), 0.0
    waiting: set[str] = set()
    under_way: dict[str, Waiting] = {}
    for step, number, seconds in steps:
        now += seconds / 10
        task_id = str(number)
        if step == "put" and task_id not in under_way:
            box.put(Waiting(now + seconds, task_id, str(number % 2), f"h{number % 3}"))
            waiting.add(task_id)
        elif step == "take" and (taken := box.take(now)) is not None:
            assert taken.due_at <= now
            waiting.remove(taken.task_id)
            under_way[taken.task_id] = taken
        elif under_way and step in ("good", "bad", "unknown"):
            over = under_way.pop(next(iter(under_way)))
            box.done(over.task_id, good={"good": True, "bad": False}.get(step), now=now)
        assert (len(box), box.under_way) == (len(waiting), len(under_way))
    for _ in range(len(waiting) + len(under_way)):  # with time, all of it comes
        for task_id in list(under_way):
            box.done(task_id, good=True, now=now)
            del under_way[task_id]
        now += 1000.0
        while (taken := box.take(now)) is not None:
            waiting.remove(taken.task_id)
            under_way[taken.task_id] = taken
            box.done(taken.task_id, good=True, now=now)
            del under_way[taken.task_id]
            now += 1.0
    assert not waiting
