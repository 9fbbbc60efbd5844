"""Webhooks on the receiving side: who sent them, and what they say."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping

from fluxserve.client import answers
from fluxserve.client.answers import Progress, Result
from fluxserve.client.errors import WebhookRefused

#: A signed moment may be so many seconds away: an old message that is sent again is refused.
TOLERANCE_S = 300.0
_PREFIX = "whsec_"


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance: float = TOLERANCE_S,
    now: Callable[[], float] = time.time,
) -> Result:
    """The task's result, of a webhook whose `webhook_secret` this is.

    By its Standard Webhooks signature, which is of a moment, or where there is none by `X-BFL-Signature`.
    Raises WebhookRefused for what is not from there, and TaskFailed for a task that has ended badly.

    >>> body = b'{"id": "1", "status": "Ready", "result": {"sample": "s", "prompt": "an apple", "seed": 7}}'
    >>> signature = "sha256=" + hmac.new(b"secret", body, "sha256").hexdigest()
    >>> verify(body, {"X-BFL-Signature": signature}, "secret").seed
    7
    """
    given = {name.lower(): value for name, value in headers.items()}
    if "webhook-signature" in given:
        _check_standard(body, given, secret, tolerance, now())
    elif not _is_equal(given.get("x-bfl-signature", ""), _plain(body, secret)):
        raise WebhookRefused("The webhook is not signed with this secret.")
    try:
        answer = json.loads(body)
    except ValueError:
        raise WebhookRefused("The webhook holds no JSON.") from None
    outcome = answers.outcome(str(answers.field(answer, "id")), answer)
    if isinstance(outcome, Progress):
        raise WebhookRefused("The webhook tells of a task that has not ended.")
    return outcome


def _check_standard(body: bytes, given: Mapping[str, str], secret: str, tolerance: float, now: float) -> None:
    message_id, moment = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    if not (moment.isascii() and moment.isdigit()) or abs(now - int(moment)) > tolerance:
        raise WebhookRefused("The webhook is not of this moment.")
    signed = f"{message_id}.{moment}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    if not any(_is_equal(one, expected) for one in given["webhook-signature"].split()):
        raise WebhookRefused("The webhook is not signed with this secret.")


def _plain(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(_bytes(secret), body, hashlib.sha256).hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _key(secret: str) -> bytes:
    """A secret of Standard Webhooks is base64 behind its prefix; any other is taken as it is."""
    if not secret.startswith(_PREFIX):
        return _bytes(secret)
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        return _bytes(secret)


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(_bytes(given), _bytes(expected))
