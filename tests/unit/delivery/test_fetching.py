"""What came of a call for a picture: whether it is made again, when, and in what words its caller is told."""

from __future__ import annotations

import pytest

from fluxserve.delivery.fetching import Fetched, pause_after, reason

NOW = 1_800_000_000.0


def problem(word: str) -> Fetched:
    return Fetched(status=None, problem=word)


@pytest.mark.parametrize(
    "fetched",
    [
        *map(problem, ("courier_lost", "unreachable", "timeout", "no_answer")),
        *(Fetched(status=status) for status in (408, 425, 429, 500, 502, 503, 599)),
    ],
)
def test_what_may_pass_has_two_more_attempts(fetched: Fetched) -> None:
    assert [pause_after(attempts, fetched, NOW) for attempts in (1, 2, 3)] == [1.0, 5.0, None]


@pytest.mark.parametrize(
    "fetched",
    [
        *map(problem, ("tls", "redirects", "too_large", "refused")),
        *(Fetched(status=status) for status in (201, 204, 206, 304, 400, 401, 403, 404, 410)),
    ],
)
def test_what_will_not_change_has_none(fetched: Fetched) -> None:
    assert pause_after(1, fetched, NOW) is None
    assert not fetched.is_good


@pytest.mark.parametrize(("asked", "seconds"), [("3", 3.0), ("0", 1.0), ("3600", 30.0), ("soon", 1.0)])
def test_retry_after_is_honoured_up_to_half_a_minute(asked: str, seconds: float) -> None:
    assert pause_after(1, Fetched(status=503, retry_after=asked), NOW) == seconds


def test_only_a_200_is_a_file() -> None:
    assert Fetched(status=200, body=b"x").is_good
    assert problem("courier_lost").is_lost
    assert not Fetched(status=503).is_lost


def test_reasons_are_words_of_our_own_whatever_the_problem_is() -> None:
    assert reason(Fetched(status=404)) == "its URL is answered with HTTP 404, not with a picture"
    assert reason(problem("unreachable")) == "its URL cannot be reached"
    assert reason(problem("too_large")) == "its URL answers with more than 20 MB"
    assert reason(problem("something new")) == "its URL could not be called"
