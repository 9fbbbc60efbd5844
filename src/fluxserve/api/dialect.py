"""What a dialect is: a prefix, and how answers and errors look under it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fluxserve.errors import FluxserveError, JsonValue
from fluxserve.service.forecast import Outlook
from fluxserve.service.views import View

Body = dict[str, JsonValue]
#: HTTP statuses by class of errors.
Statuses = Mapping[type[FluxserveError], int]


class RenderError(Protocol):
    """Adds to the common error body what the dialect's callers look for."""

    def __call__(self, error: FluxserveError, body: Mapping[str, JsonValue]) -> Body:
        """The dialect's error body."""


class Manners(Protocol):
    """How errors look in an API; `statuses` are those that are others than everywhere."""

    @property
    def render_error(self) -> RenderError:
        """The error's body."""

    @property
    def statuses(self) -> Statuses:
        """The nearest base class counts."""


class RenderResult(Protocol):
    """Shows a known task to those who poll it."""

    def __call__(
        self, view: View, sample: str | None, preview: bytes | None, outlook: Outlook | None, processing_status: bool
    ) -> bytes:
        """JSON; `sample` is a link to its picture, `preview` a JPEG, `outlook` tells when its turn comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One public API over the service. `unknown_task_status` is the HTTP status of a poll for an unknown id."""

    name: str
    title: str
    prefix: str
    unknown_task_status: int
    render_error: RenderError
    render_result: RenderResult
    render_unknown: Callable[[str], Body]
    statuses: Statuses = field(default_factory=dict)
