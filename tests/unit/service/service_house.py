"""A service on a real store and a real folder of pictures, with a clock that is moved by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from builders import DRAWN, EVERY_MODEL, NOW
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import find
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.storage import LocalStorage
from fluxserve.errors import JsonValue
from fluxserve.service.housekeeping import Sweeper
from fluxserve.service.inputs import Inputs
from fluxserve.service.keyring import Keyring
from fluxserve.service.moderation import Moderation
from fluxserve.service.orders import Order
from fluxserve.service.preparation import Fetch, Preparer
from fluxserve.service.service import Service
from fluxserve.service.sharing import Sharing
from fluxserve.service.signing import Signing
from fluxserve.service.upsampling import Upsampling
from fluxserve.service.waypoints import Waypoints
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.store.base import TaskRecord
from fluxserve.store.sqlite import SqliteStore


@dataclass
class House:
    """Everything around the service, and the time."""

    folder: Path
    settings: Settings
    open_store: Callable[[Path], SqliteStore] = SqliteStore
    time: float = NOW

    def __post_init__(self) -> None:
        self.decoders = Decoders()
        self.open()

    def open(self) -> None:
        """Open the database and the folder of pictures."""
        self.store = self.open_store(self.folder / "fluxserve.db")
        self.storage = LocalStorage(self.folder / "pictures")
        self.waypoint_storage = LocalStorage(self.folder / "waypoints")
        self.input_storage = LocalStorage(self.folder / "inputs")
        self.keyring = Keyring(self.store, b"pepper")
        self.begin_anew()

    def begin_anew(self) -> None:
        """A service that remembers nothing, over the same store and pictures."""
        waypoints = Waypoints(
            store=self.store, storage=self.waypoint_storage, budget=self.settings.waypoint_budget,
            now=lambda: self.time,
        )  # fmt: skip
        self.inputs = Inputs(
            store=self.store, storage=self.input_storage, decoders=self.decoders, budget=self.settings.input_budget
        )
        self.webhooks = Webhooks(
            store=self.store, sealer=Sealer(bytes(32)), allowance=Allowance.parse(self.settings.outbound_allow),
            now=lambda: self.time, rng=random.Random(1),
        )  # fmt: skip
        self.service = Service(
            settings=self.settings, store=self.store, storage=self.storage, waypoints=waypoints, inputs=self.inputs,
            keyring=self.keyring, sharing=Sharing(secret=b"pepper", budget=self.settings.result_cache),
            signing=Signing(),
            webhooks=self.webhooks, moderation=Moderation(is_on=self.settings.moderation == "on"),
            upsampling=Upsampling(None, timeout=0.0), now=lambda: self.time, rng=random.Random(1),
        )  # fmt: skip
        self.sweeper = Sweeper(
            settings=self.settings, store=self.store, storage=self.storage, waypoints=waypoints,
            inputs=self.inputs, views=self.service.views, now=lambda: self.time,
        )  # fmt: skip

    def preparer(self, fetch: Fetch) -> Preparer:
        """What prepares tasks whose pictures are fetched so."""
        return Preparer(
            self.service, store=self.store, inputs=self.inputs, fetch=fetch, now=lambda: self.time, retry=0.01
        )

    async def key(
        self, *, grant: int | None = None, max_active: int | None = None, rate_per_minute: int | None = None
    ) -> ApiKey:
        """A new key of a new account."""
        _, entry = await self.keyring.create(
            name="k", account=None, grant=grant, max_active=max_active, rate_per_minute=rate_per_minute,
            weight=1.0, now=self.time,
        )  # fmt: skip
        return entry.key

    async def submit(
        self,
        key: ApiKey,
        values: Mapping[str, JsonValue] | None = None,
        *,
        model: str = "flux-dev",
        pictures: Mapping[str, str] | None = None,
        urls: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> TaskRecord:
        """An accepted task."""
        order = Order(
            key=key, spec=find(model), values={"prompt": "a red apple", **(values or {})}, pictures=pictures or {},
            urls=urls or {}, ignored=(), dialect="bfl", origin="http://127.0.0.1:8808", idempotency_key=idempotency_key,
        )  # fmt: skip
        return await self.service.submit(order)

    async def claim(self, worker_id: str = "w1", fingerprint: str = "f1") -> TaskRecord:
        """The next task."""
        (record,) = await self.service.claim(worker_id, EVERY_MODEL, 1, dict.fromkeys(EVERY_MODEL, fingerprint))
        return record

    async def ready(self, key: ApiKey) -> TaskRecord:
        """A task that was drawn."""
        await self.submit(key)
        task = await self.claim()
        assert await self.service.complete(task.id, task.fence, task.generation, b"picture", DRAWN)
        (record,) = await self.store.get_many([task.id])
        assert record is not None
        return record

    def pictures(self) -> list[str]:
        """Every stored picture."""
        return sorted(self.storage.names_older_than(float("inf")))
