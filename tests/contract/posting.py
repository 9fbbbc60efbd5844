"""A courier beside a server of this process: real sockets to whom a request names, and a set clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import trustme
from inprocess import Json, Server, serving

from fluxserve.api import DIALECTS, OTHER_APIS
from fluxserve.api.couriers import Couriers
from fluxserve.api.webhooks import Composer
from fluxserve.api.workers import Gateway
from fluxserve.courier.loop import Courier
from receivers import Behave, Network, Receiver, answer_ok, receiving, server_tls

HOST = "hooks.test"
URL = f"https://{HOST}/flux?from=here"
PATIENCE_S = 10.0


class Post:
    """A server, its courier, and one receiver by the name of HOST."""

    def __init__(self, server: Server, receiver: Receiver, network: Network, authority: trustme.CA) -> None:
        self.server = server
        self.receiver = receiver
        self.network = network
        self.authority = authority
        self.couriers = Couriers(
            server.service.webhooks, Composer(
                server.service, server.signer, (*DIALECTS, *OTHER_APIS), lambda: server.now
            ).compose,
            settings=server.service.settings, need=lambda: None, on_ready=lambda _: self.arrived.set(),
            on_hung=lambda _: None,
        )  # fmt: skip
        self.preparer = server.preparer(self.couriers.fetch)
        self.gateway = Gateway(
            server.service, is_alive=lambda _: True, serve_courier=self.couriers.serve, on_ready=lambda _: None,
            on_hung=lambda _: None,
        )  # fmt: skip
        self.arrived = asyncio.Event()
        self._courier: asyncio.Task[None] | None = None

    async def start_courier(self) -> None:
        """A courier dials and is let in."""
        self.arrived.clear()
        courier = Courier(
            outbound=self.network.client(trust=self.authority), settings=self.server.service.settings,
            server=f"unix:{self.server.folder / 'worker.sock'}", courier_id="c1", parented=True,
        )  # fmt: skip
        self._courier = asyncio.create_task(courier.run())
        await asyncio.wait_for(self.arrived.wait(), PATIENCE_S)

    async def kill_courier(self) -> None:
        """It goes in the middle of whatever it does."""
        assert self._courier is not None
        self._courier.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._courier

    def submit(self, **fields: object) -> Json:
        """A task with a webhook, not drawn yet."""
        return self.server.submit({"webhook_url": URL, **fields})

    def ready(self, **fields: object) -> Json:
        """A drawn task with a webhook that is due."""
        task = self.submit(**fields)
        self.server.draw()
        return task

    def deliver(self) -> None:
        """Every attempt that is due is made, and written down."""
        self.server.run(self._deliver())

    async def _deliver(self) -> None:
        while True:
            self.couriers.begin_due()
            if not await self.couriers.settled(PATIENCE_S):
                return

    def prepare(self) -> None:
        """Every picture that is due is fetched, and what comes of it is written down."""
        self.server.run(self._prepare())

    async def _prepare(self) -> None:
        while True:
            self.preparer.begin()
            if not await self.preparer.settled(PATIENCE_S):
                return

    def begin_preparing(self, until: asyncio.Event) -> None:
        """Fetching is begun, and goes on until something happens."""

        async def begin() -> None:
            self.preparer.begin()
            await asyncio.wait_for(until.wait(), PATIENCE_S)

        self.server.run(begin())

    def begin(self, until: asyncio.Event) -> None:
        """Every attempt that is due is begun, and goes on until something happens."""

        async def begin() -> None:
            self.couriers.begin_due()
            await asyncio.wait_for(until.wait(), PATIENCE_S)

        self.server.run(begin())

    def wait(self) -> float:
        """The clock goes on to the next attempt; how far."""
        seconds = self.server.service.webhooks.pause()
        self.server.now += seconds
        return seconds

    def deliveries(self, **query: str) -> list[Json]:
        """The account's own, as it sees them."""
        answer = self.server.ask("GET", "/v1/webhooks/deliveries", key=self.server.key, query=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["deliveries"])

    def delivery(self) -> Json:
        """The only one."""
        (one,) = self.deliveries()
        return one

    def replay(self, task: Json, key: str | None = None) -> int:
        """The status that is answered to a replay."""
        path = f"/v1/webhooks/deliveries/{task['id']}/replay"
        return self.server.ask("POST", path, key=key or self.server.key).status_code


@asynccontextmanager
async def _posting(server: Server, behave: Behave) -> AsyncIterator[Post]:
    authority = trustme.CA()
    async with receiving(behave, server_tls(authority, HOST)) as receiver:
        network = Network(receiver.port, {HOST: ["93.184.215.14"]})
        post = Post(server, receiver, network, authority)
        listener = await asyncio.start_unix_server(post.gateway.serve_local, server.folder / "worker.sock")
        await post.start_courier()
        try:
            yield post
        finally:
            await post.kill_courier()
            listener.close()


@contextmanager
def posting(folder: Path, behave: Behave = answer_ok, **settings: object) -> Iterator[Post]:
    """A server with a courier and a receiver that behaves so."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(folder, **settings))
        running = _posting(server, behave)
        post = server.run(running.__aenter__())
        stack.callback(lambda: server.run(running.__aexit__(None, None, None)))
        yield post


Posting = Callable[..., Post]
