"""What polls see: every unfinished task and the newest finished ones, in memory.

A poll of an unchanged task never touches the disk. An unfinished task costs a few hundred bytes here; its prompt
stays in the database until it is ready.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

#: Finished tasks kept in memory; older ones are read from the store.
FINISHED_VIEWS = 4096


@dataclass(slots=True)
class View:
    """The public face of one task. `record` is there once the task is final."""

    id: str
    account_id: str
    state: State
    warnings: tuple[str, ...]
    step: int = 0
    steps: int = 0
    record: TaskRecord | None = None

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.step / self.steps if self.steps else 0.0


class Views:
    """Task id -> View. Used from the event loop only."""

    def __init__(
        self, finished_views: int = FINISHED_VIEWS, on_change: Callable[[View], None] = lambda _view: None
    ) -> None:
        """`on_change` is called with each view that is new or has changed."""
        self._active: dict[str, View] = {}
        self._finished: OrderedDict[str, View] = OrderedDict()
        self._limit = finished_views
        self._on_change = on_change

    def __len__(self) -> int:
        """How many tasks are unfinished."""
        return len(self._active)

    def get(self, task_id: str) -> View | None:
        """The task's view, if it is in memory."""
        view = self._active.get(task_id)
        if view is None and (view := self._finished.get(task_id)) is not None:
            self._finished.move_to_end(task_id)
        return view

    def put(self, record: TaskRecord) -> View:
        """Show the task as it is written down."""
        if record.state.is_final:
            self._active.pop(record.id, None)
            view = _view(record, record)
            self._finished[record.id] = view
            if len(self._finished) > self._limit:
                self._finished.popitem(last=False)
        else:
            view = _view(record, None)
            self._active[record.id] = view
        self._on_change(view)
        return view

    def advance(self, task_id: str, step: int, steps: int) -> None:
        """Show the progress of a running task."""
        view = self._active.get(task_id)
        if view is not None and view.state is State.RUNNING:
            view.step, view.steps = step, steps
            self._on_change(view)

    def forget_finished(self) -> None:
        """Read finished tasks anew: some were deleted."""
        self._finished.clear()


def _view(record: TaskRecord, kept: TaskRecord | None) -> View:
    return View(id=record.id, account_id=record.account_id, state=record.state, warnings=record.warnings, record=kept)
