"""The task machine: its table by itself, and the store against a small model of what should happen."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from builders import (
    LEASE_S,
    NOW,
    PATIENCE_S,
    REASON,
    cancellation,
    claim_request,
    completion,
    failure,
    generation,
    loss,
    new_key,
    new_waypoint,
    submission,
)
from fluxserve.catalogue import Generation, Size
from fluxserve.store.base import Cancellation, Failure, Lease, PageRequest, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import (
    ACTIVE,
    FINAL,
    MAX_ATTEMPTS,
    TRANSITIONS,
    Attempts,
    Event,
    State,
    sources,
    target,
)

DRAWINGS = (generation(), generation(size=Size(256, 256)), generation(model="flux-schnell"))
WORKERS = ("w1", "w2", "w3")
FINGERPRINTS = ("f1", "f2")
STEPS_PER_RUN = 40


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


def test_every_state_but_the_first_two_is_reached_by_some_event() -> None:
    assert set(TRANSITIONS.values()) == set(State) - {State.PREPARING}


def test_only_a_running_task_is_drawn_or_lost() -> None:
    for event in (Event.FINISHED, Event.RELEASED, Event.CONTENT_REFUSED):
        assert sources(event) == (State.RUNNING,)
    assert sources(Event.CLAIMED) == (State.QUEUED,)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=100))
def test_a_task_is_given_up_only_for_losses_that_were_its_fault_and_brought_nothing(
    losses: list[tuple[int, bool]],
) -> None:
    attempts = Attempts()
    for step, suspected in losses:
        before, attempts = attempts, attempts.after_loss(step=step, suspected=suspected)
        assert attempts.best_step == max(before.best_step, step)
        assert attempts.spoiled - before.spoiled == (1 if suspected and step <= before.best_step else 0)
        assert attempts.is_suspect == (attempts.spoiled > 0)
        assert attempts.is_exhausted == (attempts.spoiled >= MAX_ATTEMPTS)


@given(st.integers(1, 100))
def test_a_task_that_always_kills_its_worker_at_the_same_step_is_given_up(step: int) -> None:
    attempts, tries = Attempts(), 0
    while not attempts.is_exhausted:
        attempts, tries = attempts.after_loss(step=step, suspected=True), tries + 1
    assert tries == MAX_ATTEMPTS + 1  # the first try came further than none


@dataclass
class Expected:
    """A task as the model sees it."""

    id: str
    who: int
    drawing: Generation
    turn: float
    state: State = State.QUEUED
    fence: int = 0
    attempts: Attempts = field(default_factory=Attempts)
    worker_id: str | None = None
    lease_until: float | None = None
    waypoint: tuple[int, str] | None = None
    waits_since: float = 0.0

    def hold(self, worker_id: str | None, until: float | None) -> None:
        """Who has the task, and until when."""
        self.worker_id, self.lease_until = worker_id, until

    def ends(self, state: State) -> None:
        """The last change."""
        self.state = state
        self.hold(None, None)
        if state.is_final:
            self.waypoint = None

    def is_for(self, fingerprint: str, now: float) -> bool:
        """Whether a worker of this fingerprint may have the task now."""
        return self.waypoint is None or self.waypoint[1] == fingerprint or self.waits_since <= now - PATIENCE_S


class TaskMachine(RuleBasedStateMachine):
    """Anything that can happen to tasks, in any order, with claims kept long after they were lost."""

    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.path = Path(self.folder.name) / "fluxserve.db"
        self.store = SqliteStore(self.path)
        self.keys = [self.run(self.store.create_key(new_key(account=name))) for name in ("alice", "bob")]
        self.last_turn = [0.0, 0.0]
        self.clock = 0.0
        self.now = NOW
        self.tasks: list[Expected] = []
        self.steps = 0

    def teardown(self) -> None:
        """The books are in order at the end of every run."""
        try:
            assert self.run(self.store.fsck()) == []
        finally:
            self.run(self.store.close())
            self.runner.close()
            self.folder.cleanup()

    def holding(self, claim: TaskRecord) -> Expected | None:
        """The task, if `claim` still holds."""
        task = next(task for task in self.tasks if task.id == claim.id)
        return task if task.state is State.RUNNING and task.fence == claim.fence else None

    def running(self) -> list[Expected]:
        """The tasks that workers have."""
        return [task for task in self.tasks if task.state is State.RUNNING]

    def queued(self, models: tuple[str, ...], fingerprint: str) -> list[Expected]:
        """The queue of these models for a worker of this fingerprint, in turn."""
        waiting = [
            task
            for task in self.tasks
            if task.state is State.QUEUED and task.drawing.model in models and task.is_for(fingerprint, self.now)
        ]
        return sorted(waiting, key=lambda task: task.turn)  # stable: equal turns in the order of their coming

    @rule(who=st.integers(0, 1), drawings=st.lists(st.sampled_from(DRAWINGS), min_size=1, max_size=5))
    def submit(self, who: int, drawings: list[Generation]) -> None:
        """Some tasks of one key."""
        values = [submission(self.keys[who], drawing=drawing, now=self.now) for drawing in drawings]
        answers = self.run(self.store.submit_many(values))
        for value, answer in zip(values, answers, strict=True):
            assert answer.record is not None
            self.last_turn[who] = max(self.clock, self.last_turn[who]) + 1
            self.tasks.append(Expected(value.id, who, value.generation, self.last_turn[who]))

    @rule(
        target=claims,
        worker=st.sampled_from(WORKERS),
        limit=st.integers(0, 4),
        models=st.sampled_from([("flux-dev",), ("flux-schnell",), ("flux-dev", "flux-schnell")]),
        fingerprint=st.sampled_from(FINGERPRINTS),
    )
    def claim(self, worker: str, limit: int, models: tuple[str, ...], fingerprint: str) -> object:
        """A worker takes what the model says it should get, in that order."""
        request = claim_request(worker, models=models, limit=limit, now=self.now, fingerprint=fingerprint)
        (records,) = self.run(self.store.claim_many([request]))
        expected = self.expected_claim(worker, limit, self.queued(models, fingerprint))
        assert [record.id for record in records] == [task.id for task in expected]
        for task in expected:
            task.state = State.RUNNING
            task.fence += 1
            task.hold(worker, self.now + LEASE_S)
        return multiple(*records)

    def expected_claim(self, worker: str, limit: int, queue: list[Expected]) -> list[Expected]:
        """Fair turns, compatible tasks, a suspect one with a worker alone."""
        held = [task for task in self.running() if task.worker_id == worker]
        if not queue or limit < 1 or any(task.attempts.is_suspect for task in held):
            return []
        head = queue[0]
        if head.attempts.is_suspect and held:
            return []
        self.clock = max(self.clock, head.turn)
        if head.attempts.is_suspect:
            return [head]
        alike = [task for task in queue if task.drawing.batch_key == head.drawing.batch_key]
        return [task for task in alike if not task.attempts.is_suspect][:limit]

    @rule(claim=claims)
    def complete(self, claim: TaskRecord) -> None:
        """A picture under a claim, which may be lost by now."""
        (record,) = self.run(self.store.complete_many([completion(claim, now=self.now)]))
        task = self.holding(claim)
        assert (record is None) == (task is None)
        if task is not None:
            task.ends(State.READY)

    @rule(claim=claims)
    def fail(self, claim: TaskRecord) -> None:
        """A failure under a claim, which may be lost by now."""
        (record,) = self.run(self.store.fail_many([failure(claim, now=self.now)]))
        task = self.holding(claim)
        assert (record is None) == (task is None)
        if task is not None:
            task.ends(State.ERROR)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def fail_as_the_server(self, data: st.DataObject) -> None:
        """The server may end whatever is unfinished."""
        task = data.draw(st.sampled_from(self.tasks))
        decision = Failure(task_id=task.id, fence=None, reason=REASON, now=self.now)
        (record,) = self.run(self.store.fail_many([decision]))
        assert (record is None) == task.state.is_final
        if record is not None:
            task.ends(State.ERROR)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), who=st.integers(0, 1))
    def cancel(self, data: st.DataObject, who: int) -> None:
        """An account ends what is its own and unfinished."""
        task = data.draw(st.sampled_from(self.tasks))
        wish = Cancellation(task_id=task.id, account_id=self.keys[who].key.account_id, now=self.now)
        (record,) = self.run(self.store.cancel_many([wish]))
        assert (record is None) == (task.state.is_final or who != task.who)
        if record is not None:
            task.ends(State.CANCELLED)

    @rule(claim=claims, picture_first=st.booleans())
    def cancel_while_it_is_handed_in(self, claim: TaskRecord, picture_first: bool) -> None:
        """A picture and a cancellation that wait together: what stands first counts, if anything may."""

        async def both() -> tuple[TaskRecord | None, TaskRecord | None]:
            ends = [
                self.store.complete_many([completion(claim, now=self.now)]),
                self.store.cancel_many([cancellation(claim, now=self.now)]),
            ]
            ordered = await asyncio.gather(*(ends if picture_first else reversed(ends)))
            (completed,), (cancelled,) = ordered if picture_first else reversed(ordered)
            return completed, cancelled

        completed, cancelled = self.run(both())
        task = next(task for task in self.tasks if task.id == claim.id)
        holds = self.holding(claim) is not None
        assert (completed is not None) == (holds and picture_first)
        assert (cancelled is not None) == (task.state.is_active and completed is None)
        if completed is not None or cancelled is not None:
            task.ends(State.READY if completed is not None else State.CANCELLED)

    @rule(who=st.integers(0, 1), limit=st.integers(1, 5), states=st.sets(st.sampled_from(list(State))))
    def page_through(self, who: int, limit: int, states: set[State]) -> None:
        """Each account sees its own tasks of these states once, newest first."""
        seen: list[str] = []
        before: int | None = None
        while True:
            page = self.run(
                self.store.page(
                    PageRequest(
                        account_id=self.keys[who].key.account_id, states=tuple(states), limit=limit, before=before
                    )
                )
            )
            seen += [record.id for record in page.records]
            assert len(page.records) == limit or page.end is None
            if (before := page.end) is None:
                break
        own = [task.id for task in self.tasks if task.who == who and task.state in states]
        assert seen == own[::-1]

    @rule(claim=claims, step=st.integers(0, 4), suspected=st.booleans())
    def lose(self, claim: TaskRecord, step: int, suspected: bool) -> None:
        """A worker lost a claim, which may be lost already."""
        (record,) = self.run(self.store.release_many([loss(claim, step=step, suspected=suspected, now=self.now)]))
        task = self.holding(claim)
        assert (record is None) == (task is None)
        if task is not None:
            task.attempts = task.attempts.after_loss(step=step, suspected=suspected)
            task.waits_since = self.now
            task.ends(State.ERROR if task.attempts.is_exhausted else State.QUEUED)

    @rule(claim=claims, step=st.integers(1, 27), fingerprint=st.sampled_from(FINGERPRINTS))
    def write_down(self, claim: TaskRecord, step: int, fingerprint: str) -> None:
        """A worker writes down where a claim stands, which may be lost already."""
        new = new_waypoint(claim, step=step, fingerprint=fingerprint, object_name=uuid.uuid4().hex, now=self.now)
        task = self.holding(claim)
        assert self.run(self.store.keep_waypoints([new])) == [task is not None]
        if task is not None:
            task.waypoint, task.waits_since = (step, fingerprint), self.now

    @rule(data=st.data())
    @precondition(lambda self: any(task.waypoint for task in self.tasks))
    def drop_a_waypoint(self, data: st.DataObject) -> None:
        """The place is needed for others."""
        kept = data.draw(st.sampled_from(self.run(self.store.waypoints())))
        assert self.run(self.store.drop_waypoints([kept, kept])) == [True, False]
        next(task for task in self.tasks if task.id == kept.task_id).waypoint = None

    @rule(claim=claims)
    def finish_twice_at_once(self, claim: TaskRecord) -> None:
        """Two outcomes of one claim that wait together: the first one counts, if any."""

        async def both() -> tuple[list[TaskRecord | None], list[TaskRecord | None]]:
            return await asyncio.gather(
                self.store.complete_many([completion(claim, now=self.now)]),
                self.store.fail_many([failure(claim, now=self.now)]),
            )

        (completed,), (failed,) = self.run(both())
        task = self.holding(claim)
        assert (completed is None) == (task is None)
        assert failed is None
        if task is not None:
            task.ends(State.READY)

    @rule(worker=st.sampled_from(WORKERS), seconds=st.integers(1, 40))
    def time_passes_and_one_worker_lives(self, worker: str, seconds: int) -> None:
        """A heartbeat of one worker; the leases of the others come nearer to their end."""
        self.now += seconds
        until = self.now + LEASE_S
        held = [task for task in self.running() if task.worker_id == worker]
        assert self.run(self.store.extend_many([Lease(worker_id=worker, until=until)])) == [len(held)]
        for task in held:
            task.hold(worker, until)
        lapsed = {task.id for task in self.running() if task.lease_until is not None and task.lease_until < self.now}
        assert {record.id for record in self.run(self.store.lapsed(self.now))} == lapsed

    @rule()
    def restart(self) -> None:
        """The server stops and starts again."""
        self.run(self.store.close())
        self.store = SqliteStore(self.path)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        """Every task, and the order of those that are unfinished."""
        records = self.run(self.store.get_many([task.id for task in self.tasks]))
        assert [
            (record.state, record.fence, record.attempts, record.worker_id, record.state.is_final)
            for record in records
            if record is not None
        ] == [(task.state, task.fence, task.attempts, task.worker_id, task.state.is_final) for task in self.tasks]
        waypoints = {kept.task_id: (kept.step, kept.fingerprint) for kept in self.run(self.store.waypoints())}
        assert waypoints == {task.id: task.waypoint for task in self.tasks if task.waypoint is not None}
        unfinished = sorted((task for task in self.tasks if task.state.is_active), key=lambda task: task.turn)
        assert [record.id for record in self.run(self.store.active())] == [task.id for task in unfinished]

    @invariant()
    def the_books_are_in_order(self) -> None:
        """Looked at every few steps: it reads everything."""
        self.steps += 1
        if self.steps % 8 == 0:
            assert self.run(self.store.fsck()) == []


def test_the_store_does_what_the_machine_says(long: bool) -> None:
    run_state_machine_as_test(
        TaskMachine, settings=settings(max_examples=2000 if long else 60, stateful_step_count=STEPS_PER_RUN)
    )
