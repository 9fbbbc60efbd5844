"""How fast a worker draws, learnt from what it drew: seconds for each task, and seconds for each TFLOP of it.

Large networks take as long as their predicted work says; small ones hardly care how large a picture is. Both are told
apart by tasks of different sizes. Until there were such, nothing is said of what differs much from those there were.
What it does not know: tasks, workers, the time.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What is learnt once adds to what is known; the newest 32 count for most of it.
_FORGET = 1 - 1 / 32
#: How much tasks have to differ (mean square, of their work over the mean work) to outweigh that both are as likely.
_ENOUGH = 0.03
#: Where both ways to see it differ by more than this, and nothing speaks for either, nobody knows.
_FACTOR = 4.0


@dataclass(slots=True)
class Speed:
    """Sums over what was drawn: tasks or parts of them, their TFLOP, their seconds, and products of those."""

    tasks: float = 0.0
    work: float = 0.0
    seconds: float = 0.0
    tasks_tasks: float = 0.0
    tasks_work: float = 0.0
    work_work: float = 0.0
    tasks_seconds: float = 0.0
    work_seconds: float = 0.0

    def learn(self, tasks: float, work: float, seconds: float) -> None:
        """A worker drew so many tasks, with so much work in all, in so many seconds."""
        self.tasks = self.tasks * _FORGET + tasks
        self.work = self.work * _FORGET + work
        self.seconds = self.seconds * _FORGET + seconds
        self.tasks_tasks = self.tasks_tasks * _FORGET + tasks * tasks
        self.tasks_work = self.tasks_work * _FORGET + tasks * work
        self.work_work = self.work_work * _FORGET + work * work
        self.tasks_seconds = self.tasks_seconds * _FORGET + tasks * seconds
        self.work_seconds = self.work_seconds * _FORGET + work * seconds

    def seconds_for(self, tasks: float, work: float) -> float | None:
        """How long one worker takes for as much; None: nobody knows."""
        if not (self.tasks > 0 and self.work > 0 and self.seconds > 0):
            return None
        each, usual = self.seconds / self.tasks, work * self.tasks / self.work
        if not self._is_told_apart and max(tasks, usual) > _FACTOR * min(tasks, usual):
            return None
        share = self._share_by_task
        return each * (share * tasks + (1 - share) * usual)

    @property
    def _spread(self) -> float:
        """How much the tasks differed in work: the sum of the squares of tasks - work / mean work."""
        mean = self.work / self.tasks
        return max(0.0, self.tasks_tasks - 2 * self.tasks_work / mean + self.work_work / mean**2)

    @property
    def _is_told_apart(self) -> bool:
        return self._spread >= _ENOUGH * self.tasks_tasks

    @property
    def _share_by_task(self) -> float:
        """The share of the seconds that tasks take whatever their work, from 0 to 1; the others go with the work.

        Least squares with both coefficients at least 0, where all seconds together come out as they were. So there is
        one unknown, with a closed form, drawn towards one half as long as tasks hardly differ.
        """
        each, mean = self.seconds / self.tasks, self.work / self.tasks
        slope = (self.tasks_seconds - self.work_seconds / mean) / each
        half = (self.tasks_tasks - self.work_work / mean**2) / 2
        share = 0.5 + (slope - half) / (self._spread + _ENOUGH * self.tasks_tasks)
        return min(max(share, 0.0), 1.0)
