"""Pictures behind callers' URLs: what came of a call, whether it is made again, and what its caller is told. Pure.

What it does not know: tasks, sockets, the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxserve.catalogue.params import MAX_FILE
from fluxserve.delivery.webhooks import LOST, retry_after

#: A call, with all its redirects, has to be over by then.
TIMEOUT_S = 30.0
REDIRECTS = 3
#: Seconds from one attempt to the next; there is one attempt more.
PAUSES = (1.0, 5.0)
#: The longest that an answer may put the next one off by Retry-After.
MAX_RETRY_AFTER_S = 30.0
#: What may be otherwise the next time: a problem, or an answered status (408, 425, 429, and all from 500 on).
_PASSING = frozenset({LOST, "unreachable", "timeout", "no_answer"})
_PASSING_STATUSES = frozenset({408, 425, 429})
_OK = 200
#: One word for whatever could not be connected to: nobody is to learn what exists inside.
_SENTENCES = {
    LOST: "could not be called",
    "unreachable": "cannot be reached",
    "timeout": f"brought no whole answer within {TIMEOUT_S:.0f} seconds",
    "no_answer": "brought no whole HTTP answer",
    "tls": "has no certificate that can be trusted",
    "redirects": f"redirects more than {REDIRECTS} times",
    "too_large": f"answers with more than {MAX_FILE // 10**6} MB",
    "refused": "redirects to one that is not called",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came of a call: a status with a body, or the `problem` that there was none."""

    status: int | None
    body: bytes = b""
    problem: str | None = None
    retry_after: str = ""

    @property
    def is_good(self) -> bool:
        """There is a file."""
        return self.status == _OK

    @property
    def is_lost(self) -> bool:
        """Nobody knows what would have come."""
        return self.problem == LOST

    @property
    def is_passing(self) -> bool:
        """Another attempt may bring more."""
        if self.status is None:
            return self.problem in _PASSING
        return self.status in _PASSING_STATUSES or self.status >= 500


def pause_after(attempts: int, fetched: Fetched, now: float) -> float | None:
    """Seconds until the next attempt after so many, the last of which came to this; None: there is none."""
    if not fetched.is_passing or attempts > len(PAUSES):
        return None
    return max(PAUSES[attempts - 1], min(retry_after(fetched.retry_after, now), MAX_RETRY_AFTER_S))


def reason(fetched: Fetched) -> str:
    """What is wrong, for whoever named the URL."""
    if fetched.status is not None:
        return f"its URL is answered with HTTP {fetched.status}, not with a picture"
    return f"its URL {_SENTENCES.get(fetched.problem or '', 'could not be called')}"
