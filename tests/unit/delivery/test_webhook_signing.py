"""What is sealed, signed and scheduled for webhooks, as pure functions."""

from __future__ import annotations

import pytest

from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.webhooks import DELAYS, Reply, headers, next_due, retry_after

NOW = 1_800_000_000.0


def test_a_sealed_secret_opens_for_its_owner_alone() -> None:
    sealer = Sealer(bytes(32))
    sealed = sealer.seal("hush \udc80 ü", "task")
    assert sealer.open(sealed, "task") == "hush \udc80 ü"
    assert "hush" not in sealed
    assert sealer.seal("hush", "task") != sealer.seal("hush", "task")
    for other, owner in ((sealer, "other"), (Sealer(b"k" * 32), "task")):
        assert other.open(sealed, owner) is None
    for broken in ("", "x", sealed[:-4], "A" + sealed[1:], "é"):
        assert sealer.open(broken, "task") is None


def test_the_schedule_ends_within_two_days_and_begins_as_published() -> None:
    assert DELAYS[:4] == (0, 1, 5, 30)
    assert 300 == DELAYS[4] < DELAYS[-1] == 86_400
    assert sum(DELAYS) == 149_736
    failed = Reply(status=500)
    dues = [next_due(attempts, failed, NOW, lambda: 0.5) for attempts in range(1, len(DELAYS) + 1)]
    assert dues == [*(NOW + delay for delay in DELAYS[1:]), None]
    assert [next_due(5, failed, NOW, lambda at=at: at) for at in (0.0, 1.0)] == [NOW + 1440, NOW + 2160]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0), (" 7 ", 7.0), ("0", 0.0), ("-1", 0.0), ("1e9", 0.0), ("", 0.0), ("soon", 0.0), ("9" * 40, 0.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0), ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0), ("Fri, 99 Jan 2027", 0.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(text: str, seconds: float) -> None:
    assert retry_after(text, NOW) == seconds


def test_gone_ends_it_whatever_else_is_asked() -> None:
    assert next_due(1, Reply(status=410, retry_after="60"), NOW, lambda: 0.5) is None


@pytest.mark.parametrize("secret", ["two\r\nlines", "ünïcode", "\x00", "tail "])
def test_no_secret_becomes_a_header_that_could_break_one(secret: str) -> None:
    named = dict(headers(b"{}", task_id="t", secret=secret, now=NOW, shows_secret=True))
    assert "x-webhook-secret" not in named
    assert named["webhook-signature"].startswith("v1,")


def test_a_standard_secret_that_is_no_base64_is_taken_as_it_is() -> None:
    named = dict(headers(b"{}", task_id="t", secret="whsec_%%%", now=NOW, shows_secret=False))
    assert named["webhook-signature"].startswith("v1,")
