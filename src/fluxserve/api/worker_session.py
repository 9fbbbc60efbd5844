"""One connected worker as the server sees it: who it is, what it holds, what it gets next, whether it is let in."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fluxserve.catalogue import Generation
from fluxserve.service.forecast import Away, Head
from fluxserve.service.service import Lost
from fluxserve.store.base import TaskRecord
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import LOCAL_PREFIX

#: More is not handed to one worker at once, whatever it asks for.
_MOST_WANTED = 1024
#: A worker's id becomes part of a file name and of log lines.
_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(slots=True)
class Claim:
    """A task that a worker holds.

    `step` is None until the worker has begun to draw it; `settling`: its outcome is being written down;
    `missed`: heartbeats in a row that did not name it; it `is_sent` since `sent_at`, and on its way until it
    `has_arrived`. The worker draws the lowest `turn` first; `stepped`: its last step was made.
    """

    fence: int
    generation: Generation
    turn: float
    step: int | None = None
    stepped: bool = False
    settling: bool = False
    missed: int = 0
    is_sent: bool = True
    sent_at: float = math.inf
    has_arrived: bool = False


@dataclass(slots=True, eq=False)
class Session:
    """One connection of a worker. `look` wakes its dispatcher: the queue, the wish or the session has changed.

    `told`: it drains because somebody wants it to end, and may end it. `away`: see `Weights`.
    """

    hello: p.Hello
    writer: asyncio.StreamWriter
    is_local: bool
    heard_at: float
    claims: dict[str, Claim] = field(default_factory=dict)
    wanted: int = 0
    look: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    told: bool = False
    closed: bool = False
    away: Away = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The worker's id."""
        return self.hello.worker_id

    @property
    def is_open(self) -> bool:
        """It takes tasks and wants some."""
        return self.wanted > 0 and not (self.draining or self.closed)

    @property
    def room(self) -> int:
        """Tasks that its engine could hold beside what it has; what comes on top waits there."""
        return max(0, self.hello.capacity - sum(not claim.settling for claim in self.claims.values()))

    @property
    def turns(self) -> list[float]:
        """Those of what it draws or is about to, the next one first."""
        return sorted(claim.turn for claim in self.claims.values() if not (claim.settling or claim.stepped))

    @property
    def first(self) -> float:
        """A task of a lower turn than this would be drawn at once."""
        return min(self.turns, default=math.inf)

    @property
    def reach(self) -> float:
        """A worker that wants no more is handed a task of a lower turn than this all the same.

        Of what it holds, less than a batch comes before such a task, so where a batch shares a step it is drawn with
        the next one. What that makes wait stays where it stands, so there is a limit: as many as its engine holds.
        """
        capacity = self.hello.capacity
        is_full = capacity <= sum(not claim.settling for claim in self.claims.values()) < 2 * capacity
        if not is_full or self.draining or self.closed:
            return -math.inf
        return next(iter(self.turns[max(1, p.batch(capacity) - 1) :]), math.inf)

    def swaps(self, away: Mapping[str, float]) -> None:
        """These weights are not on its device now, by fingerprint."""
        by_model = self.hello.fingerprints.items()
        groups = {one: frozenset(model for model, weights in by_model if weights == one) for one in away}
        self.away = {models: away[one] for one, models in groups.items() if models}

    def has_at_hand(self, model: str) -> bool:
        """It draws the model, and no weights have to come for that."""
        return model in self.hello.models and not any(model in models for models in self.away)

    def wants(self, count: int) -> None:
        """It can take so many tasks more than it holds."""
        self.wanted = min(max(count, 0), _MOST_WANTED)
        self.look.set()

    def claim_of(self, task_id: str, fence: int) -> Claim | None:
        """The session's claim of exactly this fence."""
        claim = self.claims.get(task_id)
        return claim if claim is not None and claim.fence == fence else None

    def send(self, message: p.FromServer) -> None:
        """Queue a message; a dead socket shows on the reading side."""
        if not self.writer.is_closing():
            self.writer.write(p.to_frame(message))

    async def flush(self) -> None:
        """Return when the worker has taken nearly all of what was sent, or is gone."""
        with contextlib.suppress(OSError):
            await self.writer.drain()

    def close(self) -> None:
        """Nothing more is claimed for this connection."""
        self.closed = True
        self.look.set()


