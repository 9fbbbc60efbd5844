"""Fair turns: keys share the drawing by their weights, short tasks do not wait for long ones, nothing waits for ever.

Workers are simulated by the step, as they are: each holds what it claimed, draws the lowest turn first, is full when
it holds its capacity, and is then still handed what comes before that, up to as much again.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.tasks.turns import (
    AGEING,
    FRESH,
    SIZES,
    Place,
    Stay,
    given_back,
    moved_clock,
    next_place,
    size_of,
)

STEP = 10.0
CAPACITY = 4


@dataclass(eq=False)
class Job:
    """A task of so many steps of STEP each."""

    key: str
    steps: int
    place: Place
    number: int
    came_at: int
    done: int = 0
    ended_at: int | None = None

    @property
    def order(self) -> tuple[float, int]:
        """Lowest first."""
        return self.place.turn, self.number


@dataclass
class Server:
    """The queue with its clock, and workers; a round is one step of each worker that has something to draw."""

    weights: dict[str, float]
    workers: int = 1
    clock: float = 0.0
    round: int = 0
    ends: dict[str, tuple[float, ...]] = field(default_factory=dict)
    queue: list[Job] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self.held: list[list[Job]] = [[] for _ in range(self.workers)]

    def submit(self, key: str, steps: int) -> Job:
        """A task is accepted."""
        work = steps * STEP
        place, self.ends[key] = next_place(
            self.ends.get(key, FRESH), self.clock, work / self.weights.get(key, 1.0), work
        )
        job = Job(key, steps, place, next(self.numbers), self.round)
        self.queue.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Its key no longer wants it: the step that is under way is drawn for nothing."""
        drawn = min(job.steps, job.done + 1) if job.done else 0
        for jobs in (self.queue, *self.held):
            if job in jobs:
                jobs.remove(job)
        others = [one for one in (*self.queue, *itertools.chain(*self.held)) if one.key == job.key]
        self.ends[job.key], places = given_back(
            self.ends[job.key], self.clock, stay(job), drawn / job.steps, [stay(one) for one in others]
        )
        for one, place in zip(others, places, strict=True):
            one.place = place

    def step(self) -> None:
        """Claims, then one step of each worker."""
        self.round += 1
        while self._claim():
            pass
        for mine in self.held:
            if mine:
                job = min(mine, key=lambda one: one.order)
                job.done += 1
                self.served[job.key] += STEP
                if job.done == job.steps:
                    job.ended_at = self.round
                    mine.remove(job)

    def _claim(self) -> bool:
        """The head of the queue goes where it is drawn at once, if it can, and to whoever holds fewest."""
        head = min(self.queue, key=lambda one: one.order, default=None)
        takers = [mine for mine in self.held if head is not None and _takes(mine, head)]
        if head is None or not takers:
            return False
        at_once = [mine for mine in takers if all(head.order < job.order for job in mine)]
        mine = min(at_once or takers, key=len)
        earliest = min((job.place.start for job in mine), default=head.place.start)
        length = head.place.turn - head.place.start
        self.clock = moved_clock(self.clock, head=head.place, earliest=earliest, length=length)
        self.queue.remove(head)
        mine.append(head)
        return True

    def run_until_ended(self, jobs: list[Job]) -> None:
        """Step until all of them are drawn."""
        while any(job.ended_at is None for job in jobs):
            self.step()


def _takes(mine: list[Job], head: Job) -> bool:
    turns = sorted(job.place.turn for job in mine)
    is_full = len(mine) >= CAPACITY
    return not is_full or (len(mine) < 2 * CAPACITY and head.place.turn < turns[1])


def stay(job: Job) -> Stay:
    """Where it is, and its work."""
    return Stay(place=job.place, work=job.steps * STEP)


works = st.floats(0.1, 1e6)


@given(works, works)
def test_a_longer_task_is_of_no_smaller_size_and_one_four_times_as_long_of_a_larger(one: float, other: float) -> None:
    short, long = sorted((one, other))
    assert 0 <= size_of(short) <= size_of(long) < SIZES
    if short >= 1 and long >= 4.01 * short and size_of(short) < SIZES - 1:
        assert size_of(long) > size_of(short)


