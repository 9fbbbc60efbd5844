"""What polls see: every unfinished task and the newest finished ones, in memory.

A poll of an unchanged task never touches the disk. An unfinished task costs a few hundred bytes here; its prompt
stays in the database until it is ready.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import ACTIVE, State

#: Finished tasks kept in memory; older ones are read from the store.
FINISHED_VIEWS = 4096


@dataclass(slots=True)
class View:
    """The public face of one task. `record` is there once the task is final.

    `recipe` is there while the task leads or may follow equal ones, whose progress is the leader's.
    """

    id: str
    account_id: str
    state: State
    warnings: tuple[str, ...]
    created_at: float
    recipe: bytes | None = None
    step: int = 0
    steps: int = 0
    record: TaskRecord | None = None

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.step / self.steps if self.steps else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A task in its account's list; `progress` from 0 to 1."""

    record: TaskRecord
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Some of an account's tasks, newest first; `end` is where the next part begins, and None on the last one."""

    tasks: tuple[Listed, ...]
    end: int | None


class Views:
    """Task id -> View. Used from the event loop only."""

    def __init__(
        self, finished_views: int = FINISHED_VIEWS, on_change: Callable[[View], None] = lambda _view: None
    ) -> None:
        """`on_change` is called with each view that is new or has changed."""
        self._active: dict[str, View] = {}
        self._finished: OrderedDict[str, View] = OrderedDict()
        #: By recipe: the task that equal ones follow, and those that do.
        self._leading: dict[bytes, View] = {}
        self._following: dict[bytes, dict[str, View]] = {}
        self._limit = finished_views
        self._on_change = on_change

    def __len__(self) -> int:
        """How many tasks are unfinished."""
        return len(self._active)

    @property
    def following(self) -> int:
        """How many of them wait for an equal task's picture."""
        return sum(map(len, self._following.values()))

    def waiting(self) -> dict[State, tuple[int, float]]:
        """By state, how many are unfinished, and when the oldest of them came."""
        found = dict.fromkeys(ACTIVE, (0, math.inf))
        for view in self._active.values():
            number, oldest = found[view.state]
            found[view.state] = number + 1, min(oldest, view.created_at)
        return found

    def get(self, task_id: str) -> View | None:
        """The task's view, if it is in memory."""
        view = self._active.get(task_id)
        if view is None and (view := self._finished.get(task_id)) is not None:
            self._finished.move_to_end(task_id)
        return view

    def put(self, record: TaskRecord, *, step: int = 0, steps: int = 0) -> View:
        """Show the task as it is written down; if it is unfinished, it goes on from `step`."""
        self._leave(self._active.pop(record.id, None))
        if record.state.is_final:
            view = _view(record, record)
            self._finished[record.id] = view
            if len(self._finished) > self._limit:
                self._finished.popitem(last=False)
        else:
            view = _view(record, None)
            view.step, view.steps = step, steps
            self._active[record.id] = view
            self._join(view)
        self._on_change(view)
        return view

    def advance(self, task_id: str, step: int, steps: int) -> None:
        """Show the progress of a running task."""
        view = self._active.get(task_id)
        if view is not None and view.state is State.RUNNING:
            view.step, view.steps = step, steps
            self._on_change(view)
            self._lead(view)

    def drawn(self, view: View) -> View:
        """The task whose drawing this one waits for: itself, or the one it follows."""
        if view.state is not State.FOLLOWING or view.recipe is None:
            return view
        return self._leading.get(view.recipe, view)

    def followers(self, task_id: str) -> Sequence[str]:
        """Those that wait for this task's picture."""
        view = self._active.get(task_id)
        if view is None or view.recipe is None or self._leading.get(view.recipe) is not view:
            return ()
        return tuple(self._following.get(view.recipe, ()))

    def _join(self, view: View) -> None:
        """Among equal tasks one leads, and all show what it shows."""
        if view.recipe is None:
            return
        if view.state is not State.FOLLOWING:
            self._leading[view.recipe] = view
            self._lead(view)
            return
        self._following.setdefault(view.recipe, {})[view.id] = view
        if (leader := self._leading.get(view.recipe)) is not None:
            view.step, view.steps = leader.step, leader.steps

    def _lead(self, view: View) -> None:
        if view.recipe is not None:
            for follower in self._following.get(view.recipe, {}).values():
                follower.step, follower.steps = view.step, view.steps
                self._on_change(follower)

    def _leave(self, view: View | None) -> None:
        if view is None or view.recipe is None:
            return
        if self._leading.get(view.recipe) is view:
            del self._leading[view.recipe]
        if (others := self._following.get(view.recipe)) is not None:
            others.pop(view.id, None)
            if not others:
                del self._following[view.recipe]

    def forget_finished(self) -> None:
        """Read finished tasks anew: some were deleted."""
        self._finished.clear()


def _view(record: TaskRecord, kept: TaskRecord | None) -> View:
    return View(
        id=record.id, account_id=record.account_id, state=record.state, warnings=record.warnings,
        created_at=record.created_at,
        recipe=record.recipe if record.repeatable and kept is None else None, record=kept,
    )  # fmt: skip
