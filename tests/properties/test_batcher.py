from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxserve.engine.batcher import Candidate, choose

turns = st.floats(-1e6, 1e6)


@st.composite
def held(draw: st.DrawFn) -> list[Candidate]:
    kinds = draw(st.lists(st.tuples(st.sampled_from("aaab"), st.sampled_from("xyz")), max_size=16))
    most = {key: draw(st.integers(1, 8)) for key in "ab"}
    return [
        Candidate(ref=str(number), key=key, most=most[key], turn=draw(turns), flow=flow)
        for number, (key, flow) in enumerate(kinds)
    ]


def of(flow: str, *turns: float) -> list[Candidate]:
    """Pictures of one flow, of a size that eight share a pass of."""
    return [
        Candidate(ref=f"{flow}{number}", key="a", most=8, turn=turn, flow=flow) for number, turn in enumerate(turns)
    ]


def flows_in(candidates: list[Candidate], refs: tuple[str, ...]) -> Counter[str]:
    by_ref = {candidate.ref: candidate for candidate in candidates}
    return Counter(by_ref[ref].flow for ref in refs)


@given(held())
def test_someone_steps_whenever_someone_is_held(candidates: list[Candidate]) -> None:
    assert bool(choose(candidates)) == bool(candidates)


@given(held())
def test_a_batch_holds_each_at_most_once_and_shares_one_key_within_what_it_allows(candidates: list[Candidate]) -> None:
    refs = choose(candidates)
    chosen = [candidate for candidate in candidates if candidate.ref in refs]
    assert len(chosen) == len(refs) == len(set(refs))
    assert len({candidate.key for candidate in chosen}) <= 1
    assert not chosen or len(chosen) <= chosen[0].most


@given(held())
def test_the_lowest_turn_steps_always(candidates: list[Candidate]) -> None:
    refs = choose(candidates)
    if refs:
        by_ref = {candidate.ref: candidate for candidate in candidates}
        assert by_ref[refs[0]].turn == min(candidate.turn for candidate in candidates)


@given(held())
def test_nobody_who_could_have_stepped_has_a_lower_turn_than_somebody_of_his_flow_who_did(
    candidates: list[Candidate],
) -> None:
    refs = choose(candidates)
    by_ref = {candidate.ref: candidate for candidate in candidates}
    for candidate in candidates:
        if refs and candidate.ref not in refs and candidate.key == by_ref[refs[0]].key:
            stepped = [by_ref[ref].turn for ref in refs if by_ref[ref].flow == candidate.flow]
            assert all(turn <= candidate.turn for turn in stepped)


@given(held())
def test_a_flow_alone_fills_the_pass_in_the_order_of_turns(candidates: list[Candidate]) -> None:
    alone = [replace(candidate, flow="x") for candidate in candidates]
    by_turn = sorted(alone, key=lambda candidate: candidate.turn)
    alike = [candidate.ref for candidate in by_turn if candidate.key == by_turn[0].key]
    assert choose(alone) == tuple(alike[: by_turn[0].most] if alike else ())


@given(held())
def test_flows_of_one_picture_each_fill_the_pass_in_the_order_of_turns(candidates: list[Candidate]) -> None:
    each = [replace(candidate, flow=candidate.ref) for candidate in candidates]
    assert choose(each) == choose([replace(candidate, flow="x") for candidate in candidates])


@given(held())
def test_no_flow_takes_more_of_a_pass_than_that_of_the_lowest_turn_nor_than_any_that_is_next_could_take(
    candidates: list[Candidate],
) -> None:
    refs = choose(candidates)
    if refs:
        by_turn = sorted(candidates, key=lambda candidate: candidate.turn)
        first = by_turn[0]
        alike = [candidate for candidate in by_turn if candidate.key == first.key]
        able, taken = Counter(candidate.flow for candidate in alike), flows_in(candidates, refs)
        assert max(taken.values()) == taken[first.flow]
        assert max(taken.values()) <= min(able[candidate.flow] for candidate in alike[: first.most])


@given(held())
def test_room_is_left_only_where_every_flow_that_could_use_it_has_as_much_as_that_of_the_lowest_turn(
    candidates: list[Candidate],
) -> None:
    refs = choose(candidates)
    by_ref = {candidate.ref: candidate for candidate in candidates}
    taken = flows_in(candidates, refs)
    for candidate in candidates:
        left_out = candidate.ref not in refs and candidate.key == by_ref[refs[0]].key
        if left_out and len(refs) < candidate.most:
            assert taken[candidate.flow] == taken[by_ref[refs[0]].flow]


@pytest.mark.parametrize(
    ("flood", "chosen"),
    [
        (of("flood", *range(1, 25)), ("one0", "flood0")),  # its turn is the lowest
        (of("flood", *range(-1, 23)), ("flood0", "one0")),
        (of("flood", *range(-12, 12)), tuple(f"flood{number}" for number in range(8))),  # others are before it
    ],
)
def test_a_flow_of_one_picture_has_half_of_the_pass_beside_a_flow_of_many(
    flood: list[Candidate], chosen: tuple[str, ...]
) -> None:
    assert choose([*of("one", -0.5), *flood]) == chosen


def test_flows_that_always_wait_share_a_pass_by_their_turns() -> None:
    heavy, light = of("heavy", *range(1, 25)), of("light", *range(4, 100, 4))
    assert flows_in([*heavy, *light], choose([*heavy, *light])) == {"heavy": 7, "light": 1}
    late = of("late", 0.5, 90, 91, 92)
    assert flows_in([*heavy, *late], choose([*heavy, *late])) == {"heavy": 4, "late": 4}


@given(held(), turns)
def test_a_newcomer_with_the_lowest_turn_is_in_the_very_next_batch(candidates: list[Candidate], turn: float) -> None:
    lowest = min([turn, *(candidate.turn - 1 for candidate in candidates)])
    newcomer = Candidate(ref="new", key="new", most=1, turn=lowest, flow="new")
    assert choose([*candidates, newcomer]) == ("new",)


@given(held())
def test_equal_turns_go_in_the_order_of_admission(candidates: list[Candidate]) -> None:
    alike = [replace(candidate, turn=0.0, key="a", most=len(candidates), flow="x") for candidate in candidates]
    assert choose(alike) == tuple(candidate.ref for candidate in alike)


@given(held())
def test_all_come_to_their_end_when_nobody_joins(candidates: list[Candidate]) -> None:
    left = list(candidates)
    for _ in candidates:
        chosen = choose(left)
        left = [candidate for candidate in left if candidate.ref not in chosen]
    assert not left