@given(st.lists(st.tuples(works, st.floats(0, 100)), min_size=1, max_size=50), st.floats(0.01, 100))
def test_a_task_never_starts_before_the_clock_nor_before_shorter_work_of_its_key(
    tasks: list[tuple[float, float]], weight: float
) -> None:
    ends, clock = FRESH, 0.0
    for work, passed in tasks:
        clock += passed
        before = ends
        place, ends = next_place(ends, clock, work / weight, work)
        assert place.start >= max(clock, *before[: size_of(work) + 1])
        assert place.turn - place.start > 0 or place.start > 1e12 * work / weight
        assert list(ends) == sorted(ends)
        assert all(new >= old for new, old in zip(ends, before, strict=True))
        assert ends[: size_of(work)] == before[: size_of(work)]


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 1e4), st.floats(0, 1e6))
def test_the_clock_never_goes_back_nor_beyond_the_turn_of_the_claim(
    clock: float, start: float, length: float, earliest: float
) -> None:
    head = Place(start=start, turn=start + length)
    moved = moved_clock(clock, head=head, earliest=earliest, length=length)
    assert moved >= clock
    assert moved <= max(clock, head.turn)


mixes = st.lists(st.integers(1, 50), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0.5, 1.0, 2.0, 4.0])), min_size=2, max_size=5),
    st.integers(1, 3),
    st.integers(100, 800),
)
def test_keys_that_always_wait_share_the_drawing_by_their_weights(
    keys: list[tuple[int, float]], workers: int, rounds: int
) -> None:
    """The bound of start-time fair queueing, with what workers hold: nobody is further off than what was handed out."""
    server = Server({str(number): weight for number, (_, weight) in enumerate(keys)}, workers)
    in_hands = 2 * CAPACITY * workers + 1
    # Of each key more waits than workers can take at once: who has nothing waiting has no claim to a share.
    backlog = [server.submit(str(number), steps) for number, (steps, _) in enumerate(keys) for _ in range(in_hands)]
    for _ in range(rounds):
        for job in [job for job in backlog if job not in server.queue]:
            backlog.remove(job)
            backlog.append(server.submit(job.key, job.steps))
        server.step()
    got = [server.served[str(number)] / weight for number, (_, weight) in enumerate(keys)]
    longest = [steps * STEP / weight for steps, weight in keys]
    for one, other in itertools.combinations(range(len(keys)), 2):
        assert abs(got[one] - got[other]) <= in_hands * (longest[one] + longest[other])


@settings(max_examples=60)
@given(st.integers(8, 50), st.integers(1, 20), st.integers(0, 400), st.integers(1, 3), st.booleans())
def test_a_short_task_waits_for_no_long_one_of_its_own_key_or_another(
    long: int, flood: int, passed: int, workers: int, own: bool
) -> None:
    """It is drawn from the next step on, whoever is drawn by then: one step that is under way is all it waits for."""
    server = Server({}, workers)
    for _ in range(flood):
        server.submit("flood", long)
    for _ in range(passed):
        server.step()
    short = server.submit("flood" if own else "new", max(1, long // 8))
    server.run_until_ended([short])
    assert short.ended_at is not None
    assert short.ended_at - short.came_at <= short.steps + 1


@settings(max_examples=40)
@given(st.integers(8, 50), st.integers(2, 6), st.booleans(), st.integers(1, 2))
def test_a_long_task_is_drawn_however_many_short_ones_keep_coming(
    long: int, keys: int, own: bool, workers: int
) -> None:
    """Others get their share before it, and its own key's short ones as much once more."""
    server = Server({}, workers)
    patient = server.submit("patient", long)
    names = [f"k{number}" for number in range(keys)] + (["patient"] if own else [])
    waiting: list[Job] = []
    while patient.ended_at is None:
        waiting = [job for job in waiting if job.ended_at is None]
        waiting += [server.submit(name, 1) for name in names if sum(job.key == name for job in waiting) < 2]
        server.step()
    assert patient.ended_at <= (len(names) + 1) * long + 4 * CAPACITY * workers


def test_a_long_task_is_drawn_though_every_short_one_comes_from_somebody_new() -> None:
    server = Server({})
    patient, number = server.submit("patient", 20), 0
    while patient.ended_at is None:
        while len(server.queue) < 2:
            server.submit(f"new {number}", 1)
            number += 1
        server.step()
    assert patient.ended_at <= 20 / AGEING + 100


def test_a_key_that_was_idle_saves_up_nothing() -> None:
    server = Server({})
    server.submit("idle", 1)
    for _ in range(30):
        server.run_until_ended([server.submit("busy", 10)])
    both = [server.submit(key, 10) for _ in range(10) for key in ("idle", "busy")]
    server.served.clear()
    while server.served["idle"] + server.served["busy"] < 100 * STEP:
        server.step()
    assert abs(server.served["idle"] - server.served["busy"]) <= 2 * 10 * STEP
    server.run_until_ended(both)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), mixes), min_size=1, max_size=10), st.integers(1, 3))
