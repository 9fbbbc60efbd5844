"""How far a batch is: a bar in the terminal, or a function of the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with how many are done, and how many there are in all.
Report = Callable[[int, int], None]


@contextmanager
def reporting(progress: bool | Report, total: int) -> Iterator[Report]:
    """What to call. A bar needs rich; where that is not installed nothing is shown."""
    if callable(progress):
        yield progress
        return
    try:
        from rich.progress import Progress
    except ImportError:
        progress = False
    if not progress:
        yield lambda _done, _total: None
        return
    with Progress(transient=True) as bar:
        line = bar.add_task("Drawing", total=total)
        yield lambda done, _total: bar.update(line, completed=done)
