"""The cache, with prompts: exactly the text, at most the bytes."""

import pytest
import torch

from fluxserve.engine.cache import Cache
from fluxserve.engine.trajectory import Conditioning

#: Bytes of what `Encoder` makes of a prompt.
EACH = 4 * (8 + 2)


class Encoder:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompt: str) -> Conditioning:
        self.asked.append(prompt)
        return Conditioning(tokens=torch.zeros(1, 4, 2), pooled=torch.zeros(1, 2))


def test_a_prompt_is_read_once() -> None:
    encoder, cache = Encoder(), Cache[Conditioning](100 * EACH)
    first = cache.get("a red apple", encoder)
    assert cache.get("a red apple", encoder) is first
    assert encoder.asked == ["a red apple"]


@pytest.mark.parametrize("other", ["a red apple ", "A red apple", "a red a\u0070\u0301ple", ""])
def test_another_text_is_another_prompt(other: str) -> None:
    encoder, cache = Encoder(), Cache[Conditioning](100 * EACH)
    cache.get("a red apple", encoder)
    cache.get(other, encoder)
    assert encoder.asked == ["a red apple", other]


def test_beyond_the_budget_what_was_used_longest_ago_goes() -> None:
    encoder, cache = Encoder(), Cache[Conditioning](2 * EACH)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cache.get(prompt, encoder)
    assert encoder.asked == ["a", "b", "c", "b"]


@pytest.mark.parametrize("budget", [0, EACH - 1])
def test_without_room_nothing_is_kept(budget: int) -> None:
    encoder, cache = Encoder(), Cache[Conditioning](budget)
    for _ in range(2):
        cache.get("a", encoder)
    assert encoder.asked == ["a", "a"]
