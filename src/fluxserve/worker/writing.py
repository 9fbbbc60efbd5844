"""What a server wants to have written, on its way to the engine and back.

It is of one connection: what a server asked for is forgotten with it.
What it does not know: tasks, sockets, what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fluxserve.engine.base import Engine, Event, Failed, Wrote
from fluxserve.worker import protocol as p


class Writing:
    """Answers by the engine's name for them, which is never one of a claim."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers: dict[str, int] = {}
        self._calls: list[Callable[[], None]] = []

    def ask(self, asked: p.Write) -> None:
        """Somebody waits for an answer."""
        ref = _ref(asked.number)
        self._numbers[ref] = asked.number
        self._calls.append(partial(self._engine.write, ref, asked.model, asked.system, asked.user, asked.most))

    def forget(self, number: int) -> None:
        """Nobody does any more."""
        if self._numbers.pop(ref := _ref(number), None) is not None:
            self._calls.append(partial(self._engine.discard, ref))

    def forget_all(self) -> None:
        """The connection is another one."""
        for number in list(self._numbers.values()):
            self.forget(number)

    def take_calls(self) -> Sequence[Callable[[], None]]:
        """What the engine is to be told, in its thread and in this order."""
        calls, self._calls = self._calls, []
        return calls

    def answer(self, event: Event) -> p.Written | None:
        """What is to be said of an event, if it ends an answer."""
        number = self._numbers.get(event.ref)
        if number is None or (isinstance(event, Wrote) and event.text is None):
            return None
        del self._numbers[event.ref]
        if isinstance(event, Failed):
            return p.Written(number=number, problem=event.error.message)
        return p.Written(number=number, text=event.text or "") if isinstance(event, Wrote) else None


def _ref(number: int) -> str:
    return f"written {number}"
