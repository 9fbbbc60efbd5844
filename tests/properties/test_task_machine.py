"""The task machine: the store against a small model of what should happen."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import settings
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
from task_model import COST, MOST, WEIGHTS, Expected, Model

from builders import (
    LEASE_S,
    REASON,
    cancellation,
    claim_request,
    completion,
    failure,
    generation,
    loss,
    new_key,
    new_waypoint,
    preparation,
    prepared,
    refused,
    submission,
)
from fluxserve.catalogue import Generation, Size
from fluxserve.store.base import Cancellation, Failure, Kept, Lease, Offer, PageRequest, Picture, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import (
    State,
)

DRAWINGS = (generation(), generation(size=Size(256, 256)), generation(model="flux-schnell"))
WORKS = (100.0, 20.0, 3.0)
WORKERS = ("w1", "w2", "w3")
GRANT = 10**9
FINGERPRINTS = ("f1", "f2")
STEPS_PER_RUN = 40


@dataclass(frozen=True)
class Wish:
    """One request: what to draw, and which equal ones it may have something to do with."""

    drawing: Generation
    recipe: bytes | None
    repeatable: bool
    by_url: bool


WISHES = st.builds(
    Wish,
    drawing=st.sampled_from(DRAWINGS),
    recipe=st.sampled_from([None, b"r1", b"r2", b"r3"]),
    repeatable=st.sampled_from([True, True, False]),
    by_url=st.sampled_from([False, False, True]),
)
SHARES = st.sampled_from([0.0, 0.25, 1.0])
KEPT = st.none() | st.builds(
    Kept, fingerprint=st.sampled_from(FINGERPRINTS), size=st.integers(0, 3), budget=st.integers(2, 5)
)


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
        self.keys = [
            self.run(self.store.create_key(new_key(account=name, credits_=GRANT, weight=weight)))
            for name, weight in zip(("alice", "bob", "bob"), WEIGHTS, strict=True)
        ]
        self.model = Model()
        self.by_url: list[tuple[TaskRecord, int, Wish]] = []
        self.steps = 0

    def teardown(self) -> None:
        """The books are in order at the end of every run."""
        try:
            assert self.run(self.store.fsck()) == []
        finally:
            self.run(self.store.close())
            self.runner.close()
            self.folder.cleanup()

    @rule(
        who=st.integers(0, 2),
        wishes=st.lists(WISHES, min_size=1, max_size=5),
        fingerprints=st.sets(st.sampled_from(FINGERPRINTS)),
    )
    def submit(self, who: int, wishes: list[Wish], fingerprints: set[str]) -> None:
        """Some tasks of one key."""
        values = [
            replace(
                submission(
                    self.keys[who],
                    drawing=wish.drawing,
                    cost=MOST if wish.by_url else COST,
                    recipe=None if wish.by_url else self.recipe(who, wish),
                    preparation=preparation() if wish.by_url else None,
                    fingerprints=tuple(fingerprints),
                    work=WORKS[DRAWINGS.index(wish.drawing)],
                    now=self.model.now,
                ),
                repeatable=wish.repeatable and wish.recipe is not None and not wish.by_url,
            )
            for wish in wishes
        ]
        answers = self.run(self.store.submit_many(values))
        for value, wish, answer in zip(values, wishes, answers, strict=True):
            assert answer.record is not None
            task = Expected(
                value.id, who, value.generation, value.work, recipe=value.recipe, repeatable=value.repeatable,
                cost=value.cost,
            )  # fmt: skip
            self.model.accept(task, fingerprints, preparing=wish.by_url)
            self.model.tasks.append(task)
            if wish.by_url:
                self.by_url.append((answer.record, who, wish))
            assert (answer.record.state, answer.record.object_name) == (task.state, task.object_name)

    def recipe(self, who: int, wish: Wish) -> bytes | None:
        """No two accounts share one."""
        return None if wish.recipe is None else self.keys[who].account_name.encode() + wish.recipe

    @precondition(lambda self: self.by_url)
    @rule(data=st.data(), cost=st.sampled_from([COST, MOST]), fingerprints=st.sets(st.sampled_from(FINGERPRINTS)))
    def prepare(self, data: st.DataObject, cost: int, fingerprints: set[str]) -> None:
        """The pictures of a task are there, which may have been prepared or have ended by now."""
        record, who, wish = data.draw(st.sampled_from(self.by_url))
        repeatable = wish.repeatable and wish.recipe is not None
        new = replace(
            prepared(
                record, drawing=wish.drawing, cost=cost, work=record.work, weight=WEIGHTS[who],
                recipe=self.recipe(who, wish), fingerprints=tuple(fingerprints), now=self.model.now,
            ),
            repeatable=repeatable,
        )  # fmt: skip
        (answer,) = self.run(self.store.prepare_many([new]))
        task = self.model.known(record.id)
        is_preparing = task is not None and task.state is State.PREPARING
        assert (answer is not None) == is_preparing
        (left,) = self.run(self.store.preparations([record.id]))
        assert left is None
        if task is not None and answer is not None:
            task.recipe, task.repeatable = new.recipe, repeatable
            self.model.prepare(task, cost, fingerprints)
            assert (answer.state, answer.object_name, answer.cost) == (task.state, task.object_name, cost)

    @rule(
        target=claims,
        worker=st.sampled_from(WORKERS),
        limit=st.integers(0, 4),
        models=st.sampled_from([("flux-dev",), ("flux-schnell",), ("flux-dev", "flux-schnell")]),
        fingerprint=st.sampled_from(FINGERPRINTS),
    )
    def claim(self, worker: str, limit: int, models: tuple[str, ...], fingerprint: str) -> object:
        """A worker takes what the model says it should get, in that order."""
        request = claim_request(worker, models=models, limit=limit, now=self.model.now, fingerprint=fingerprint)
        (records,) = self.run(self.store.claim_many([request]))
        expected = self.model.expected_claim(worker, limit, models, fingerprint)
        assert [record.id for record in records] == [task.id for task in expected]
        for task in expected:
            task.state = State.RUNNING
            task.fence += 1
            task.hold(worker, self.model.now + LEASE_S)
        return multiple(*records)

    @rule(claim=claims, kept=KEPT)
    def complete(self, claim: TaskRecord, kept: Kept | None) -> None:
        """A picture under a claim, which may be lost by now."""
        done = completion(claim, kept=kept, now=self.model.now)
        (record,) = self.run(self.store.complete_many([done]))
        task = self.model.holding(claim)
        assert (record is None) == (task is None)
        if task is not None and record is not None:
            ready = self.model.is_ready(task, done.object_name)
            assert [follower.id for follower in record.followers] == ready
            self.model.keep(task, kept)

    @rule(model=st.sampled_from(["flux-dev", "flux-schnell"]), fingerprint=st.sampled_from(FINGERPRINTS))
    def offer(self, model: str, fingerprint: str) -> None:
        """A worker comes: what waits for it and was drawn by its like before is answered."""
        offer = Offer(model=model, fingerprints=(fingerprint,), now=self.model.now)
        (records,) = self.run(self.store.answer_many([offer]))
        waiting = [task for task in self.model.waiting((model,)) if task.repeatable]
        answered: list[str] = []
        for task in waiting:
            followers = [follower.id for follower in self.model.followers(task.recipe)]
            if self.model.is_answered(task, [fingerprint]):
                answered += [task.id, *followers]
        assert [record.id for record in records] == answered

    @precondition(lambda self: any(task.object_name for task in self.model.tasks))
    @rule(data=st.data())
    def forget_pictures(self, data: st.DataObject) -> None:
        """Retention: each task lets go of its picture, and the last one that does tells so."""
        holders = [task for task in self.model.tasks if task.object_name]
        chosen = data.draw(st.lists(st.sampled_from(holders), max_size=4, unique_by=lambda task: task.id))
        pictures = [Picture(task_id=task.id, object_name=task.object_name or "") for task in chosen]
        unheld = self.run(self.store.forget_pictures(pictures))
        for task, picture, is_unheld in zip(chosen, pictures, unheld, strict=True):
            task.object_name = None
            assert is_unheld == self.model.let_go(picture.object_name)

    @rule(seconds=st.integers(0, 30), limit=st.integers(1, 3))
    def delete_old_tasks(self, seconds: int, limit: int) -> None:
        """Retention: tasks that ended some time ago go, whatever became of their pictures."""
        before = self.model.now - seconds
        ended = [task for task in self.model.tasks if task.finished_at is not None and task.finished_at < before]
        old = sorted(ended, key=lambda task: task.finished_at or 0.0)[:limit]
        assert self.run(self.store.delete_old(before, limit)) == len(old)
        self.model.tasks = [task for task in self.model.tasks if task not in old]
        for task in old:
            if task.object_name is not None:
                self.model.let_go(task.object_name)

    @rule(claim=claims, drawn=SHARES)
    def fail(self, claim: TaskRecord, drawn: float) -> None:
        """A failure under a claim, which may be lost by now."""
        (record,) = self.run(self.store.fail_many([failure(claim, drawn=drawn, now=self.model.now)]))
        task = self.model.holding(claim)
        assert (record is None) == (task is None)
        if task is not None and record is not None:
            assert [follower.id for follower in record.followers] == self.model.is_without(task, State.ERROR, drawn)

    @rule(claim=claims, is_drawn=st.booleans(), charged=st.booleans(), drawn=SHARES)
    def refuse(self, claim: TaskRecord, is_drawn: bool, charged: bool, drawn: float) -> None:
        """Moderation ends a claim, which may be lost by now, and all that wait for its picture."""
        state, charged = State.CONTENT_MODERATED if is_drawn else State.REQUEST_MODERATED, charged and is_drawn
        end = refused(claim, state=state, charged=charged, drawn=drawn, now=self.model.now)
        (record,) = self.run(self.store.refuse_many([end]))
        task = self.model.holding(claim)
        assert (record is None) == (task is None)
        if task is not None and record is not None:
            ended = self.model.is_refused(task, state, drawn, charged=charged)
            assert [follower.id for follower in record.followers] == ended

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data())
    def fail_as_the_server(self, data: st.DataObject) -> None:
        """The server may end whatever is unfinished."""
        task = data.draw(st.sampled_from(self.model.tasks))
        decision = Failure(task_id=task.id, fence=None, reason=REASON, drawn=0.0, now=self.model.now)
        (record,) = self.run(self.store.fail_many([decision]))
        assert (record is None) == task.state.is_final
        if record is not None:
            assert [follower.id for follower in record.followers] == self.model.is_without(task, State.ERROR)

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data(), who=st.integers(0, 2), drawn=SHARES)
    def cancel(self, data: st.DataObject, who: int, drawn: float) -> None:
        """An account ends what is its own and unfinished."""
        task = data.draw(st.sampled_from(self.model.tasks))
        account = self.keys[who].key.account_id
        wish = Cancellation(task_id=task.id, account_id=account, drawn=drawn, now=self.model.now)
        (record,) = self.run(self.store.cancel_many([wish]))
        own = self.keys[who].account_name == self.keys[task.who].account_name
        assert (record is None) == (task.state.is_final or not own)
        if record is not None:
            assert [follower.id for follower in record.followers] == self.model.is_without(task, State.CANCELLED, drawn)

    @rule(claim=claims, picture_first=st.booleans())
    def cancel_while_it_is_handed_in(self, claim: TaskRecord, picture_first: bool) -> None:
        """A picture and a cancellation that wait together: what stands first counts, if anything may."""

        async def both() -> tuple[TaskRecord | None, TaskRecord | None]:
            ends = [
                self.store.complete_many([completion(claim, now=self.model.now)]),
                self.store.cancel_many([cancellation(claim, now=self.model.now)]),
            ]
            ordered = await asyncio.gather(*(ends if picture_first else reversed(ends)))
            (completed,), (cancelled,) = ordered if picture_first else reversed(ordered)
            return completed, cancelled

        completed, cancelled = self.run(both())
        task = self.model.known(claim.id)
        holds = self.model.holding(claim) is not None
        assert (completed is not None) == (holds and picture_first)
        assert (cancelled is not None) == (task is not None and task.state.is_active and completed is None)
        if task is not None and completed is not None:
            self.model.is_ready(task, completion(claim).object_name)
        elif task is not None and cancelled is not None:
            self.model.is_without(task, State.CANCELLED)

    @rule(who=st.integers(0, 2), limit=st.integers(1, 5), states=st.sets(st.sampled_from(list(State))))
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
        account = self.keys[who].account_name
        own = [
            task.id for task in self.model.tasks if self.keys[task.who].account_name == account and task.state in states
        ]
        assert seen == own[::-1]

    @rule(claim=claims, step=st.integers(0, 4), suspected=st.booleans())
    def lose(self, claim: TaskRecord, step: int, suspected: bool) -> None:
        """A worker lost a claim, which may be lost already."""
        (record,) = self.run(self.store.release_many([loss(claim, step=step, suspected=suspected, now=self.model.now)]))
        task = self.model.holding(claim)
        assert (record is None) == (task is None)
        if task is not None:
            task.attempts = task.attempts.after_loss(step=step, suspected=suspected)
            task.waits_since = self.model.now
            if task.attempts.is_exhausted:
                for equal in (*(self.model.followers(task.recipe) if task.leads else ()), task):
                    self.model.is_without(equal, State.ERROR, 1.0)
            else:
                task.ends(State.QUEUED)

    @rule(claim=claims, step=st.integers(1, 27), fingerprint=st.sampled_from(FINGERPRINTS))
    def write_down(self, claim: TaskRecord, step: int, fingerprint: str) -> None:
        """A worker writes down where a claim stands, which may be lost already."""
        new = new_waypoint(claim, step=step, fingerprint=fingerprint, object_name=uuid.uuid4().hex, now=self.model.now)
        task = self.model.holding(claim)
        assert self.run(self.store.keep_waypoints([new])) == [task is not None]
        if task is not None:
            task.waypoint, task.waits_since = (step, fingerprint), self.model.now

    @rule(data=st.data())
    @precondition(lambda self: any(task.waypoint for task in self.model.tasks))
    def drop_a_waypoint(self, data: st.DataObject) -> None:
        """The place is needed for others."""
        kept = data.draw(st.sampled_from(self.run(self.store.waypoints())))
        assert self.run(self.store.drop_waypoints([kept, kept])) == [True, False]
        next(task for task in self.model.tasks if task.id == kept.task_id).waypoint = None

    @rule(claim=claims)
    def finish_twice_at_once(self, claim: TaskRecord) -> None:
        """Two outcomes of one claim that wait together: the first one counts, if any."""

        async def both() -> tuple[list[TaskRecord | None], list[TaskRecord | None]]:
            return await asyncio.gather(
                self.store.complete_many([completion(claim, now=self.model.now)]),
                self.store.fail_many([failure(claim, now=self.model.now)]),
            )

        (completed,), (failed,) = self.run(both())
        task = self.model.holding(claim)
        assert (completed is None) == (task is None)
        assert failed is None
        if task is not None:
            self.model.is_ready(task, completion(claim).object_name)

    @rule(worker=st.sampled_from(WORKERS), seconds=st.integers(1, 40))
    def time_passes_and_one_worker_lives(self, worker: str, seconds: int) -> None:
        """A heartbeat of one worker; the leases of the others come nearer to their end."""
        self.model.now += seconds
        until = self.model.now + LEASE_S
        held = [task for task in self.model.running() if task.worker_id == worker]
        assert self.run(self.store.extend_many([Lease(worker_id=worker, until=until)])) == [len(held)]
        for task in held:
            task.hold(worker, until)
        lapsed = {
            task.id
            for task in self.model.running()
            if task.lease_until is not None and task.lease_until < self.model.now
        }
        assert {record.id for record in self.run(self.store.lapsed(self.model.now))} == lapsed

    @rule()
    def restart(self) -> None:
        """The server stops and starts again."""
        self.run(self.store.close())
        self.store = SqliteStore(self.path)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        """Every task, and the order of those that are unfinished."""
        records = self.run(self.store.get_many([task.id for task in self.model.tasks]))
        assert [
            (record.state, record.fence, record.attempts, record.worker_id, record.object_name)
            for record in records
            if record is not None
        ] == [(task.state, task.fence, task.attempts, task.worker_id, task.object_name) for task in self.model.tasks]
        waypoints = {kept.task_id: (kept.step, kept.fingerprint) for kept in self.run(self.store.waypoints())}
        assert waypoints == {task.id: task.waypoint for task in self.model.tasks if task.waypoint is not None}
        unfinished = sorted((task for task in self.model.tasks if task.state.is_active), key=lambda task: task.turn)
        assert [record.id for record in self.run(self.store.active())] == [task.id for task in unfinished]
        cached = sorted(cached.object_name for cached in self.model.cache.values())
        assert sorted(self.run(self.store.cached_objects())) == cached

    @invariant()
    def the_books_are_in_order(self) -> None:
        """Each task is paid for once, or not at all; the invariants are looked at every few steps."""
        self.steps += 1
        balances = {entry.account_name: entry.balance for entry in self.run(self.store.keys())}
        assert sum(balance or 0 for balance in balances.values()) == 3 * GRANT - self.model.spent
        if self.steps % 8 == 0:
            assert self.run(self.store.fsck()) == []


def test_the_store_does_what_the_machine_says(long: bool) -> None:
    run_state_machine_as_test(
        TaskMachine, settings=settings(max_examples=2000 if long else 30, stateful_step_count=STEPS_PER_RUN)
    )
