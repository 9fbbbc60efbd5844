"""What the task machine expects of a store: tasks, equal ones among them, and the pictures that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from builders import NOW, PATIENCE_S
from fluxserve.catalogue import Generation
from fluxserve.store.base import Kept, TaskRecord
from fluxserve.tasks.task import Attempts, State
from fluxserve.tasks.turns import FRESH, Place, Stay, charged, given_back, moved_clock, next_place

#: Thousandths of a credit that each task costs, and that are reserved for one whose pictures are still to come.
COST, MOST = 1000, 1500
#: Of every drawing.
STEPS = 28
#: Of the three keys.
WEIGHTS = (1.0, 2.0, 0.5)


NOWHERE = Place(start=0.0, turn=0.0)


@dataclass
class Expected:
    """A task as the model sees it."""

    id: str
    who: int
    drawing: Generation
    work: float
    place: Place = NOWHERE
    payer: int | None = None
    state: State = State.QUEUED
    fence: int = 0
    attempts: Attempts = field(default_factory=Attempts)
    worker_id: str | None = None
    lease_until: float | None = None
    waypoint: tuple[int, str] | None = None
    waits_since: float = 0.0
    recipe: bytes | None = None
    repeatable: bool = False
    object_name: str | None = None
    finished_at: float | None = None
    cost: int = COST

    @property
    def turn(self) -> float:
        """What it is drawn by."""
        return self.place.turn

    @property
    def drawn_before(self) -> float:
        """How far workers got that lost it."""
        return min(1.0, self.attempts.best_step / STEPS)

    @property
    def leads(self) -> bool:
        """Equal tasks may follow it."""
        return self.repeatable and self.state in (State.QUEUED, State.RUNNING)

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


@dataclass
class Cached:
    """A picture that answers a recipe."""

    fingerprint: str
    object_name: str
    size: int
    used_at: float


@dataclass
class Model:
    """All tasks, in the order of their coming; three keys of different weights have a turn each."""

    tasks: list[Expected] = field(default_factory=list)
    cache: dict[bytes, Cached] = field(default_factory=dict)
    ends: list[tuple[float, ...]] = field(default_factory=lambda: [FRESH, FRESH, FRESH])
    clock: float = 0.0
    now: float = NOW
    spent: int = 0

    def holding(self, claim: TaskRecord) -> Expected | None:
        """The task, if `claim` still holds."""
        task = self.known(claim.id)
        return task if task is not None and task.state is State.RUNNING and task.fence == claim.fence else None

    def known(self, task_id: str) -> Expected | None:
        """The task, if it was not deleted."""
        return next((task for task in self.tasks if task.id == task_id), None)

    def followers(self, recipe: bytes | None) -> list[Expected]:
        """Those that wait for an equal task's picture, in the order of their coming."""
        return [task for task in self.tasks if task.state is State.FOLLOWING and task.recipe == recipe]

    def is_answered(self, task: Expected, fingerprints: Sequence[str]) -> bool:
        """The task gets a picture that was drawn before, if there is one."""
        cached = self.cache.get(task.recipe or b"") if task.repeatable else None
        if cached is None or cached.fingerprint not in fingerprints:
            return False
        cached.used_at = self.now
        self.is_ready(task, cached.object_name)
        self.give_back(task, 0.0)
        return True

    def give_back(self, task: Expected, drawn: float) -> None:
        """What was not drawn of a task, by the payer's other tasks' moving up."""
        if task.payer is None:
            return
        others = [
            one for one in self.tasks
            if one.payer == task.payer and one is not task and one.state in (State.QUEUED, State.RUNNING)
        ]  # fmt: skip
        stays = [Stay(place=other.place, work=other.work) for other in others]
        ended = Stay(place=task.place, work=task.work)
        share = max(drawn, task.drawn_before)
        self.ends[task.payer], places = given_back(self.ends[task.payer], self.clock, ended, share, stays)
        for other, place in zip(others, places, strict=True):
            other.place = place

    def is_ready(self, task: Expected, object_name: str) -> list[str]:
        """The task has its picture, and its followers have it too; their ids."""
        followers = self.followers(task.recipe) if task.leads else []
        for ready in (task, *followers):
            ready.ends(State.READY)
            ready.object_name, ready.finished_at = object_name, self.now
        return [follower.id for follower in followers]

    def is_without(self, task: Expected, state: State, drawn: float = 0.0) -> list[str]:
        """The task ended without a picture, and its first follower takes its place; that one's id.

        What is drawn once more is paid once more; a task that was cancelled leaves its heir its waypoint.
        """
        self.spent -= task.cost
        heirs = self.followers(task.recipe)[:1] if task.leads else []
        waypoint = task.waypoint if state is State.CANCELLED else None
        task.ends(state)
        task.finished_at = self.now
        if not heirs:
            self.give_back(task, drawn)
        for heir in heirs:
            heir.state, heir.place, heir.payer = State.QUEUED, task.place, task.payer
            again = max(drawn, task.drawn_before) - (waypoint[0] / STEPS if waypoint else 0.0)
            if task.payer is not None and again > 0:
                length = again * (task.turn - task.place.start)
                self.ends[task.payer] = charged(self.ends[task.payer], self.clock, length, task.work)
            heir.waypoint, heir.waits_since = waypoint, self.now
        return [heir.id for heir in heirs]

    def is_refused(self, task: Expected, state: State, drawn: float, *, charged: bool) -> list[str]:
        """Moderation ended the task, and its followers with it; their ids."""
        followers = self.followers(task.recipe) if task.leads else []
        for ended in (task, *followers):
            ended.ends(state)
            ended.finished_at = self.now
            self.spent -= 0 if charged else ended.cost
        self.give_back(task, drawn)
        return [follower.id for follower in followers]

    def keep(self, task: Expected, kept: Kept | None) -> None:
        """The task's picture answers its recipe from now on; within the budget."""
        if kept is None or task.recipe is None:
            return
        self.cache.pop(task.recipe, None)
        if kept.size > kept.budget:
            return
        self.cache[task.recipe] = Cached(kept.fingerprint, task.object_name or "", kept.size, self.now)
        while sum(cached.size for cached in self.cache.values()) > kept.budget:
            del self.cache[min(self.cache, key=lambda recipe: (self.cache[recipe].used_at, recipe))]

    def let_go(self, object_name: str) -> bool:
        """Whether no task holds the picture any more; then it answers nobody."""
        if any(task.object_name == object_name for task in self.tasks):
            return False
        self.cache = {recipe: cached for recipe, cached in self.cache.items() if cached.object_name != object_name}
        return True

    def running(self) -> list[Expected]:
        """The tasks that workers have."""
        return [task for task in self.tasks if task.state is State.RUNNING]

    def waiting(self, models: tuple[str, ...]) -> list[Expected]:
        """The queue of these models, in turn."""
        waiting = [task for task in self.tasks if task.state is State.QUEUED and task.drawing.model in models]
        return sorted(waiting, key=lambda task: task.turn)  # stable: equal turns in the order of their coming

    def queued(self, models: tuple[str, ...], fingerprint: str) -> list[Expected]:
        """What of it a worker of this fingerprint may have now."""
        return [task for task in self.waiting(models) if task.is_for(fingerprint, self.now)]

    def accept(self, task: Expected, fingerprints: set[str], *, preparing: bool = False) -> None:
        """A new task; one that is preparing has no place yet."""
        self.spent += task.cost
        if preparing:
            task.state, task.place = State.PREPARING, Place(start=self.clock, turn=self.clock)
        else:
            self.enter(task, fingerprints)

    def prepare(self, task: Expected, cost: int, fingerprints: set[str]) -> None:
        """Its pictures are there, and it costs no more than this."""
        self.spent -= task.cost - cost
        task.cost = cost
        self.enter(task, fingerprints)

    def enter(self, task: Expected, fingerprints: set[str]) -> None:
        """Answered at once, or behind an equal task, or in the queue at the key's next turn."""
        task.state = State.FOLLOWING
        if self.is_answered(task, tuple(fingerprints)):
            return
        leader = next((other for other in self.tasks if other.leads and other.recipe == task.recipe), None)
        place, ends = next_place(self.ends[task.who], self.clock, task.work / WEIGHTS[task.who], task.work)
        if leader is None or not task.repeatable:
            task.state = State.QUEUED
            self.ends[task.who], task.place, task.payer = ends, place, task.who
            return
        if leader.turn <= place.turn:
            task.place = leader.place
            return
        self.ends[task.who] = ends
        former = replace(leader)
        task.place = leader.place = place
        leader.payer = task.who
        if leader.state is State.QUEUED:
            former.attempts = Attempts()
            self.give_back(former, 0.0)

    def expected_claim(self, worker: str, limit: int, models: tuple[str, ...], fingerprint: str) -> list[Expected]:
        """Fair turns, compatible tasks, a suspect one with a worker alone."""
        queue = self.queued(models, fingerprint)
        held = [task for task in self.running() if task.worker_id == worker]
        if not queue or limit < 1 or any(task.attempts.is_suspect for task in held):
            return []
        head = queue[0]
        if head.attempts.is_suspect and held:
            return []
        alike = [task for task in queue if task.drawing.batch_key == head.drawing.batch_key]
        batch = [head] if head.attempts.is_suspect else [task for task in alike if not task.attempts.is_suspect][:limit]
        self.clock = moved_clock(
            self.clock,
            head=head.place,
            earliest=min((task.place.start for task in held), default=head.place.start),
            length=sum(task.turn - task.place.start for task in batch),
        )
        return batch
