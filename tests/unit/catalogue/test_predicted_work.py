"""Predicted work: the published counts of the networks, and what follows from them."""

from __future__ import annotations

import pytest

from fluxserve.catalogue import Size, find


@pytest.mark.parametrize(
    ("model", "side", "steps", "step_work", "work"),
    [
        ("flux-dev", 1024, 28, 74.4, 2083),
        ("flux-dev", 512, 28, 21.5, 602),
        ("flux-schnell", 1024, 4, 69.5, 278),
    ],
)
def test_a_pictures_work_is_what_is_published(model: str, side: int, steps: int, step_work: float, work: float) -> None:
    spec = find(model)
    assert spec.network.step_work(Size(side, side)) == pytest.approx(step_work, rel=1e-3)
    assert spec.steps == steps
    assert steps * spec.network.step_work(Size(side, side)) == pytest.approx(work, rel=1e-3)


def test_a_size_that_is_no_multiple_of_a_token_takes_the_whole_of_its_last_tokens() -> None:
    network = find("flux-dev").network
    assert network.step_work(Size(257, 256)) == network.step_work(Size(272, 256))
