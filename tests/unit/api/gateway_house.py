"""A gateway on a real service and store, and workers played by hand over real sockets."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from builders import EVERY_MODEL, NOW, generation, new_key, submission
from fluxserve.api import DIALECTS
from fluxserve.api.couriers import Couriers
from fluxserve.api.webhooks import Composer
from fluxserve.api.workers import Gateway
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.storage import LocalStorage
from fluxserve.service.inputs import Inputs
from fluxserve.service.keyring import Keyring
from fluxserve.service.moderation import Moderation
from fluxserve.service.service import Service
from fluxserve.service.sharing import Sharing
from fluxserve.service.signing import Signing
from fluxserve.service.upsampling import Upsampling
from fluxserve.service.waypoints import Waypoints
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.store.base import KeyEntry
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker import protocol as p

TOKEN = "a-token-for-workers"
#: Whatever is waited for comes within this time, or not at all.
PATIENCE_S = 5.0
Message = TypeVar("Message", bound=p.FromServer)


@dataclass
class ByHand:
    """The worker's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    assigned: list[p.Assignment] = field(default_factory=list)
    welcome: p.Welcome | None = None

    def send(self, message: p.FromWorker) -> None:
        """Say something to the server."""
        self.writer.write(p.to_frame(message))

    async def next(self, kind: type[Message]) -> Message:
        """The server's next message, which has to be of this kind."""
        message = await asyncio.wait_for(p.read_from_server(self.reader), PATIENCE_S)
        assert isinstance(message, kind), message
        return message

    async def gets(self, count: int) -> list[p.Held]:
        """Tasks, until there are `count` of them in all."""
        while len(self.assigned) < count:
            self.assigned += (await self.next(p.Tasks)).assignments
        assert len(self.assigned) == count
        return [p.Held(task_id=one.task_id, fence=one.fence) for one in self.assigned]

    async def settle_down(self) -> int:
        """How many tasks the worker has once nothing more comes for a moment."""
        while True:
            try:
                message = await asyncio.wait_for(p.read_from_server(self.reader), 0.2)
            except TimeoutError:
                return len(self.assigned)
            assert isinstance(message, p.Tasks), message
            self.assigned += message.assignments

    async def is_cut_off(self) -> bool:
        """The server closes the connection and says nothing more."""
        return await asyncio.wait_for(p.read_from_server(self.reader), PATIENCE_S) is None


