"""A whole life of a server, decided by a seed: callers, workers, a courier, a clock, and faults, one after the other.

The service, the store and the storages are the real ones. Nothing happens at the same time, so a seed repeats its run.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from service_house import House

from builders import DRAWN, EVERY_MODEL, REASON
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import Generation
from fluxserve.delivery.storage import LocalStorage
from fluxserve.delivery.webhooks import LOST, Reply
from fluxserve.errors import (
    FluxserveError,
    IdempotencyConflict,
    InsufficientCredits,
    StoreUnavailable,
    TooManyActiveTasks,
)
from fluxserve.service.postbox import Waiting
from fluxserve.service.service import Lost
from fluxserve.settings import Settings
from fluxserve.store.base import TaskRecord
from fluxserve.store.writer import GroupWriter
from fluxserve.tasks.task import State

T = TypeVar("T")
GRANT = 60_000
#: Actions of a life, and after it everybody does what they can until nothing is left to do.
ACTIONS, MOST_ROUNDS = 120, 400
WORKERS = {"w1": "f1", "w2": "f1", "w3": "f2"}
HOSTS = ("a.example", "b.example")
#: Of a hundred calls of the store or a storage, how many fail before they are made, and how many end the server before
#: or after that.
REFUSED, DIED_BEFORE, DIED_AFTER = 3, 1, 1
REPLIES = (
    Reply(status=200),
    Reply(status=200),
    Reply(status=500),
    Reply(status=410),
    Reply(status=None, problem="timeout"),
    Reply(status=None, problem=LOST),
)
DRAWN_BADLY = replace(DRAWN, scores={"sexual": 0.99})


class Died(BaseException):
    """The server process is gone, in the middle of whatever it did."""


@dataclass(slots=True)
class Faults:
    """Decides by the seed what becomes of a call."""

    rng: random.Random
    are_on: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def before(self, refuse: Callable[[], Exception]) -> bool:
        """Raises what `refuse` makes, or Died; whether the server is to die once the call is made."""
        chance = self.rng.randrange(100) if self.are_on else 100
        if chance < REFUSED:
            self.counts["refused"] += 1
            raise refuse()
        if chance < REFUSED + DIED_BEFORE:
            self.counts["died before"] += 1
            raise Died
        return chance < REFUSED + DIED_BEFORE + DIED_AFTER

    def after(self, *, dies: bool) -> None:
        """Raises Died."""
        if dies:
            self.counts["died after"] += 1
            raise Died


class FailingWriter:
    """Each transaction may fail, or be the last thing that this server does."""

    def __init__(self, writer: GroupWriter, faults: Faults) -> None:
        self._writer = writer
        self._faults = faults

    async def run(self, write: Callable[..., Sequence[T]], values: Sequence[object]) -> Sequence[T]:
        """As the writer, if at all."""
        dies = self._faults.before(lambda: StoreUnavailable("The disk is in trouble."))
        answers = await self._writer.run(write, values)
        self._faults.after(dies=dies)
        return answers

    async def close(self) -> None:
        """Nothing fails at the end."""
        await self._writer.close()


class FailingStorage(LocalStorage):
    """Each file that is written may find a full disk, or be the last thing that this server does."""

    faults: Faults

    def put(self, object_name: str, data: bytes) -> None:
        """As `LocalStorage`, if at all."""
        dies = self.faults.before(lambda: OSError(errno.ENOSPC, "No space left on device"))
        super().put(object_name, data)
        self.faults.after(dies=dies)


def picture_of(generation: Generation) -> bytes:
    """What every worker draws of it."""
    return hashlib.sha256(repr(replace(generation, safety_tolerance=0)).encode()).digest()


@dataclass(slots=True)
class Asked:
    """A request that was acknowledged."""

    key: ApiKey
    record: TaskRecord
    ended: State | None = None


class World:
    """One life."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults = Faults(self.rng)
        settings = Settings(data_dir=folder, min_free_disk=0, model_limits={"flux-schnell": 2})
        self.house = House(folder, settings)
        self.storage = FailingStorage(folder / "pictures")
        self.storage.faults = self.faults
        self.house.storage = self.storage
        self.house.begin_anew()
        self.keys: list[ApiKey] = []
        self.asked: dict[str, Asked] = {}
        self.by_idempotency: dict[tuple[str, str], str] = {}
        #: What each worker holds, and what it held when it was taken for dead.
        self.held: dict[str, list[TaskRecord]] = {name: [] for name in WORKERS}
        self.stale: list[TaskRecord] = []
        self.told: Counter[str] = Counter()
        #: The attempt at a webhook that is not written down yet.
        self.unsettled: list[tuple[Waiting, Reply]] = []
        self.trace: list[str] = []
        self.ends: Counter[str] = Counter()

    async def live(self) -> None:
        """From the first key to the last webhook, and then all is in order."""
        for limit in (None, 4, None):
            self.keys.append(await self.house.key(grant=GRANT, max_active=limit))
        self.house.store._writer = FailingWriter(self.house.store._writer, self.faults)  # type: ignore[assignment]
        await self.act(self.welcome)
        actions = [
            *(self.submit, self.submit, self.submit, self.claim, self.claim, self.draw, self.draw, self.fail),
            *(self.lose, self.come_back_late, self.cancel, self.look, self.tell, self.tell, self.pass_time),
            *(self.lapse, self.sweep, self.extend, self.die),
        ]
        for _ in range(ACTIONS):
            await self.act(self.rng.choice(actions))
        self.faults.are_on = False
        await self.settle()
        await self.check()

    async def act(self, action: Callable[[], object]) -> None:
        """One thing happens; what the service refuses is told to whoever asked, and a dead server is started again."""
        try:
            self.note(action, await action())  # type: ignore[misc]
        except (InsufficientCredits, TooManyActiveTasks, IdempotencyConflict, StoreUnavailable, OSError) as error:
            self.note(action, type(error).__name__)
        except Died:
            self.note(action, "died")
            await self.start_again()

    def note(self, action: Callable[[], object], outcome: object) -> None:
        """What happened, for whoever compares two runs."""
        self.trace.append(f"{getattr(action, '__name__', '')}: {outcome}")

    async def start_again(self) -> None:
        """A server that remembers nothing; its workers' connections are gone with it, and half of them come back."""
        self.unsettled = []
        while True:
            self.house.begin_anew()
            try:
                running = await self.house.service.start()
                back = {name for name in WORKERS if self.rng.random() < 0.5}
                await self.house.service.release(
                    [Lost(task_id=one.id, fence=one.fence) for one in running if one.worker_id not in back]
                )
                await self.welcome()
            except (Died, FluxserveError):
                continue
            for name in WORKERS:
                if name in back:
                    claims = [(one.id, one.fence) for one in self.held[name]]
                    kept = {one.id for one in await self.house.service.held(name, claims)}
                    self.stale += [one for one in self.held[name] if one.id not in kept]
                    self.held[name] = [one for one in self.held[name] if one.id in kept]
                else:
                    self.stale += self.held[name]
                    self.held[name] = []
            return

    # What may happen

    async def welcome(self) -> str:
        for name, fingerprint in WORKERS.items():
            await self.house.service.welcome(name, dict.fromkeys(EVERY_MODEL, fingerprint))
        return "all"

    async def submit(self) -> str:
        key = self.rng.choice(self.keys)
        values: dict[str, object] = {"prompt": self.rng.choice(["an owl", "a fox"])}
        if self.rng.random() < 0.7:
            values["seed"] = self.rng.randrange(3)
        if self.rng.random() < 0.4:
            values["webhook_url"] = f"https://{self.rng.choice(HOSTS)}/hook"
        model = self.rng.choice(["flux-dev", "flux-dev", "flux-schnell"])
        once = f"k{self.rng.randrange(12)}" if self.rng.random() < 0.5 else None
        record = await self.house.submit(key, values, model=model, idempotency_key=once)  # type: ignore[arg-type]
        if once is not None:
            before = self.by_idempotency.setdefault((key.account_id, once), record.id)
            assert before == record.id
        self.asked.setdefault(record.id, Asked(key, record))
        return f"{list(self.asked).index(record.id)} {record.state}"

    async def claim(self) -> str:
        name = self.rng.choice(list(WORKERS))
        models = dict.fromkeys(EVERY_MODEL, WORKERS[name])
        records = await self.house.service.claim(name, EVERY_MODEL, self.rng.choice([1, 2]), models)
        self.held[name] += records
        return f"{name} {len(records)}"

    async def draw(self) -> str:
        if (found := self._take()) is None:
            return "nothing"
        name, record = found
        drawn = DRAWN_BADLY if self.rng.random() < 0.1 else DRAWN
        return str(await self._hand_in(name, record, drawn.scores is DRAWN_BADLY.scores))

    async def fail(self) -> str:
        if (found := self._take()) is None or self.rng.random() < 0.5:
            return "nothing"
        _, record = found
        return str(await self.house.service.fail(record.id, record.fence, REASON))

    async def lose(self) -> str:
        """A worker dies over what it holds."""
        name = self.rng.choice(list(WORKERS))
        lost, self.held[name] = self.held[name], []
        self.stale += lost
        await self.house.service.release(
            [Lost(task_id=one.id, fence=one.fence, suspected=self.rng.random() < 0.5) for one in lost]
        )
        return f"{name} {len(lost)}"

    async def come_back_late(self) -> str:
        """Somebody hands in what was taken from them long ago."""
        if not self.stale:
            return "nothing"
        record = self.stale[self.rng.randrange(len(self.stale))]
        (now,) = await self.house.store.get_many([record.id])
        may = now is not None and (now.state, now.fence) == (State.RUNNING, record.fence)
        if self.rng.random() < 0.5:
            is_taken = await self._hand_in("", record, False)
        else:
            is_taken = await self.house.service.fail(record.id, record.fence, REASON)
        assert may or not is_taken
        return str(is_taken)

    async def cancel(self) -> str:
        if not self.asked:
            return "nothing"
        asked = self.asked[self.rng.choice(list(self.asked))]
        view = await self.house.service.cancel(asked.record.id, asked.key.account_id)
        return "gone" if view is None else str(view.state)

    async def look(self) -> str:
        """What has ended stays as it ended."""
        if not self.asked:
            return "nothing"
        asked = self.asked[self.rng.choice(list(self.asked))]
        view = await self.house.service.look(asked.record.id)
        assert view is not None
        if asked.ended is not None:
            assert view.state is asked.ended
        asked.ended = view.state if view.state.is_final else None
        return str(view.state)

    async def tell(self) -> str:
        """A webhook is tried; how it went is written down sooner or later, unless the server dies."""
        if self.unsettled:
            await self.house.webhooks.settle(*self.unsettled[0])
            self.unsettled.pop()
            return "settled"
        tried = self.house.webhooks.take()
        if tried is None:
            return "nothing"
        if await self.house.webhooks.read(tried.task_id) is None:
            self.house.webhooks.forget(tried.task_id)
            return "forgotten"
        reply = self.rng.choice(REPLIES)
        if not self.faults.are_on:
            reply = Reply(status=200)
        self.told[tried.task_id] += reply.is_good
        self.unsettled.append((tried, reply))
        await self.house.webhooks.settle(*self.unsettled[0])
        self.unsettled.pop()
        return str(reply.status)

    async def pass_time(self) -> str:
        """Forward, and now and then somebody sets the clock back."""
        seconds = self.rng.choice([0.1, 1.0, 5.0, 40.0, 600.0, -20.0])
        self.house.time += seconds
        return str(seconds)

    async def lapse(self) -> str:
        lapsed = await self.house.service.lapsed()
        for name in WORKERS:
            gone = {(one.id, one.fence) for one in lapsed if one.worker_id == name}
            self.stale += [one for one in self.held[name] if (one.id, one.fence) in gone]
            self.held[name] = [one for one in self.held[name] if (one.id, one.fence) not in gone]
        await self.house.service.release([Lost(task_id=one.id, fence=one.fence, suspected=True) for one in lapsed])
        return str(len(lapsed))

    async def extend(self) -> str:
        name = self.rng.choice(list(WORKERS))
        await self.house.service.extend(name)
        return name

    async def sweep(self) -> str:
        await self.house.sweeper.sweep()
        return "swept"

    async def die(self) -> str:
        if self.rng.random() < 0.7:
            return "not now"
        raise Died

    def _take(self) -> tuple[str, TaskRecord] | None:
        holding = [name for name in WORKERS if self.held[name]]
        if not holding:
            return None
        name = self.rng.choice(holding)
        return name, self.held[name].pop(self.rng.randrange(len(self.held[name])))

    async def _hand_in(self, name: str, record: TaskRecord, is_bad: bool) -> bool:
        """A worker keeps what could not be taken, and tries again; a picture that comes twice is the same one."""
        drawn = DRAWN_BADLY if is_bad else DRAWN
        facts = {**drawn.facts, "fingerprint": WORKERS.get(name, "f1")}
        try:
            return await self.house.service.complete(
                record.id, record.fence, record.generation, picture_of(record.generation), replace(drawn, facts=facts)
            )
        except (StoreUnavailable, OSError):
            if name:
                self.held[name].append(record)
            raise
        except Died:
            if name:
                self.held[name].append(record)
            raise

    # The end

    async def settle(self) -> None:
        """Everybody is well, and works until nothing is left."""
        for _ in range(MOST_ROUNDS):
            await self.act(self.lapse)
            for name in WORKERS:
                for record in await self.house.service.claim(
                    name, EVERY_MODEL, 8, dict.fromkeys(EVERY_MODEL, WORKERS[name])
                ):
                    self.held[name].append(record)
                while self.held[name]:
                    await self._hand_in(name, self.held[name].pop(), False)
            while await self.tell() != "nothing":
                pass
            if not len(self.house.webhooks) and not await self.house.store.active():
                return
            self.house.time += 3600.0
        raise AssertionError("there is always something left to do")

    async def check(self) -> None:
        """Whatever happened, the promises are kept."""
        assert await self.house.store.fsck() == []
        records = await self.house.store.get_many(list(self.asked))
        spent: Counter[str] = Counter()
        for asked, record in zip(self.asked.values(), records, strict=True):
            if record is None:  # past its retention, which nothing that has not ended ever is
                assert asked.ended is not None or self.house.time > asked.record.created_at + 86_400
                continue
            assert record.state.is_final
            self.ends[record.state] += 1
            assert asked.ended in (None, record.state)
            if record.state is State.READY:
                spent[record.account_id] += record.cost
                if record.object_name is not None:
                    with self.storage.open(record.object_name) as picture:
                        assert picture.read(picture.size) == picture_of(record.generation)
            if record.webhook_url is not None:
                deliveries = self._deliveries(record.id)
                assert [state for state, _ in deliveries] in (["delivered"], ["dead"])
                assert self.told[record.id] or deliveries[0][0] == "dead"
        assert all(left is not None for left in [await self.house.service.credits(key.account_id) for key in self.keys])

    def _deliveries(self, task_id: str) -> list[tuple[str, int]]:
        with sqlite3.connect(self.house.folder / "fluxserve.db") as connection:
            return list(connection.execute("SELECT state, attempts FROM deliveries WHERE task_id = ?", (task_id,)))

    async def close(self) -> None:
        """Leave nothing open."""
        self.faults.are_on = False
        await self.house.store.close()
        await asyncio.sleep(0)
