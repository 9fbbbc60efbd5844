"""One task's whole life in this process: asked for over HTTP, drawn by a real worker, downloaded, told to a webhook.

Everything is real but the engine's networks, the network of the courier and the processes: what a keeper starts again
when it ends, the worker, is started again here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from failing import Calls, FailingConnection, FailingEngine
from fronts import FaultProxy, Front, Relay, Weather
from starlette.applications import Starlette

from fluxserve.api import DIALECTS
from fluxserve.api.about import Readiness
from fluxserve.api.couriers import Couriers
from fluxserve.api.estimates import Estimates
from fluxserve.api.events import Events
from fluxserve.api.gate import Gate
from fluxserve.api.images import Pictures
from fluxserve.api.metrics import Exposition
from fluxserve.api.polls import Polls
from fluxserve.api.submit import Submits
from fluxserve.api.tasks import Tasks
from fluxserve.api.webhooks import Composer, Deliveries
from fluxserve.api.workers import Gateway
from fluxserve.courier.loop import Courier
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.outbound import Outbound
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.storage import LocalStorage
from fluxserve.engine.fake import FakeEngine
from fluxserve.moderation.fake import FakeClassifier
from fluxserve.service.housekeeping import ORPHAN_AGE_S, Sweeper
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
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker.loop import Worker
from receivers import PUBLIC, Network, Receiver, receiving
from sample_pictures import PNG

HOST = "hooks.test"
TOKEN = "a-token-for-workers"
GRANT = 10_000_000
#: An answer, in which a test looks for what it expects.
Json = dict[str, Any]
#: A life without faults takes less than one second.
PATIENCE_S = 90.0
ORDER = {
    "prompt": "a red apple", "image": PNG, "width": 256, "height": 256, "seed": 7, "steps": 4,
    "webhook_url": f"http://{HOST}/hook", "webhook_secret": "a secret",
}  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """Which calls fail, and of what; `delivers`: a message arrives though its connection is cut."""

    of: str
    calls: Calls
    delivers: bool = False

    def calls_of(self, what: str) -> Calls:
        """What counts and fails the calls of this kind."""
        return self.calls if self.of == what else Calls()


@dataclass(frozen=True)
class World:
    """What all lives share: the receiver of their webhooks, the way there, and what decodes their pictures."""

    receiver: Receiver
    outbound: Outbound
    decoders: Decoders


@asynccontextmanager
async def whole_world(weather: Weather | None = None) -> AsyncIterator[World]:
    """One in which receivers are in this weather."""
    async with receiving() as receiver, AsyncExitStack() as stack:
        port = receiver.port
        if weather is not None:
            front = FaultProxy(port, weather, random.Random(2))
            port = (await stack.enter_async_context(front.listening())).port
        world = World(receiver, Network(port, {HOST: [PUBLIC]}).client(HOST), Decoders())
        try:
            yield world
        finally:
            await world.decoders.close()


class Life:
    """A server with one task, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        faults: Faults | None = None,
        weather: Weather | None = None,
        workers: int = 1,
        lease: float = 3.0,
    ) -> None:
        self.folder = folder
        self.faults = faults or Faults("nothing", Calls())
        self.weather = weather
        self.workers = workers
        self.world = world
        self.settings = settings = Settings(
            data_dir=folder, min_free_disk=0, moderation="off",
            fake_steps=4, fake_latency=0.2, waypoint_interval=0.0, heartbeat=0.2,
            lease=lease, outbound_allow=(HOST,), picture_retention=10 * ORPHAN_AGE_S,
        )  # fmt: skip
        self.store = SqliteStore(folder / "fluxserve.db")
        self._watch_database()
        storages = {name: LocalStorage(folder / name) for name in ("results", "waypoints", "inputs")}
        waypoints = Waypoints(
            store=self.store, storage=storages["waypoints"], budget=settings.waypoint_budget, now=time.time
        )
        inputs = Inputs(
            store=self.store, storage=storages["inputs"], decoders=world.decoders, budget=settings.input_budget
        )  # fmt: skip
        self.keyring = Keyring(self.store, bytes(32))
        rng = random.Random(1)
        webhooks = Webhooks(
            store=self.store, sealer=Sealer(bytes(32)), allowance=Allowance.parse(settings.outbound_allow),
            now=time.time, rng=rng,
        )  # fmt: skip
        self.service = Service(
            settings=settings, store=self.store, storage=storages["results"], waypoints=waypoints, inputs=inputs,
            keyring=self.keyring, sharing=Sharing(secret=bytes(32), budget=settings.result_cache), signing=Signing(),
            webhooks=webhooks, moderation=Moderation(is_on=settings.moderation == "on"),
            upsampling=Upsampling(None, timeout=0.0), now=time.time, rng=rng,
        )  # fmt: skip
        signer = LinkSigner([bytes(32)], settings.link_ttl)
        self.couriers = Couriers(
            webhooks, Composer(self.service, signer, DIALECTS, time.time).compose, settings=settings,
            need=lambda: None, on_ready=lambda _: None, on_hung=lambda _: None,
        )  # fmt: skip
        self.gateway = Gateway(
            self.service, token=TOKEN, is_alive=lambda _: True, serve_courier=self.couriers.serve,
            on_ready=lambda _: None, on_hung=lambda _: None,
        )  # fmt: skip
        polls = Polls(self.service, signer, time.time)
        gate = Gate(
            Starlette(), service=self.service, submits=Submits(self.service, signer), polls=polls,
            tasks=Tasks(self.service, signer, polls, Events(self.service, polls)),
            deliveries=Deliveries(self.service, signer),
            pictures=Pictures(signer, storages["results"], time.time, settings.cors_origins),
            exposition=Exposition(self.service, self._readiness), estimates=Estimates(self.service),
            dialects=DIALECTS,
        )  # fmt: skip
        transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://flux.test")
        self.sweeper = Sweeper(
            settings=settings, store=self.store, storage=storages["results"], waypoints=waypoints, inputs=inputs,
            views=self.service.views, now=lambda: time.time() + 2 * ORPHAN_AGE_S,
        )  # fmt: skip
        self.statuses: Counter[str] = Counter()

    def _readiness(self) -> Readiness:
        return Readiness(
            ready=True, reason="", workers=self.gateway.ready, unfinished_tasks=len(self.service.views), moderation="on"
        )

    def _watch_database(self) -> None:
        calls = self.faults.calls_of("database")
        self.store._writer._connection = FailingConnection(self.store._writer._connection, calls)  # type: ignore[assignment]
        self.store._reader = FailingConnection(self.store._reader, calls)  # type: ignore[assignment]

    def _front(self, port: int) -> Front:
        if self.weather is not None:
            return FaultProxy(port, self.weather, random.Random(1))
        return Relay(port, self.faults.calls_of("connection"), delivers=self.faults.delivers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything that goes on beside requests."""
        async with AsyncExitStack() as stack:
            listener = await asyncio.start_server(self.gateway.serve_remote, "127.0.0.1", 0)
            stack.push_async_callback(self._close, listener)
            front = await stack.enter_async_context(self._front(listener.sockets[0].getsockname()[1]).listening())
            address = f"tcp:127.0.0.1:{front.port}"
            parts = (
                *(self._keep_worker(address, f"w{number}") for number in range(self.workers)),
                self._keep_courier(address), self.gateway.reap(), self.couriers.reap(), self.couriers.post(),
            )  # fmt: skip
            tasks = [asyncio.create_task(part) for part in parts]
            try:
                yield
                assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self, listener: asyncio.Server) -> None:
        listener.close()
        await self.gateway.write_down_all(PATIENCE_S)
        await self.couriers.settled(PATIENCE_S)
        await self.http.aclose()
        await self.store.close()

    async def _keep_worker(self, address: str, name: str) -> None:
        """As a fleet does: one that breaks is followed by another."""
        calls = self.faults.calls_of("engine")
        while True:
            engine: FakeEngine = FailingEngine(self.settings, calls)
            worker = Worker(
                engine=engine, settings=self.settings, server=address, worker_id=name, token=TOKEN, parented=False,
                classifier=FakeClassifier(),
            )  # fmt: skip
            with contextlib.suppress(RuntimeError):
                await worker.run()

    async def _keep_courier(self, address: str) -> None:
        courier = Courier(
            outbound=self.world.outbound, settings=self.settings, server=address, courier_id="c1", token=TOKEN,
            parented=False,
        )  # fmt: skip
        await courier.run()

    async def live(self, count: int = 1, within: float = PATIENCE_S) -> list[str]:
        """So many tasks at once are asked for, waited for, downloaded and told: how each ended."""
        key, _ = await self.keyring.create(
            name="k", account=None, grant=GRANT, max_active=None, rate_per_minute=None, weight=1.0, now=time.time()
        )
        self.http.headers["x-key"] = key
        self.faults.calls.armed = True
        async with self.running(), asyncio.timeout(within):
            polled = await asyncio.gather(*map(self._live_one, range(count)))
            self.faults.calls.armed = False
            await self.gateway.write_down_all(PATIENCE_S)
            await self._check(polled)
        return [str(one["status"]) for one in polled]

    async def _live_one(self, number: int) -> Json:
        task = await self._submit(number)
        while (polled := await self._ask("GET", f"{task['polling_url']}&wait=5"))["status"] == "Pending":
            pass
        if polled["status"] == "Ready":
            await self._ask("GET", polled["result"]["sample"])
        while not self._webhook_is_delivered(task["id"]):  # noqa: ASYNC110 - it is written down by another thread
            await asyncio.sleep(0.05)
        assert (await self._submit(number))["id"] == task["id"]
        return polled

    async def _submit(self, number: int) -> Json:
        order = json.dumps({**ORDER, "seed": number}).encode()
        return await self._ask("POST", "/v1/flux-dev", content=order, headers={"idempotency-key": f"order {number}"})

    async def _ask(self, method: str, url: str, **words: object) -> Json:
        """An answer is a 200, or a 503 that is asked for again."""
        while True:
            answer = await self.http.request(method, url, **words)  # type: ignore[arg-type]
            if answer.status_code == 200:
                return dict(answer.json()) if answer.headers["content-type"] == "application/json" else {}
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
            self.statuses[f"{method} 503"] += 1
            await asyncio.sleep(0.02)

    def _webhook_is_delivered(self, task_id: str) -> bool:
        return self._rows("SELECT state FROM deliveries WHERE task_id = ?", task_id) == [("delivered",)]

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        path = (self.folder / "fluxserve.db").absolute().as_uri()
        with closing(sqlite3.connect(f"{path}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()

    async def _check(self, polled: Sequence[Json]) -> None:
        """Books, files, webhooks: nothing is left behind, and nothing is missing."""
        assert await self.store.fsck() == []
        assert len(self.service.views) == 0
        ids, ready = {one["id"] for one in polled}, [one for one in polled if one["status"] == "Ready"]
        assert len(ids) == len(polled)
        assert self._rows("SELECT count(*) FROM tasks") == self._rows("SELECT count(*) FROM outbox") == [(len(ids),)]
        cost = sum(int(1000 * one["cost"]) for one in ready)
        assert self._rows("SELECT balance FROM accounts") == [(GRANT - cost,)]
        assert ids <= {json.loads(seen.body)["task_id"] for seen in self.world.receiver.seen}
        await self.sweeper.sweep()
        names = sorted(name for (name,) in self._rows("SELECT object_name FROM tasks") if name is not None)
        assert self._files("results") == names
        assert len(names) == len(ready)
        assert self._files("waypoints") == self._files("inputs") == []

    def _files(self, folder: str) -> Sequence[object]:
        return sorted(f"{path.parent.name}/{path.name}" for path in (self.folder / folder).glob("??/*"))
