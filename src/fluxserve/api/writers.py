"""Workers whose language models write, and who waits for what.

Each worker is asked one thing at a time, so that what waits is told from what is written.
What it does not know: why something is to be written.
"""

from __future__ import annotations

import asyncio
import itertools

from fluxserve.api.worker_session import Session
from fluxserve.errors import NobodyWrites, NotWritten
from fluxserve.service.watches import Signal
from fluxserve.worker import protocol as p

#: Workers that end while they write the same thing; another one is not asked.
MOST_LOST = 2


class Writers:
    """Used from the event loop only."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []
        self._asked: dict[Session, tuple[int, asyncio.Future[p.Written]]] = {}
        self._numbers = itertools.count()
        self._changed = Signal()

    def arrive(self, session: Session) -> None:
        """A worker is there."""
        self._sessions.append(session)
        self._changed.fire()

    def leave(self, session: Session) -> None:
        """It is gone, and with it what it was asked."""
        if session in self._sessions:
            self._sessions.remove(session)
        _, answer = self._asked.pop(session, (0, None))
        if answer is not None and not answer.done():
            answer.cancel()
        self._changed.fire()

    def hear(self, session: Session, written: p.Written) -> None:
        """A worker has answered."""
        number, answer = self._asked.get(session, (-1, None))
        if answer is not None and number == written.number and not answer.done():
            answer.set_result(written)

    async def write(self, model: str, system: str, user: str, *, most: int, timeout: float) -> str:
        """What the language model of the model's checkpoint answers, within `timeout` from when a worker is asked.

        Waits for a worker, as the task does that wants it, and asks another one where the first is gone, once. Raises
        NobodyWrites where who draws the model has no language model, NotWritten.
        """
        for _ in range(MOST_LOST):
            session = await self._free(model)
            number = next(self._numbers)
            answer: asyncio.Future[p.Written] = asyncio.get_running_loop().create_future()
            self._asked[session] = number, answer
            session.send(p.Write(number=number, model=model, system=system, user=user, most=most))
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.wait([answer])
            except TimeoutError:
                raise NotWritten("it did not answer in time") from None
            finally:
                if self._asked.get(session, (-1, None))[0] == number:
                    del self._asked[session]
                    if not answer.done():
                        session.send(p.Unwrite(number=number))
                self._changed.fire()
            if not answer.cancelled():
                written = answer.result()
                if written.problem is not None:
                    raise NotWritten(written.problem)
                return written.text
        raise NotWritten("workers ended over it")

    async def _free(self, model: str) -> Session:
        """A worker that can be asked; whoever comes first."""
        look = asyncio.Event()
        with self._changed.watching(look):
            while True:
                look.clear()
                drawing = [session for session in self._sessions if model in session.hello.models]
                writing = [session for session in drawing if model in session.hello.writes and not session.draining]
                if drawing and not any(model in session.hello.writes for session in drawing):
                    raise NobodyWrites(f"what draws {model} has no language model of its own")
                if idle := [session for session in writing if session not in self._asked]:
                    return idle[0]
                await look.wait()
