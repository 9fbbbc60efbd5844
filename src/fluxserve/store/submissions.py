"""Values of requests on their way into the store: accepted, and where pictures have to be fetched first, prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fluxserve.catalogue import Generation
from fluxserve.errors import Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptInput:
    """An input picture of a task, which came in its field `name`: `size` bytes, safe under `object_name`."""

    task_id: str
    name: str
    object_name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why moderation ended a task: for which categories, and `about` what of it. `charged`: it cost its price."""

    categories: tuple[str, ...]
    about: Literal["prompt", "input_picture", "picture"]
    charged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A task about to take its place among all others.

    A `repeatable` one, whose caller chose the seed, follows an equal task that is not drawn yet, or is answered with
    the picture of one that was, if one of `fingerprints` drew it. `recipe` None: it has nothing to do with any other.
    `inputs` are new, of the generation's pictures, and end with the task.
    `work` (predicted TFLOP) over the key's `weight` is how far it moves the key's turns on.
    """

    id: str
    key_id: str
    generation: Generation
    inputs: tuple[KeptInput, ...]
    warnings: tuple[str, ...]
    recipe: bytes | None
    repeatable: bool
    fingerprints: tuple[str, ...]
    cost: int
    work: float
    weight: float
    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What a request said whose pictures are to be fetched from `urls`, by field, or whose prompt is to be enriched.

    `values` are its other fields but those of webhooks, with the seed that was chosen; `repeatable`: by its caller.
    `weight` is its key's.
    """

    values: Mapping[str, Fact]
    urls: Mapping[str, str]
    ignored: tuple[str, ...]
    repeatable: bool
    weight: float
    upsamples: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(Entrant):
    """A request to accept: all or nothing of task, reservation and idempotency key.

    With a `preparation` it takes no place yet: its generation is a guess, but for the pictures that it names, and its
    cost the most that it can be.
    A `refusal` ends it in the same transaction, before anything of it is queued.
    `sealed_secret` signs its webhook; whoever can read the database alone cannot open it.
    """

    account_id: str
    preparation: Preparation | None
    refusal: Refusal | None
    extras: Mapping[str, object]
    dialect: str
    origin: str
    webhook_url: str | None
    sealed_secret: str | None
    idempotency_key: str | None
    request_hash: bytes
    max_active: int | None
    max_work: float | None
    max_of_model: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Entrant):
    """A task whose pictures and prompt are all there: what it comes to, at no more than was reserved for it."""
