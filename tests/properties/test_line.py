"""A line of tasks tells what is before each place, as a sorted list would."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from fluxserve.service import line as lines
from fluxserve.service.line import Line, Place


class Plain:
    """The same, slowly."""

    def __init__(self) -> None:
        self.works: dict[Place, float] = {}

    def before(self, place: Place) -> tuple[int, float]:
        """Count and work."""
        earlier = [work for other, work in self.works.items() if other < place]
        return len(earlier), math.fsum(earlier)


@given(st.integers(0, 2**32), st.integers(1, 1500), st.sampled_from([3, 50, 10_000]))
def test_a_line_says_what_a_sorted_list_says(seed: int, changes: int, turns: int) -> None:
    rng, line, plain = random.Random(seed), Line(), Plain()
    for number in range(changes):
        kind = rng.random()
        if kind < 0.65 or not plain.works:
            place, work = (float(rng.randrange(turns)), number), rng.random() * 1000
            line.add(place, work)
            plain.works[place] = work
        else:
            place = rng.choice(list(plain.works))
            if kind < 0.85:
                line.remove(place)
                del plain.works[place]
            else:
                plain.works[place] = rng.random()
                line.change(place, plain.works[place])
        if number % 50 == 0 or number == changes - 1:
            asked = (float(rng.randrange(turns + 1)), rng.randrange(changes))
            count, work = line.before(asked)
            expected = plain.before(asked)
            assert count == expected[0]
            assert math.isclose(work, expected[1], rel_tol=1e-9, abs_tol=1e-9)
            assert len(line) == len(plain.works)
            assert line.first == min(plain.works, default=None)


def test_a_line_from_which_everything_has_gone_has_no_work_left_before_any_place() -> None:
    line, count = Line(), 3 * lines.MOST_IN_BLOCK
    for number in range(count):
        line.add((0.1 * number, number), 0.1)
    for number in range(count):
        line.remove((0.1 * number, number))
    assert line.before((math.inf, 0)) == (0, 0.0)
    assert line.first is None
