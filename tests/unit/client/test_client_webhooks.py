"""Webhooks as a receiver checks them: against what the server sends, and what others send in its name."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from fluxserve.client import TaskFailed, WebhookRefused, verify
from fluxserve.delivery.webhooks import headers

BODY = json.dumps(
    {"id": "t1", "status": "Ready", "result": {"sample": "s", "prompt": "an apple", "seed": 7}, "cost": 2.5}
).encode()
NOW = 1_800_000_000.0


def sent(secret: str, body: bytes = BODY, at: float = NOW) -> Mapping[str, str]:
    """The headers of the server's own webhook."""
    return dict(headers(body, task_id="t1", secret=secret, now=at, shows_secret=False))


@pytest.mark.parametrize("secret", ["a secret", "whsec_c2l4dGVlbiBsZXR0ZXJzIQ==", "whsec_no base64", "gëheim"])
def test_what_the_server_sends_is_taken(secret: str) -> None:
    assert verify(BODY, sent(secret), secret, now=lambda: NOW).prompt == "an apple"
    upper = {name.title(): value for name, value in sent(secret).items()}
    assert verify(BODY, upper, secret, now=lambda: NOW + 299).seed == 7
    plain = {"X-BFL-Signature": sent(secret)["x-bfl-signature"]}
    assert verify(BODY, plain, secret).cost == 2.5


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": ""},
        {"webhook-id": "another"},
        {"webhook-timestamp": str(int(NOW) - 301)},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": str(int(NOW) + 1)},
    ],
    ids=str,
)
def test_what_was_changed_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(WebhookRefused):
        verify(BODY, {**sent("secret"), **change}, "secret", now=lambda: NOW)


@pytest.mark.parametrize("given", [{}, {"x-bfl-signature": "sha256="}, {"x-bfl-signature": "é"}], ids=str)
def test_what_is_not_signed_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(WebhookRefused, match="not signed"):
        verify(BODY, given, "secret")


def test_another_body_or_another_secret_is_refused() -> None:
    for body, secret in ((BODY + b" ", "secret"), (BODY, "Secret")):
        with pytest.raises(WebhookRefused, match="not signed"):
            verify(body, sent("secret"), secret, now=lambda: NOW)


@pytest.mark.parametrize("body", [b"no json", b'{"id": "t1", "status": "Pending"}'])
def test_what_is_no_end_of_a_task_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookRefused):
        verify(body, sent("secret", body), "secret", now=lambda: NOW)


def test_a_task_that_ended_badly_is_raised() -> None:
    body = b'{"id": "t1", "status": "Error", "details": {"error": "The worker was lost."}}'
    with pytest.raises(TaskFailed, match="The worker was lost"):
        verify(body, sent("secret", body), "secret", now=lambda: NOW)
