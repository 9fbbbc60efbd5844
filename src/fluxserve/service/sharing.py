"""What equal requests have in common: the recipe they are known by, and what draws each model now.

A recipe is an HMAC over the account and everything in the Generation, so it tells nobody what was asked, and no two
accounts share one. Whatever decides a pixel or the file has to be in the Generation.
What it does not know: tasks, the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from fluxserve.catalogue import Generation
from fluxserve.delivery.links import signature
from fluxserve.service.signing import Sealed
from fluxserve.store.base import Kept

_encode = msgspec.json.Encoder().encode


class Sharing:
    """Makes recipes with `secret`; `budget` is the bytes of pictures that answer equal requests, 0: none does.

    `origin` is whatever else decides what their files say: who signs them, and whether they tell the prompt.
    """

    def __init__(self, *, secret: bytes, budget: int, origin: str = "") -> None:
        self._secret = secret
        self._origin = origin.encode()
        self._budget = budget
        self._workers: dict[str, Mapping[str, str]] = {}
        self._alive: dict[str, Counter[str]] = {}
        self._drawing: dict[str, tuple[str, ...]] = {}

    def recipe(self, account_id: str, generation: Generation) -> bytes | None:
        """Equal for equal requests of the account; None: they share nothing."""
        if not self._budget:
            return None
        return signature(self._secret, b"recipe", account_id.encode(), _encode(generation), self._origin)

    def kept(self, sealed: Sealed) -> Kept | None:
        """What makes a picture an answer to equal requests that come later.

        One of unknown origin is none, nor is one whose pixels depended on its company: drawn again it might be another.
        """
        facts = sealed.drawn.facts
        fingerprint, depends = facts.get("fingerprint"), facts.get("numerics") == "throughput"
        if depends or not (self._budget and sealed.is_repeatable and isinstance(fingerprint, str)):
            return None
        return Kept(fingerprint=fingerprint, size=len(sealed.picture), budget=self._budget)

    def fingerprints(self, model: str) -> tuple[str, ...]:
        """What draws the model now: its workers, and while it has none its last ones. Empty before the first."""
        return self._drawing.get(model, ())

    def arrive(self, worker_id: str, fingerprints: Mapping[str, str]) -> None:
        """A worker draws these models from now on."""
        self.leave(worker_id)
        self._workers[worker_id] = fingerprints
        for model, fingerprint in fingerprints.items():
            alive = self._alive.setdefault(model, Counter())
            alive[fingerprint] += 1
            self._drawing[model] = tuple(alive)

    def leave(self, worker_id: str) -> None:
        """The worker is gone."""
        for model, fingerprint in self._workers.pop(worker_id, {}).items():
            alive = self._alive[model]
            alive[fingerprint] -= 1
            if not alive[fingerprint]:
                del alive[fingerprint]
            if alive:
                self._drawing[model] = tuple(alive)
