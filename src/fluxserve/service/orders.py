"""Orders: a checked request, and what becomes of it on its way to the store.

What it does not know: the store itself, HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import InputPicture, ModelSpec, Size
from fluxserve.errors import Fact, IdempotencyConflict, InsufficientCredits, JsonValue, TooManyActiveTasks
from fluxserve.store.base import Submitted, Verdict
from fluxserve.store.submissions import Submission

#: Accepted fields that are not drawn from.
_EXTRAS = ("prompt_upsampling", "disable_pup", "user")
#: The fields of webhooks: an address and a secret, which are kept elsewhere.
_TOLD_BY = frozenset({"webhook_url", "webhook_secret"})
_canonical = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A checked request: who asks for what, and where the answer's links should lead.

    `pictures` holds the fields with pictures as base64, `urls` those with pictures behind a URL, in the order of the
    model's, and `values` all others that were set. `masks_by_alpha`: what a mask's alpha channel leaves out is to be
    drawn anew, where it has one.
    """

    key: ApiKey
    spec: ModelSpec
    values: Mapping[str, JsonValue]
    pictures: Mapping[str, str]
    urls: Mapping[str, str]
    ignored: tuple[str, ...]
    dialect: str
    origin: str
    idempotency_key: str | None
    masks_by_alpha: bool = False

    def text(self, name: str) -> str | None:
        """The value of a field that holds text."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    @property
    def has_seed(self) -> bool:
        """The caller chose the seed, and may want the same picture again."""
        return self.values.get("seed") is not None

    @property
    def drawn_from(self) -> dict[str, Fact]:
        """Its fields but those of webhooks."""
        return {
            name: value
            for name, value in self.values.items()
            if name not in _TOLD_BY and (value is None or isinstance(value, str | int | float | bool))
        }

    @property
    def extras(self) -> dict[str, JsonValue]:
        """What is kept with the task beside its generation; webhooks have columns of their own."""
        return {name: self.values[name] for name in _EXTRAS if name in self.values}

    def hash(self, pictures: Mapping[str, InputPicture]) -> bytes:
        """Equal for requests that mean the same, however their JSON is spaced or ordered and their pictures packed.

        A picture behind a URL is meant by its URL. Nobody asks for it without an idempotency key.
        """
        if self.idempotency_key is None:
            return b""
        shown: dict[str, JsonValue] = {name: [str(picture.size), picture.sha256] for name, picture in pictures.items()}
        shown |= self.urls
        meant = [self.spec.name, self.values, *([shown] if shown else [])]
        return hashlib.sha256(_canonical(meant)).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What an order would cost in thousandths of a credit, and why: pixels of its pictures, and size of the answer.

    `at_most`: some pictures come by their URL, and all three are the most that they can be.
    """

    cost: int
    input_area: int
    size: Size
    at_most: bool


def refusal(submission: Submission, submitted: Submitted) -> Exception:
    """Why the store did not accept a task."""
    verdict, in_use = submitted.verdict, submitted.in_use
    if verdict is Verdict.CONFLICT:
        return IdempotencyConflict("This Idempotency-Key was used before with another request. Use a new one.")
    if verdict is Verdict.NO_CREDITS:
        return InsufficientCredits("Insufficient credits")
    if verdict is Verdict.TOO_MUCH_WORK:
        return TooManyActiveTasks(
            f"This key's unfinished tasks may be {submission.max_work:g} TFLOP together. They are {in_use:.4g} now, "
            f"and this one is {submission.work:.4g}: wait until one has finished."
        )
    limit, what = submission.max_active, "unfinished tasks"
    if verdict is Verdict.TOO_MANY_OF_MODEL:
        limit, what = submission.max_of_model, f"unfinished tasks of {submission.generation.model}"
    return TooManyActiveTasks(
        f"This key may have {limit} {what} at a time, and has {in_use:.0f}. Wait until one has finished."
    )
