"""When a task's turn comes: how many come before it, and in about how many seconds it is ready.

What is left, by turn, as fast as the workers of a model have been drawing lately. Nothing is said of what is not
known: no worker draws the model, none has finished a task yet, or nothing has moved for too long. Weights that have to
come for it first, or for what comes before it, count as long as they took the last time.
What it does not know: the store, who asks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fluxserve.service.line import Line, Place
from fluxserve.service.speed import Speed
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

#: Where no worker has made a step for so many seconds, nobody knows when the next one comes.
QUIET_S = 120.0
#: The models that share weights which are not on a worker's device, and in how many seconds those come.
Away = Mapping[frozenset[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`position`: how many that have made no step yet come before it; None: it has made one, and is drawn.

    `seconds` until it is ready; None: nobody knows. `is_served`: a worker draws its model, or there is none at all.
    """

    position: int | None
    seconds: float | None
    is_served: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The next task in a line: its turn, and the model it is of."""

    turn: float
    model: str


@dataclass(slots=True, kw_only=True)
class _Entry:
    """`worker_id` None: it is in the queue. `progress`, from 0 to 1, is where it is, and `step` what one step adds.

    `is_taken_up`: its worker is about to make a step, or has (`is_drawn`). What is neither is held ahead.
    """

    model: str
    place: Place
    work: float
    step: float
    worker_id: str | None = None
    progress: float = 0.0
    is_taken_up: bool = False
    is_drawn: bool = False

    @property
    def share(self) -> float:
        """What is left of it, from 0 to 1."""
        return 1 - self.progress

    @property
    def left(self) -> float:
        """The work that is left of it."""
        return self.work * self.share


@dataclass(slots=True)
class _Team:
    """Workers that draw the same models: how many, and how fast one of them is."""

    models: frozenset[str]
    workers: int = 0
    speed: Speed = field(default_factory=Speed)


@dataclass(slots=True)
class _Desk:
    """What a worker holds, and what it did since `counted_at`: parts of tasks, and the work in them."""

    counted_at: float
    held: set[str] = field(default_factory=set)
    tasks: float = 0.0
    work: float = 0.0


@dataclass(slots=True)
class _Lines:
    """The tasks of a model by turn: in the queue, held ahead, and drawn.

    Of those that are drawn `shares` has what is left of each task, where the others have what is left of its work.
    """

    queued: Line = field(default_factory=Line)
    ahead: Line = field(default_factory=Line)
    drawn: Line = field(default_factory=Line)
    shares: Line = field(default_factory=Line)

    def add(self, entry: _Entry) -> None:
        self._of(entry).add(entry.place, entry.left)
        if entry.is_drawn:
            self.shares.add(entry.place, entry.share)

    def remove(self, entry: _Entry) -> None:
        self._of(entry).remove(entry.place)
        if entry.is_drawn:
            self.shares.remove(entry.place)

    def change(self, entry: _Entry) -> None:
        """Another step was made for one that is drawn."""
        self.drawn.change(entry.place, entry.left)
        self.shares.change(entry.place, entry.share)

    def before(self, place: Place) -> tuple[int, float, float]:
        """How many have made no step yet, and how many tasks and how much work are left, of all before it."""
        queued, queued_work = self.queued.before(place)
        ahead, ahead_work = self.ahead.before(place)
        drawn_work, shares = self.drawn.before(place)[1], self.shares.before(place)[1]
        return queued + ahead, queued + ahead + shares, queued_work + ahead_work + drawn_work

    def _of(self, entry: _Entry) -> Line:
        if entry.worker_id is None:
            return self.queued
        return self.drawn if entry.is_drawn else self.ahead


class Forecast:
    """Every unfinished task in its line, and the workers that draw them. Used from the event loop only."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: dict[str, _Entry] = {}
        self._lines: dict[str, _Lines] = {}
        self._teams: dict[frozenset[str], _Team] = {}
        self._team_of: dict[str, _Team] = {}
        self._away: dict[str, Away] = {}
        #: By worker; none of one that holds nothing.
        self._desks: dict[str, _Desk] = {}
        self._moved_at = -math.inf
        self._numbers = itertools.count()

    def arrive(self, worker_id: str, models: Iterable[str]) -> None:
        """A worker draws these models from now on."""
        self.leave(worker_id)
        drawn = frozenset(models)
        team = self._teams.setdefault(drawn, _Team(drawn))
        team.workers += 1
        self._team_of[worker_id] = team

    def leave(self, worker_id: str) -> None:
        """The worker is gone."""
        self._away.pop(worker_id, None)
        if (team := self._team_of.pop(worker_id, None)) is not None:
            team.workers -= 1

    def swap(self, worker_id: str, away: Away, waited: float = 0.0) -> None:
        """Which weights are away from the worker's device now; for how many seconds it could draw nothing for that."""
        former, self._away[worker_id], now = self._away.get(worker_id, {}), away, self._now()
        if away != former:
            self._moved_at = now
        if (desk := self._desks.get(worker_id)) is not None:
            desk.counted_at = min(now, desk.counted_at + waited)

    def put(self, record: TaskRecord, progress: float) -> None:
        """The task as it is written down; `progress` is where it goes on from."""
        former = self._entries.pop(record.id, None)
        if former is not None:
            self._take_out(record.id, former, finished=record.state is State.READY)
        if record.state not in (State.QUEUED, State.RUNNING):
            return
        number = next(self._numbers) if former is None else former.place[1]
        entry = _Entry(
            model=record.generation.model, place=(record.turn, number), work=record.work,
            step=1 / record.generation.steps, worker_id=record.worker_id, progress=progress,
        )  # fmt: skip
        self._entries[record.id] = entry
        self._lines_of(entry).add(entry)
        if record.worker_id is not None:
            self._hold(record.id, record.worker_id)

    def move_up(self, task_id: str, turn: float) -> None:
        """The task got an earlier turn, if this one is earlier."""
        entry = self._entries.get(task_id)
        if entry is not None and turn < entry.place[0]:
            lines = self._lines_of(entry)
            lines.remove(entry)
            entry.place = (turn, entry.place[1])
            lines.add(entry)

    def take_up(self, task_id: str) -> None:
        """The task's worker is about to make a step."""
        entry = self._entries.get(task_id)
        if entry is not None and entry.worker_id is not None:
            entry.is_taken_up = True

    def drawn(self, task_id: str) -> float:
        """The share of the task that is drawn, with the step that is being made, from 0 to 1."""
        entry = self._entries.get(task_id)
        if entry is None:
            return 0.0
        return min(1.0, entry.progress + (entry.step if entry.is_taken_up else 0.0))

    def advance(self, task_id: str, progress: float) -> None:
        """The task's worker has made a step."""
        entry = self._entries.get(task_id)
        if entry is not None and entry.worker_id is not None:
            self._count(entry, entry.worker_id, progress)
            if entry.is_drawn:
                entry.progress = progress
                self._lines_of(entry).change(entry)
            else:
                self._lines_of(entry).remove(entry)
                entry.progress, entry.is_taken_up, entry.is_drawn = progress, True, True
                self._lines_of(entry).add(entry)
            self._moved_at = self._now()

    def _count(self, entry: _Entry, worker_id: str, progress: float) -> None:
        """What its worker has done for it since it was last heard of."""
        desk, done = self._desks[worker_id], max(0.0, progress - entry.progress)
        desk.tasks += done
        desk.work += done * entry.work

    @property
    def work_left(self) -> float:
        """Of all that waits or is drawn, in predicted TFLOP."""
        return sum(entry.left for entry in self._entries.values())

    def head(self, models: Sequence[str]) -> Head | None:
        """What comes first of all that waits for one of these models."""
        firsts = [
            (first, model)
            for model in models
            if (lines := self._lines.get(model)) is not None and (first := lines.queued.first) is not None
        ]
        (turn, _), model = min(firsts, default=((math.inf, 0), ""))
        return Head(turn=turn, model=model) if firsts else None

    def outlook(self, task_id: str) -> Outlook | None:
        """What is known of the task's turn; None of one that neither waits nor is drawn."""
        entry = self._entries.get(task_id)
        if entry is None:
            return None
        before = self._before(entry)
        if entry.worker_id is not None:
            seconds = self._seconds_at(entry, entry.worker_id)
        else:
            seconds = self._seconds_in_line(entry, before)
        position = sum(waiting for waiting, _, _ in before.values())
        is_served = self.is_served(entry.model) is not False
        return Outlook(position=None if entry.is_drawn else position, seconds=seconds, is_served=is_served)

    def is_served(self, model: str) -> bool | None:
        """Whether a worker draws it; None: no worker is there."""
        return bool(self._serving(model)) if any(team.workers for team in self._teams.values()) else None

    def _before(self, entry: _Entry) -> Mapping[str, tuple[int, float, float]]:
        """What comes before it, by model, of all that its model's workers draw: how many that have made no step yet,
        and all that is left, in tasks and in work."""
        teams = [team.models for team in self._serving(entry.model)]
        related = {entry.model}.union(*teams) if teams else set(self._lines)  # whoever comes may draw them all
        return {model: lines.before(entry.place) for model in related if (lines := self._lines.get(model)) is not None}

    def _serving(self, model: str) -> list[_Team]:
        return [team for team in self._teams.values() if team.workers and model in team.models]

    def _seconds_in_line(self, entry: _Entry, before: Mapping[str, tuple[int, float, float]]) -> float | None:
        """All workers together get through what comes before it, then one of them draws it."""
        if self._is_quiet:
            return None
        tasks, work = sum(part[1] for part in before.values()), sum(part[2] for part in before.values())
        first, own = self._together(entry.model, tasks, work), self._together(entry.model, entry.share, entry.left)
        if own is None or (first is None and tasks):
            return None
        workers = [worker_id for worker_id, team in self._team_of.items() if entry.model in team.models]
        swaps = self._swaps({entry.model, *(model for model, part in before.items() if part[1])}, workers)
        return swaps + (first[0] if first is not None else 0.0) + own[0] * own[1]

    def _together(self, model: str, tasks: float, work: float) -> tuple[float, int] | None:
        """In how many seconds the workers of the model whose speed is known do as much, and how many they are."""
        known = [
            (team.workers, seconds)
            for team in self._serving(model)
            if (seconds := team.speed.seconds_for(tasks, work)) is not None and seconds > 0
        ]
        if not known:
            return None
        return 1 / sum(count / seconds for count, seconds in known), sum(count for count, _ in known)

    def _seconds_at(self, entry: _Entry, worker_id: str) -> float | None:
        """Its worker draws what it holds one after the other, by turn."""
        team = self._team_of.get(worker_id)
        if team is None or self._is_quiet:
            return None
        held = [self._entries[task_id] for task_id in self._desks[worker_id].held]
        first = [other for other in held if other.place <= entry.place]
        seconds = team.speed.seconds_for(sum(other.share for other in first), sum(other.left for other in first))
        return None if seconds is None else seconds + self._swaps({other.model for other in first}, [worker_id])

    def _swaps(self, models: Collection[str], workers: Iterable[str]) -> float:
        """In how many seconds all weights come that these models need and none of the workers has on its device.

        Each comes once: turns that checkpoints take beyond that cost at most a fifth of the time (`engine.duty`).
        """
        offers = [self._away.get(worker_id, {}) for worker_id in workers]
        soonest: dict[frozenset[str], float] = {}
        for model in models:
            ways = [next((one for one in away.items() if model in one[0]), None) for away in offers]
            away = [way for way in ways if way is not None]
            if away and len(away) == len(ways):
                shared, seconds = min(away, key=_seconds)
                soonest[shared] = seconds
        return sum(soonest.values())

    @property
    def _is_quiet(self) -> bool:
        return self._now() - self._moved_at > QUIET_S

    def _lines_of(self, entry: _Entry) -> _Lines:
        return self._lines.setdefault(entry.model, _Lines())

    def _hold(self, task_id: str, worker_id: str) -> None:
        self._moved_at = self._now()
        self._desks.setdefault(worker_id, _Desk(self._moved_at)).held.add(task_id)

    def _take_out(self, task_id: str, entry: _Entry, *, finished: bool) -> None:
        """Out of its line; what its worker has done since it last finished one tells how fast that is."""
        self._lines_of(entry).remove(entry)
        if entry.worker_id is None:
            return
        now = self._moved_at = self._now()
        desk, team = self._desks[entry.worker_id], self._team_of.get(entry.worker_id)
        if finished:
            self._count(entry, entry.worker_id, 1.0)
            if team is not None:
                team.speed.learn(desk.tasks, desk.work, max(0.0, now - desk.counted_at))
            desk.tasks, desk.work, desk.counted_at = 0.0, 0.0, now
        desk.held.discard(task_id)
        if not desk.held:
            del self._desks[entry.worker_id]


def _seconds(way: tuple[frozenset[str], float]) -> float:
    return way[1]
