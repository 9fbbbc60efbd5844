"""Predicted work: the published counts of the networks, and what follows from them."""

from __future__ import annotations

import pytest

from fluxserve.catalogue import Size, find


@pytest.mark.parametrize(
    ("model", "side", "steps", "step_work", "work"),
    [
        ("flux-dev", 1024, 28, 74.4, 2083 + 14.7),
        ("flux-dev", 512, 28, 21.5, 602 + 7.2),
        ("flux-schnell", 1024, 4, 69.5, 278 + 12.3),
        ("flux-2-dev", 1024, 28, 282.6, 7913 + 32.7),
        ("flux-2-klein-4b", 1024, 4, 34.8, 139.2 + 13.6),
        ("flux-2-klein-9b", 1024, 4, 75.5, 301.8 + 17.0),
    ],
)
def test_a_pictures_work_is_what_is_published(model: str, side: int, steps: int, step_work: float, work: float) -> None:
    spec = find(model)
    assert spec.network.step_work(Size(side, side)) == pytest.approx(step_work, rel=1e-3)
    assert spec.steps == steps
    assert spec.network.work(Size(side, side), steps) == pytest.approx(work, rel=1e-3)


def test_what_is_shown_beside_a_picture_is_work_in_each_step_and_counts_as_a_megapixel_at_most() -> None:
    network, size = find("flux-kontext-pro").network, Size(1024, 1024)
    assert network.step_work(size, [size]) == pytest.approx(165.5, rel=1e-3)
    assert network.step_work(size, [Size(2048, 2048)]) == network.step_work(size, [size])
    assert network.step_work(size, [Size(512, 512)] * 4) == network.step_work(size, [size])


def test_reading_and_decoding_are_work_too_so_that_a_step_alone_is_not_nearly_free() -> None:
    network, size = find("flux-dev").network, Size(1024, 1024)
    # Of a prompt of 512 tokens: 4.63e9 weights of T5-XXL's encoder, and CLIP-L's; of 1.05 megapixels: 4.73e6 each.
    reading, decoding = 2 * 4.63e9 * 512 / 1e12 + 0.013, 2 * 4.73e6 * size.area / 1e12
    assert network.work(size, 1) - network.step_work(size) == pytest.approx(reading + decoding, rel=1e-2)
    assert network.work(size, 0) == pytest.approx(14.7, rel=1e-2)


def test_a_size_that_is_no_multiple_of_a_token_takes_the_whole_of_its_last_tokens() -> None:
    network = find("flux-dev").network
    assert network.step_work(Size(257, 256)) == network.step_work(Size(272, 256))
