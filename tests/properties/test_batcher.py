from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fluxserve.engine.batcher import Candidate, choose

turns = st.floats(-1e6, 1e6)


@st.composite
def held(draw: st.DrawFn) -> list[Candidate]:
    keys = draw(st.lists(st.sampled_from("abc"), max_size=12))
    most = {key: draw(st.integers(1, 5)) for key in "abc"}
    return [Candidate(ref=str(number), key=key, most=most[key], turn=draw(turns)) for number, key in enumerate(keys)]


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
def test_nobody_who_could_have_stepped_has_a_lower_turn_than_somebody_who_did(candidates: list[Candidate]) -> None:
    refs = choose(candidates)
    by_ref = {candidate.ref: candidate for candidate in candidates}
    for candidate in candidates:
        if refs and candidate.ref not in refs and candidate.key == by_ref[refs[0]].key:
            assert len(refs) == candidate.most
            assert candidate.turn >= max(by_ref[ref].turn for ref in refs)


@given(held(), turns)
def test_a_newcomer_with_the_lowest_turn_is_in_the_very_next_batch(candidates: list[Candidate], turn: float) -> None:
    lowest = min([turn, *(candidate.turn - 1 for candidate in candidates)])
    newcomer = Candidate(ref="new", key="new", most=1, turn=lowest)
    assert choose([*candidates, newcomer]) == ("new",)


@given(held())
def test_equal_turns_go_in_the_order_of_admission(candidates: list[Candidate]) -> None:
    alike = [replace(candidate, turn=0.0, key="a", most=len(candidates)) for candidate in candidates]
    assert choose(alike) == tuple(candidate.ref for candidate in alike)


@given(held())
def test_all_come_to_their_end_when_nobody_joins(candidates: list[Candidate]) -> None:
    left = list(candidates)
    for _ in candidates:
        chosen = choose(left)
        left = [candidate for candidate in left if candidate.ref not in chosen]
    assert not left
