"""What a webhook carries beside its body, and when it is tried again: pure functions.

What it does not know: tasks, sockets, the clock.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds from one attempt to the next. The first four are those that the published API gives; the rest adds up to
#: 41 hours and 35 minutes.
DELAYS = (0, 1, 5, 30, 300, 1800, 7200, 18_000, 36_000, 86_400)
#: From this delay on they are spread by a fifth either way: a receiver that comes back is not met by all at once.
_SPREAD_FROM, _SPREAD = 300, 0.2
#: The longest a receiver may put an attempt off by Retry-After.
MAX_RETRY_AFTER_S = 3600.0
GONE = 410
#: The problem of an attempt whose courier ended over it: nobody knows what the receiver got.
LOST = "courier_lost"
#: That of one that could not be signed.
UNSIGNED = "secret_lost"
_STANDARD = "whsec_"
#: What may stand in a header of HTTP.
_PLAIN = re.compile(r"[!-~]+(?: [!-~]+)*")
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How an attempt went: the status that was answered, or the `problem` that there was none."""

    status: int | None
    problem: str | None = None
    retry_after: str = ""

    @property
    def is_good(self) -> bool:
        """The receiver has it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_telling(self) -> bool:
        """It says something of the receiver."""
        return self.problem not in (LOST, UNSIGNED)


def webhook_id(task_id: str) -> str:
    """The same at every attempt, so that a receiver can tell what it has seen."""
    return f"msg_{task_id.replace('-', '')}"


def headers(body: bytes, *, task_id: str, secret: str | None, now: float, shows_secret: bool) -> Headers:
    """Signed over the body as it is sent. Without a secret there is nothing to sign with."""
    message_id, timestamp = webhook_id(task_id), str(int(now))
    named: Headers = (
        ("content-type", "application/json"), ("webhook-id", message_id), ("webhook-timestamp", timestamp),
    )  # fmt: skip
    if secret is None:
        return named
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    standard = base64.b64encode(hmac.digest(_key(secret), signed, "sha256")).decode()
    plain = hmac.new(_bytes(secret), body, "sha256").hexdigest()
    named += (("webhook-signature", f"v1,{standard}"), ("x-bfl-signature", f"sha256={plain}"))
    return (*named, ("x-webhook-secret", secret)) if shows_secret and _PLAIN.fullmatch(secret) else named


def _key(secret: str) -> bytes:
    """What Standard Webhooks sign with: what `whsec_` stands before as base64, and any other secret as it is."""
    if secret.startswith(_STANDARD):
        try:
            return base64.b64decode(secret.removeprefix(_STANDARD), validate=True)
        except (binascii.Error, ValueError):
            pass
    return _bytes(secret)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def next_due(attempts: int, reply: Reply, now: float, rng: Callable[[], float]) -> float | None:
    """When the next attempt is due after so many that failed, the last one with this reply; None: there is none.

    `rng`: from 0 to 1.
    """
    if reply.status == GONE or attempts >= len(DELAYS):
        return None
    delay = float(DELAYS[attempts])
    if delay >= _SPREAD_FROM:
        delay *= 1 - _SPREAD + 2 * _SPREAD * rng()
    return now + max(delay, min(retry_after(reply.retry_after, now), MAX_RETRY_AFTER_S))


def retry_after(text: str, now: float) -> float:
    """Seconds that a Retry-After asks for: a number, or a date; 0 where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return 0.0
