"""Writing: what the language model of a checkpoint has to say, taken down some words at a time.

The likeliest word always follows, so equal words are answered alike. Between two pieces prompts are read, and weights
can leave.
What it does not know: whose words they are, lanes, where weights are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from fluxserve.errors import DrawingFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: A piece takes so many seconds at most, and has at least one token, and at most so many.
PIECE_S, PIECE = 0.5, 8
#: Longer texts are not answered: what a model keeps in mind of each token takes memory.
MOST_READ = 2048
#: What a system and a user say, in the template of a tokenizer.
Talk = Callable[["PreTrainedTokenizerBase", str, str], str]


@dataclass(eq=False, kw_only=True)
class Draft:
    """A text that is being written for `model` of the catalogue: an answer of at most so many tokens.

    `state` is the writer's own, `text` there once it is done.
    """

    model: str
    system: str
    user: str
    most: int
    state: _State | None = None
    text: str | None = None


@dataclass(eq=False, kw_only=True)
class _State:
    """`unread`: (1, tokens) that the model has not seen yet; `mind`: what it keeps of those it has."""

    unread: Tensor
    mind: Any = None
    said: list[int] = field(default_factory=list)


class Writes(Protocol):
    """Goes on with drafts."""

    def go_on(self, draft: Draft) -> None:
        """A piece further. Raises DrawingFailed for what it does not answer."""


class Writer:
    """A language model with its head."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, talk: Talk, device: torch.device
    ) -> None:
        self._device = device
        self._model = model
        self._tokenizer = tokenizer
        self._talk = talk

    def go_on(self, draft: Draft) -> None:
        """See `Writes`."""
        state = draft.state or self._begin(draft)
        draft.state = state
        for token in self._tokens(state, min(PIECE, draft.most - len(state.said))):
            if token in self._ends:
                break
            state.said.append(token)
        else:
            if len(state.said) < draft.most:
                return
        draft.text, draft.state = str(self._tokenizer.decode(state.said, skip_special_tokens=True)), None

    def _begin(self, draft: Draft) -> _State:
        user = draft.user.encode("utf-8", "replace").decode()
        told = self._talk(self._tokenizer, draft.system, user)
        unread = self._tokenizer(told, add_special_tokens=False, return_tensors="pt").input_ids  # the template has them
        if unread.shape[1] > MOST_READ:
            raise DrawingFailed(f"The prompt is too long to be enriched: {unread.shape[1]} tokens with what is asked.")
        return _State(unread=unread.to(self._device))

    def _tokens(self, state: _State, count: int) -> Iterator[int]:
        began = time.monotonic()
        for number in range(count):
            if number and time.monotonic() - began > PIECE_S:
                return
            seen = self._model(
                input_ids=state.unread, past_key_values=state.mind, use_cache=True, logits_to_keep=1
            )  # fmt: skip
            state.mind = seen.past_key_values
            likeliest = seen.logits[:, -1].argmax(dim=-1, keepdim=True)
            state.unread = likeliest
            yield int(likeliest)

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Tokens after which nothing is said."""
        config = getattr(self._model, "generation_config", None)
        named = (getattr(config, "eos_token_id", None), self._tokenizer.eos_token_id)
        ends = (one if isinstance(one, list | tuple) else [one] for one in named if one is not None)
        return frozenset(token for one in ends for token in one)
