"""Who is on duty: nobody is sent away before a swap has paid, nobody waits for ever, nobody overtakes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fluxserve.engine.duty import STINT, Need, on_duty

#: Room for two of the checkpoints below, each of which comes in a second.
ROOM, SIZE, SECONDS = 10, 5, 1.0
STINT_S = STINT * 2 * SECONDS


def need(name: str, *, since: float, is_on_duty: bool = False, is_held: bool = False, takes: int = SIZE) -> Need:
    return Need(
        origin=(Path(name),),
        takes=takes,
        since=since,
        seconds=SECONDS,
        is_on_duty=is_on_duty,
        is_held=is_held,
    )


def names(*needs: Need, room: int = ROOM, now: float = 100.0) -> str:
    """Of those on duty, in the order of the alphabet."""
    return "".join(sorted(str(origin[0]) for origin in on_duty(needs, room, now)))


def test_all_that_fit_are_on_duty() -> None:
    assert names(need("a", since=0.0), need("b", since=1.0)) == "ab"


def test_who_waited_longest_comes_first_and_a_smaller_one_does_not_overtake() -> None:
    large = need("a", since=1.0, is_on_duty=True, takes=9)
    assert names(large, need("b", since=99.0), need("c", since=99.5, takes=1), now=STINT_S) == "a"


def test_one_is_on_duty_however_little_room_there_is() -> None:
    assert names(need("b", since=1.0), need("a", since=2.0), room=1) == "b"


def test_nobody_is_sent_away_before_the_swap_has_paid_and_then_the_longest_on_duty() -> None:
    here = [need("a", since=90.0, is_on_duty=True), need("b", since=91.0, is_on_duty=True)]
    waiting = need("c", since=90.5)
    assert names(*here, waiting, now=90.0 + STINT_S) == "ab"
    assert names(*here, waiting, now=90.1 + STINT_S) == "bc"


def test_nobody_is_sent_away_for_one_that_would_not_fit_all_the_same() -> None:
    here = [need("a", since=90.0, is_on_duty=True), need("b", since=94.0, is_on_duty=True)]
    assert names(*here, need("c", since=0.0, takes=ROOM), now=95.0) == "ab"


def test_who_has_nothing_left_to_do_makes_room_at_once() -> None:
    assert names(need("b", since=99.9), room=SIZE) == "b"


def test_who_is_relieved_makes_room_only_when_its_pictures_are_decoded() -> None:
    leaving = need("a", since=0.0, is_on_duty=True, is_held=True)
    waiting = need("b", since=1.0)
    assert names(leaving, waiting, room=SIZE) == ""
    left = replace(leaving, is_on_duty=False, since=100.0)
    assert names(left, waiting, room=SIZE, now=101.0) == ""
    assert names(replace(left, is_held=False), waiting, room=SIZE, now=102.0) == "b"


def test_swaps_take_at_most_a_fifth_of_the_time_and_everyone_comes_again() -> None:
    """Three that never run out of work, where one fits."""
    needs = {name: need(name, since=float(place)) for place, name in enumerate("abc")}
    now, swaps, turns = 10.0, 0, ""
    while len(turns) < 30:
        now += 0.01
        on = {str(origin[0]) for origin in on_duty(list(needs.values()), SIZE, now)}
        for name, one in needs.items():
            if one.is_on_duty != (name in on):
                swaps += name in on
                turns += name if name in on else ""
                now += SECONDS if name in on else 0.0
                needs[name] = replace(one, is_on_duty=name in on, since=now)
    assert turns == "abc" * 10
    assert swaps * SECONDS <= 0.2 * now