class GatewayHouse:
    """Everything behind the gateway; the service's clock stands still, unless it is set."""

    def __init__(self, folder: Path, store: SqliteStore, waypoint_storage: LocalStorage, *, local: bool) -> None:
        self.now = NOW
        self.store = store
        self.waypoint_storage = waypoint_storage
        self._local = local
        self.settings = Settings(data_dir=folder, min_free_disk=0)
        waypoints = Waypoints(
            store=store, storage=self.waypoint_storage, budget=self.settings.waypoint_budget, now=lambda: self.now
        )
        self.input_storage = LocalStorage(folder / "inputs")
        self.decoders = Decoders()
        inputs = Inputs(
            store=store, storage=self.input_storage, decoders=self.decoders, budget=self.settings.input_budget
        )
        self.webhooks = Webhooks(
            store=store, sealer=Sealer(bytes(32)), allowance=Allowance.parse(self.settings.outbound_allow),
            now=lambda: self.now, rng=random.Random(1),
        )  # fmt: skip
        self.service = Service(
            settings=self.settings, store=store, storage=LocalStorage(folder / "pictures"), waypoints=waypoints,
            inputs=inputs, keyring=Keyring(store, b"pepper"), sharing=Sharing(secret=b"pepper", budget=2**20),
            signing=Signing(),
            webhooks=self.webhooks,
            moderation=Moderation(is_on=self.settings.moderation == "on"),
            upsampling=Upsampling(None, timeout=0.0), now=lambda: self.now, rng=random.Random(1),
        )  # fmt: skip
        #: What the gateway measures silence by.
        self.steady = 0.0
        signer = LinkSigner([bytes(32)], self.settings.link_ttl)
        self.couriers = Couriers(
            self.webhooks, Composer(self.service, signer, DIALECTS, lambda: self.now).compose, settings=self.settings,
            need=lambda: None, on_ready=lambda _: None, on_hung=lambda _: None, steady=lambda: self.steady,
        )  # fmt: skip
        self.gateway = Gateway(
            self.service, token=TOKEN, is_alive=lambda _: True, serve_courier=self.couriers.serve,
            on_ready=lambda _: None, on_hung=lambda _: None,
            steady=lambda: self.steady,
        )  # fmt: skip
        self._serving: set[asyncio.Task[None]] = set()
        self._workers: list[ByHand] = []

    async def connect(
        self,
        name: str = "w1",
        *,
        capacity: int = 1,
        want: int = 0,
        models: tuple[str, ...] = EVERY_MODEL,
        fingerprint: str = "f1",
        fingerprints: Mapping[str, str] | None = None,
        away: Mapping[str, float] | None = None,
        left_out: tuple[str, ...] = (),
        orphan: bool = False,
        classifier: str = "hand",
        writes: tuple[str, ...] = (),
        held: tuple[p.Held, ...] = (),
    ) -> ByHand:
        """A worker that was let in; `fingerprints` where not all models have the same one."""
        fingerprints = fingerprints or dict.fromkeys(models, fingerprint)
        ours, theirs = socket.socketpair()
        serve = self.gateway.serve_local if self._local else self.gateway.serve_remote
        serving = asyncio.create_task(serve(*await asyncio.open_connection(sock=theirs)))
        self._serving.add(serving)
        worker = ByHand(*await asyncio.open_connection(sock=ours))
        self._workers.append(worker)
        worker.send(
            p.Hello(
                version=p.VERSION, worker_id=name, pid=1, models=tuple(fingerprints), engine="none",
                fingerprints=dict(fingerprints), capacity=capacity, want=want, away=dict(away or {}), token=TOKEN,
                left_out=left_out, classifier=classifier, writes=writes, orphan=orphan, held=held,
            )
        )  # fmt: skip
        worker.welcome = await worker.next(p.Welcome)
        return worker

    async def submit(
        self, count: int = 1, *, model: str = "flux-dev", work: float = 100.0, entry: KeyEntry | None = None
    ) -> list[str]:
        """Accepted tasks, all at once; `entry` None: of a key of their own."""
        entry = entry or await self.store.create_key(new_key())
        drawing = generation(model=model)
        outcomes = await self.store.submit_many([submission(entry, drawing=drawing, work=work) for _ in range(count)])
        records = [outcome.record for outcome in outcomes if outcome.record is not None]
        for record in records:
            self.service._show(record)  # as a submit does
        self.service.queue_changed.fire()
        return [record.id for record in records]

    async def state(self, task_id: str) -> tuple[str, int]:
        """The task's state and how often it was claimed, as they are written down."""
        (record,) = await self.store.get_many([task_id])
        assert record is not None
        return record.state, record.fence

    async def close(self) -> None:
        """Hang up and write down what is under way."""
        for worker in self._workers:
            worker.writer.close()
        await asyncio.gather(*self._serving)
        await self.gateway.write_down_all(PATIENCE_S)
        await self.decoders.close()
        await self.store.close()


@asynccontextmanager
async def gateway_house(
    folder: Path,
    store_class: type[SqliteStore] = SqliteStore,
    *,
    waypoint_storage: LocalStorage | None = None,
    local: bool = False,
) -> AsyncIterator[GatewayHouse]:
    """A gateway of this test's own; its books must be in order at the end. `local`: for workers beside the server."""
    storage = waypoint_storage or LocalStorage(folder / "waypoints")
    house = GatewayHouse(folder, store_class(folder / "fluxserve.db"), storage, local=local)
    try:
        yield house
        assert await house.store.fsck() == []
    finally:
        await house.close()
