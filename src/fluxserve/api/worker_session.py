"""One connected worker as the server sees it: who it is, what it holds, whether it is let in."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fluxserve.catalogue import OutputFormat
from fluxserve.service.service import Lost
from fluxserve.store.base import TaskRecord
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import LOCAL_PREFIX

#: A worker's id becomes part of a file name and of log lines.
_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(slots=True)
class Claim:
    """A task that a worker holds.

    `step` is None until the worker has begun to draw it; `settling`: its outcome is being written down.
    """

    fence: int
    output_format: OutputFormat
    step: int | None = None
    settling: bool = False


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a worker. `look` wakes its dispatcher: the queue, the wish or the session has changed."""

    hello: p.Hello
    writer: asyncio.StreamWriter
    is_local: bool
    heard_at: float
    claims: dict[str, Claim] = field(default_factory=dict)
    wanted: int = 0
    look: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    closed: bool = False

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.hello.worker_id

    def send(self, message: p.FromServer) -> None:
        """Queue a message; a dead socket shows on the reading side."""
        if not self.writer.is_closing():
            self.writer.write(p.to_frame(message))

    def close(self) -> None:
        """Nothing more is claimed for this connection."""
        self.closed = True
        self.look.set()


def claims_of(records: Iterable[TaskRecord]) -> dict[str, Claim]:
    """Claims on running tasks, not yet begun as far as is known."""
    return {record.id: Claim(record.fence, record.generation.output_format) for record in records}


def losses_of(claims: Mapping[str, Claim], *, suspected: bool) -> list[Lost]:
    """Lost claims. Only a task that was being drawn can have been the cause; an outcome in writing is not lost."""
    return [
        Lost(
            task_id=task_id,
            fence=claim.fence,
            step=claim.step or 0,
            suspected=suspected and claim.step is not None,
        )
        for task_id, claim in claims.items()
        if not claim.settling
    ]


def objection(hello: p.FromWorker | None, *, is_local: bool, token: str | None) -> str | None:
    """Why the worker is not let in; None: it is."""
    if not isinstance(hello, p.Hello):
        return "The first message has to be a hello."
    if hello.version != p.VERSION:
        return f"This server speaks worker protocol {p.VERSION}, the worker {hello.version}: use equal versions."
    if not is_local and not (token and hmac.compare_digest(hello.token.encode(), token.encode())):
        return "The worker token is wrong."
    if not _WORKER_ID.fullmatch(hello.worker_id):
        return "A worker's name has 1 to 100 letters, digits, dots, dashes or underscores."
    if not is_local and hello.worker_id.startswith(LOCAL_PREFIX):
        return f"Names that begin with {LOCAL_PREFIX} are those of the server's own workers."
    return None
