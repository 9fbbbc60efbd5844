"""The watchdog: ends a worker whose engine has nothing to say for much longer than its work should take.

It is a thread that the interpreter has no part in (faulthandler's), so nothing can hold it up: neither a kernel that
never returns nor a library that never lets another thread run. It writes to standard error where every thread stood,
and ends the process: what is stuck cannot be interrupted, and the process is what is replaced. A process that is
stopped as a whole stops its watchdog too; that one the server finds by its silence.
What it does not know: engines, tasks, servers.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable

from fluxserve.catalogue import MODELS, Generation, Size

#: News that takes so many times longer than expected is not coming.
HANG_FACTOR = 10
#: Of how long work takes, the slowest is remembered; each time it was faster, this share of that memory is kept.
_MEMORY = 0.9
#: The watchdog is set anew only where that moves its moment by more than this share of its patience.
_SLACK = 0.05
#: A moment that is over already is set so many seconds ahead.
_SOON = 0.1
_UNIT = Size(256, 256)


def step_work(generation: Generation) -> float:
    """How much more a step of this picture is predicted to take than one at 256x256 of the same model."""
    network = MODELS[generation.model].network
    return network.step_work(generation.size, generation.references) / network.step_work(_UNIT)


def _end_process_after(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)


class Watchdog:
    """Waits for news as long as there is work. `patience`: at least so many seconds."""

    def __init__(
        self,
        patience: float,
        *,
        arm: Callable[[float], None] = _end_process_after,
        disarm: Callable[[], None] = faulthandler.cancel_dump_traceback_later,
    ) -> None:
        self._patience = patience
        self._arm = arm
        self._disarm = disarm
        #: Seconds to a unit of work.
        self._rate = 0.0
        self._moment: float | None = None

    def warmed(self, seconds: float) -> None:
        """Loading and drawing once took so long: where that is slow, the first step may be as well."""
        self._rate = seconds / HANG_FACTOR

    def heard(self, seconds: float, work: float) -> None:
        """So much work was done in so many seconds."""
        if work:
            self._rate = max(seconds / work, _MEMORY * self._rate)

    def expect(self, work: float, *, since: float, now: float) -> None:
        """News is to come after `since`, before all `work` that is held should have moved many times over."""
        limit = max(self._patience, HANG_FACTOR * self._rate * work)
        if self._moment is None or abs(since + limit - self._moment) > _SLACK * limit:
            self._moment = since + limit
            self._arm(max(self._moment - now, _SOON))

    def rest(self) -> None:
        """There is nothing to wait for."""
        if self._moment is not None:
            self._moment = None
            self._disarm()