def claims_of(records: Iterable[TaskRecord]) -> dict[str, Claim]:
    """Claims on running tasks, not yet begun as far as is known."""
    return {record.id: Claim(record.fence, record.generation, record.turn) for record in records}


def takes(session: Session, others: Sequence[Session], head: Head) -> bool:
    """Whether the session, which draws its model, may be handed the next task.

    It goes where it is drawn at once, if there is such a worker, and of those where no weights have to come for it; a
    full one gets it only while no other has room for it, and of those the one that holds fewest.
    """
    able = (session, *(other for other in others if head.model in other.hello.models))
    takers = [one for one in able if one.is_open or one.reach > head.turn]
    best = [one for one in takers if one.first > head.turn] or takers
    best = [one for one in best if one.has_at_hand(head.model)] or best
    if session not in best or session.is_open:
        return session in best
    load = len(session.claims), session.id
    return all(not one.is_open and load <= (len(one.claims), one.id) for one in best)


def portion(session: Session, others: Sequence[Session], waiting: int) -> tuple[tuple[str, ...], int]:
    """Models and number of tasks to claim for the session now, where about `waiting` tasks wait.

    Engines are filled before anything is handed out ahead, and what there is is spread over those that can draw it:
    of two idle workers none draws a whole burst while the other looks on.
    """
    peers = [other for other in others if other.is_open and other.room > 0]
    models, most = session.hello.models, session.room
    if not most:
        taken = {model for other in peers for model in other.hello.models}
        models, most = tuple(model for model in models if model not in taken), session.wanted
        peers = [other for other in others if other.is_open]
    sharing = 1 + sum(not set(models).isdisjoint(other.hello.models) for other in peers)
    share = max(1, math.ceil(waiting / sharing))
    return models, min(session.wanted, most, share)


def without_swaps(session: Session, others: Sequence[Session], models: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the models that the session draws as it is, or that weights have to come for wherever they are drawn."""
    return tuple(
        model for model in models if session.has_at_hand(model) or not any(other.has_at_hand(model) for other in others)
    )


def unknown_to(session: Session, held: Iterable[p.Held], *, sent_before: float) -> dict[str, Claim]:
    """Claims that the worker does not know of, as its heartbeat shows: it never got them, or has lost them.

    One heartbeat alone proves nothing, for it may have crossed the tasks; two do, of those that had arrived. Others
    may still be on their way, on a slow line for longer than between many heartbeats, unless they were `sent_before`.
    """
    named = {(entry.task_id, entry.fence) for entry in held}

    def is_known(task_id: str, claim: Claim) -> bool:
        return claim.settling or not claim.is_sent or (task_id, claim.fence) in named

    for task_id, claim in session.claims.items():
        claim.has_arrived |= (task_id, claim.fence) in named or claim.step is not None
        claim.missed = 0 if is_known(task_id, claim) else claim.missed + 1
    return {
        task_id: claim
        for task_id, claim in session.claims.items()
        if claim.missed > 1 and (claim.has_arrived or claim.sent_at < sent_before)
    }


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


def objection(hello: p.FromWorker | None, *, is_local: bool, token: str | None, moderates: bool) -> str | None:
    """Why the worker is not let in; None: it is. `moderates`: whoever draws has to look at what comes of it."""
    if not isinstance(hello, p.Hello | p.CourierHello):
        return "The first message has to be a hello."
    if hello.version != p.VERSION:
        return f"This server speaks worker protocol {p.VERSION}, the worker {hello.version}: use equal versions."
    if not is_local and not (token and hmac.compare_digest(hello.token.encode(), token.encode())):
        return "The worker token is wrong."
    if not _WORKER_ID.fullmatch(hello.worker_id):
        return "A worker's name has 1 to 100 letters, digits, dots, dashes or underscores."
    if not is_local and hello.worker_id.startswith(LOCAL_PREFIX):
        return f"Names that begin with {LOCAL_PREFIX} are those of the server's own workers."
    if moderates and isinstance(hello, p.Hello) and not hello.classifier:
        return 'This worker looks at no picture: set moderation = "on" where it runs, or "off" where the server does.'
    return None
