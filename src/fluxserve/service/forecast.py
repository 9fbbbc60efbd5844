"""When a task's turn comes: how many wait before it, and in about how many seconds it is ready.

Work that is left, by turn, over how fast the workers of a model have been drawing lately. Nothing is said of what is
not known: no worker draws the model, none has finished a task yet, or nothing has moved for too long.
What it does not know: the store, who asks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fluxserve.service.line import Line, Place
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

#: What a finished task adds to what is known of a speed; the newest 32 count for most of it.
_FORGET = 1 - 1 / 32
#: Where no worker has made a step for so many seconds, nobody knows when the next one comes.
QUIET_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`position`: how many wait before it; None: a worker has it. `seconds` until it is ready; None: nobody knows."""

    position: int | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The next task in a line: its turn, and the model it is of."""

    turn: float
    model: str


@dataclass(slots=True, kw_only=True)
class _Entry:
    """`worker_id` None: it waits. `begun` and `progress`, from 0 to 1: where its worker took it up, and is now."""

    model: str
    place: Place
    work: float
    worker_id: str | None = None
    begun: float = 0.0
    progress: float = 0.0

    @property
    def left(self) -> float:
        return self.work * (1 - self.progress)


@dataclass(slots=True)
class _Team:
    """Workers that draw the same models: how many, and what they did in how many seconds of one worker's time."""

    models: frozenset[str]
    workers: int = 0
    work: float = 0.0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """TFLOP a second of one worker."""
        return self.work / self.seconds if self.work > 0 and self.seconds > 0 else None

    def learn(self, work: float, seconds: float) -> None:
        self.work = self.work * _FORGET + work
        self.seconds = self.seconds * _FORGET + seconds


class Forecast:
    """Every unfinished task in its line, and the workers that draw them. Used from the event loop only."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._entries: dict[str, _Entry] = {}
        self._waiting: dict[str, Line] = {}
        self._drawing: dict[str, Line] = {}
        self._teams: dict[frozenset[str], _Team] = {}
        self._team_of: dict[str, _Team] = {}
        #: By worker: what it holds, and since when its work is not counted yet.
        self._held: dict[str, set[str]] = {}
        self._counted_at: dict[str, float] = {}
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
        if (team := self._team_of.pop(worker_id, None)) is not None:
            team.workers -= 1

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
            worker_id=record.worker_id, begun=progress, progress=progress,
        )  # fmt: skip
        self._entries[record.id] = entry
        self._line_of(entry).add(entry.place, entry.left)
        if record.worker_id is not None:
            self._hold(record.id, record.worker_id)

    def move_up(self, task_id: str, turn: float) -> None:
        """The task got an earlier turn, if this one is earlier."""
        entry = self._entries.get(task_id)
        if entry is not None and turn < entry.place[0]:
            line = self._line_of(entry)
            line.remove(entry.place)
            entry.place = (turn, entry.place[1])
            line.add(entry.place, entry.left)

    def advance(self, task_id: str, progress: float) -> None:
        """The task's worker has made a step."""
        entry = self._entries.get(task_id)
        if entry is not None and entry.worker_id is not None:
            entry.progress = progress
            self._line_of(entry).change(entry.place, entry.left)
            self._moved_at = self._now()

    def head(self, models: Sequence[str]) -> Head | None:
        """What comes first of all that waits for one of these models."""
        firsts = [
            (first, model)
            for model in models
            if (line := self._waiting.get(model)) is not None and (first := line.first) is not None
        ]
        (turn, _), model = min(firsts, default=((math.inf, 0), ""))
        return Head(turn=turn, model=model) if firsts else None

    def outlook(self, task_id: str) -> Outlook | None:
        """What is known of the task's turn; None of one that neither waits nor is drawn."""
        entry = self._entries.get(task_id)
        if entry is None:
            return None
        if entry.worker_id is not None:
            return Outlook(position=None, seconds=self._seconds_at(entry, entry.worker_id))
        position, work = self._before(entry)
        return Outlook(position=position, seconds=self._seconds_in_line(entry, work))

    def _before(self, entry: _Entry) -> tuple[int, float]:
        """What comes before it of all that the workers of its model draw: how many wait, and the work that is left."""
        related = set().union({entry.model}, *(team.models for team in self._serving(entry.model)))
        position, work = 0, 0.0
        for model in related:
            if (waiting := self._waiting.get(model)) is not None:
                count, left = waiting.before(entry.place)
                position, work = position + count, work + left
            if (drawing := self._drawing.get(model)) is not None:
                work += drawing.before(entry.place)[1]
        return position, work

    def _serving(self, model: str) -> list[_Team]:
        return [team for team in self._teams.values() if team.workers and model in team.models]

    def _seconds_in_line(self, entry: _Entry, before: float) -> float | None:
        """All workers together get through what comes before it, then one of them draws it."""
        known = [(team.workers, rate) for team in self._serving(entry.model) if (rate := team.rate) is not None]
        if not known or self._is_quiet:
            return None
        workers, together = sum(count for count, _ in known), sum(count * rate for count, rate in known)
        return before / together + entry.left * workers / together

    def _seconds_at(self, entry: _Entry, worker_id: str) -> float | None:
        """Its worker draws what it holds one after the other, by turn."""
        team = self._team_of.get(worker_id)
        rate = None if team is None else team.rate
        if rate is None or self._is_quiet:
            return None
        held = (self._entries[task_id] for task_id in self._held[worker_id])
        return sum(other.left for other in held if other.place <= entry.place) / rate

    @property
    def _is_quiet(self) -> bool:
        return self._now() - self._moved_at > QUIET_S

    def _line_of(self, entry: _Entry) -> Line:
        lines = self._waiting if entry.worker_id is None else self._drawing
        return lines.setdefault(entry.model, Line())

    def _hold(self, task_id: str, worker_id: str) -> None:
        self._moved_at = self._now()
        held = self._held.setdefault(worker_id, set())
        if not held:
            self._counted_at[worker_id] = self._moved_at
        held.add(task_id)

    def _take_out(self, task_id: str, entry: _Entry, *, finished: bool) -> None:
        """Out of its line; what its worker has done for it tells how fast that is."""
        self._line_of(entry).remove(entry.place)
        if entry.worker_id is None:
            return
        now = self._moved_at = self._now()
        done = entry.work * ((1.0 if finished else entry.progress) - entry.begun)
        team = self._team_of.get(entry.worker_id)
        if done > 0 and team is not None:
            team.learn(done, max(0.0, now - self._counted_at[entry.worker_id]))
            self._counted_at[entry.worker_id] = now
        held = self._held[entry.worker_id]
        held.discard(task_id)
        if not held:
            del self._held[entry.worker_id], self._counted_at[entry.worker_id]
