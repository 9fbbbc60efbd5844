from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fluxserve.engine.batcher import Candidate, choose

budgets = st.integers(min_value=0, max_value=5000)


@st.composite
def waiting(draw: st.DrawFn) -> list[Candidate]:
    keys = draw(st.lists(st.sampled_from("abc"), max_size=12))
    tokens = {key: draw(st.integers(1, 4096)) for key in "abc"}
    turns = draw(st.lists(st.integers(-1, 20), min_size=len(keys), max_size=len(keys)))
    return [
        Candidate(ref=str(number), key=key, tokens=tokens[key], moved=turn)
        for number, (key, turn) in enumerate(zip(keys, turns, strict=True))
    ]


@given(waiting(), budgets)
def test_someone_steps_whenever_someone_waits(candidates: list[Candidate], budget: int) -> None:
    assert bool(choose(candidates, budget)) == bool(candidates)


@given(waiting(), budgets)
def test_a_batch_holds_each_of_those_who_wait_at_most_once(candidates: list[Candidate], budget: int) -> None:
    chosen = choose(candidates, budget)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= {candidate.ref for candidate in candidates}


@given(waiting(), budgets)
def test_a_batch_shares_one_key_and_keeps_the_budget_unless_it_is_one_alone(
    candidates: list[Candidate], budget: int
) -> None:
    chosen = [candidate for candidate in candidates if candidate.ref in choose(candidates, budget)]
    assert len({candidate.key for candidate in chosen}) <= 1
    assert len(chosen) <= 1 or sum(candidate.tokens for candidate in chosen) <= budget


@given(waiting(), budgets)
def test_nobody_left_out_has_waited_longer_than_the_first_chosen(candidates: list[Candidate], budget: int) -> None:
    chosen = choose(candidates, budget)
    if chosen:
        turns = {candidate.ref: candidate.moved for candidate in candidates}
        assert turns[chosen[0]] == min(turns.values())


@given(waiting(), st.lists(st.floats(0, 1e6), min_size=12, max_size=12), budgets)
def test_the_lowest_turn_is_first_and_nobody_like_it_is_passed_over_for_a_higher_one(
    candidates: list[Candidate], turns: list[float], budget: int
) -> None:
    pool = [replace(candidate, turn=turn) for candidate, turn in zip(candidates, turns, strict=False)]
    chosen = choose(pool, budget)
    by_ref = {candidate.ref: candidate.turn for candidate in pool}
    assert [by_ref[ref] for ref in chosen] == sorted(by_ref[ref] for ref in chosen)
    assert not chosen or by_ref[chosen[0]] == min(by_ref.values())


@given(waiting(), budgets)
def test_nobody_who_fits_is_left_out(candidates: list[Candidate], budget: int) -> None:
    chosen = choose(candidates, budget)
    by_ref = {candidate.ref: candidate for candidate in candidates}
    left = budget - sum(by_ref[ref].tokens for ref in chosen)
    for candidate in candidates:
        if chosen and candidate.ref not in chosen and candidate.key == by_ref[chosen[0]].key:
            assert candidate.tokens > left


@given(waiting(), budgets)
def test_of_n_who_wait_each_steps_within_n_batches_though_others_join(candidates: list[Candidate], budget: int) -> None:
    pool = {candidate.ref: candidate for candidate in candidates}
    turn = max((candidate.moved for candidate in candidates), default=0)
    waiting_still = set(pool)
    for number in range(len(candidates)):
        turn += 1
        # A newcomer joins in every round, already moved once: it may not push anybody back.
        pool[f"new{number}"] = Candidate(ref=f"new{number}", key="a", tokens=1, moved=turn)
        for ref in choose(list(pool.values()), budget):
            pool[ref] = replace(pool[ref], moved=turn)
            waiting_still.discard(ref)
    assert not waiting_still


@given(waiting(), budgets)
def test_the_same_candidates_make_the_same_batch(candidates: list[Candidate], budget: int) -> None:
    assert choose(candidates, budget) == choose(list(candidates), budget)