def test_everything_is_drawn_in_the_end(tasks: list[tuple[str, list[int]]], workers: int) -> None:
    server = Server({"a": 0.01, "b": 100.0}, workers)
    jobs = [server.submit(key, steps) for key, mix in tasks for steps in mix]
    server.run_until_ended(jobs)
    assert sum(server.served.values()) == sum(job.steps for job in jobs) * STEP


@settings(max_examples=40)
@given(st.integers(2, 4), st.integers(20, 100))
def test_a_key_that_mixes_sizes_gets_at_most_one_share_more_for_each(sizes: int, rounds: int) -> None:
    server = Server({})
    mixed = [4**power for power in reversed(range(sizes))]
    jobs = [server.submit("mixed", steps) for steps in mixed for _ in range(400 // steps)]
    jobs += [server.submit("plain", 16) for _ in range(50)]
    for _ in range(rounds * 4):
        server.step()
    slack = 2 * CAPACITY * (max(mixed) + 16) * STEP
    assert server.served["mixed"] <= sizes * server.served["plain"] + slack
    server.run_until_ended(jobs)


endings = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 400), st.integers(0, 9), st.floats(0, 1)), max_size=30)


@given(endings)
def test_what_is_given_back_leaves_each_flow_in_order_and_no_place_on_another(
    tasks: list[tuple[int, int, int, float]],
) -> None:
    """Tasks come, the clock goes on, and one of those that are left ends with a share of it drawn."""
    ends, clock, left = FRESH, 0.0, list[Stay]()
    for steps, passed, picked, drawn in tasks:
        clock += passed
        place, ends = next_place(ends, clock, steps * STEP, steps * STEP)
        left.append(Stay(place=place, work=steps * STEP))
        if picked >= len(left):
            continue
        ended, before = left.pop(picked), ends
        ends, places = given_back(ends, clock, ended, drawn, left)
        assert list(ends) == sorted(ends)
        assert all(new <= max(old, clock) for new, old in zip(ends, before, strict=True))
        assert all(new.turn <= old.place.turn for new, old in zip(places, left, strict=True))
        left = [Stay(place=place, work=stay.work) for place, stay in zip(places, left, strict=True)]
        for one in left:
            assert one.place.turn <= ends[size_of(one.work)] + 1e-6
            assert one.place.turn - one.place.start > 0.999 * one.work
        for flow in range(SIZES):
            stays = sorted((one.place.start, one.place.turn) for one in left if size_of(one.work) == flow)
            assert all(turn <= start + 1e-6 for (_, turn), (start, _) in itertools.pairwise(stays))


def test_a_key_that_has_cancelled_everything_is_as_a_new_one() -> None:
    server = Server({})
    for _ in range(60):
        server.submit("busy", 20)
    for _ in range(50):
        server.step()
    for job in [server.submit("mind", 20) for _ in range(24)]:
        server.cancel(job)
    again, new = server.submit("mind", 20), server.submit("new", 20)
    assert abs(again.place.turn - new.place.turn) < 1e-6


def test_whoever_submits_the_next_before_cancelling_the_last_owes_for_one_alone() -> None:
    server = Server({})
    for _ in range(60):
        server.submit("busy", 20)
    for _ in range(50):
        server.step()
    job = server.submit("mind", 20)
    for _ in range(40):
        former, job = job, server.submit("mind", 20)
        server.cancel(former)
    assert abs(job.place.turn - server.submit("new", 20).place.turn) < 1e-6


def test_a_task_that_is_cancelled_at_its_last_step_is_paid_for() -> None:
    server = Server({})
    job = server.submit("a", 20)
    for _ in range(19):
        server.step()
    server.cancel(job)
    assert server.submit("a", 20).place.turn == 2 * 20 * STEP


@settings(max_examples=60)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 24),
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 60)), max_size=60),
)
def test_no_cancelling_gets_a_key_more_than_its_share(
    steps: int, others: int, waiting: int, picks: list[tuple[int, int]]
) -> None:
    """It cancels what it likes when it likes, queued or drawn, and submits as much anew; drawn for nothing counts."""
    server = Server({})
    mine = [server.submit("game", steps) for _ in range(waiting)]
    for picked, passed in [*picks, (0, 100)]:
        for _ in range(passed):
            fair = [job for job in (*server.queue, *itertools.chain(*server.held)) if job.key == "fair"]
            for _ in range(3 * CAPACITY - len(fair)):
                server.submit("fair", others)
            mine = [job for job in mine if job.ended_at is None]
            mine += [server.submit("game", steps) for _ in range(waiting - len(mine))]
            server.step()
        mine = [job for job in mine if job.ended_at is None]
        if picked < len(mine):
            server.cancel(mine.pop(picked))
    slack = 2 * CAPACITY * (steps + others) * STEP
    assert server.served["game"] <= server.served["fair"] + slack
