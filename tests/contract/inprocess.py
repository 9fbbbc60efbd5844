"""The whole application in this process: real parts in a folder; the clock is set and the worker stepped by hand."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from fluxserve.api.about import Readiness
from fluxserve.api.application import build
from fluxserve.app.signing import open_signing
from fluxserve.catalogue import MODELS
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.storage import LocalStorage
from fluxserve.engine.base import Finished
from fluxserve.engine.checkpoints import plan
from fluxserve.engine.fake import FakeEngine
from fluxserve.engine.marks import mark_of
from fluxserve.engine.pixels import decode, encode
from fluxserve.moderation.fake import FakeClassifier
from fluxserve.service.housekeeping import Sweeper
from fluxserve.service.inputs import Inputs
from fluxserve.service.judges import Judges
from fluxserve.service.keyring import Keyring
from fluxserve.service.moderation import Moderation
from fluxserve.service.preparation import Fetch, Preparer
from fluxserve.service.service import Service
from fluxserve.service.sharing import Sharing
from fluxserve.service.upsampling import Upsampling
from fluxserve.service.waypoints import Waypoints
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Settings
from fluxserve.store.base import Drawn, Reason, TaskRecord
from fluxserve.store.sqlite import SqliteStore

ORIGIN = "http://flux.test"
NOW = 1_800_000_000.0
READY = Readiness(ready=True, reason="", workers=1, unfinished_tasks=0, moderation="on")
WORKER = "worker"
#: An answer, in which a test looks for what it expects.
Json = dict[str, Any]
T = TypeVar("T")


class Server:
    """The application and its callers' key; `ask` is one HTTP request, `draw` a worker that draws all that waits."""

    def __init__(self, folder: Path, runner: asyncio.Runner, settings: Settings) -> None:
        self.now = NOW
        self.readiness = READY
        self.folder = folder
        self._runner = runner
        self._engine = FakeEngine(settings, clock=lambda: self.now)
        self._store = SqliteStore(folder / "fluxserve.db")
        self.storage = LocalStorage(folder / "results")
        self.keyring = Keyring(self._store, bytes(32), steady=lambda: self.now)
        self.signer = LinkSigner([bytes(32)], settings.link_ttl)
        self.waypoints = Waypoints(
            store=self._store, storage=LocalStorage(folder / "waypoints"), budget=settings.waypoint_budget,
            now=lambda: self.now,
        )  # fmt: skip
        self.decoders = Decoders()
        self.inputs = Inputs(
            store=self._store, storage=LocalStorage(folder / "inputs"), decoders=self.decoders,
            budget=settings.input_budget,
        )  # fmt: skip
        self.webhooks = Webhooks(
            store=self._store, sealer=Sealer(bytes(32)), allowance=Allowance.parse(settings.outbound_allow),
            now=lambda: self.now, rng=random.Random(1),
        )  # fmt: skip
        sharing = Sharing(secret=bytes(32), budget=settings.result_cache, origin=str(settings.prompt_in_pictures))
        self.signing = open_signing(settings)
        self.service = Service(
            settings=settings, store=self._store, storage=self.storage, waypoints=self.waypoints, inputs=self.inputs,
            keyring=self.keyring, sharing=sharing,
            signing=self.signing, webhooks=self.webhooks,
            moderation=Moderation(
                is_on=settings.moderation == "on",
                judges=Judges(settings.moderation_judges, timeout=settings.moderation_timeout),
            ),
            upsampling=Upsampling(
                settings.prompt_upsampler, timeout=settings.prompt_upsampler_timeout, steady=lambda: self.now
            ),
            now=lambda: self.now, rng=random.Random(1),
        )  # fmt: skip
        self.app = build(
            service=self.service, signer=self.signer, storage=self.storage, checkpoints=plan(settings),
            missing="",
            readiness=lambda: self.readiness, now=lambda: self.now,
        )  # fmt: skip
        self.key = self.new_key()
        self._clients: dict[str, httpx.AsyncClient] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Whatever needs the server's own event loop."""
        return self._runner.run(work)

    def new_key(
        self,
        *,
        account: str | None = None,
        grant: int | None = None,
        max_active: int | None = None,
        max_work: float | None = None,
        rate_per_minute: int | None = None,
    ) -> str:
        """A key; `account` None: one of its own; `grant` in thousandths, None: unlimited."""
        text, _ = self._runner.run(
            self.keyring.create(
                name="test", account=account, grant=grant, max_active=max_active, max_work=max_work,
                rate_per_minute=rate_per_minute, weight=1.0, now=self.now,
            )
        )  # fmt: skip
        return text

    def revoke(self, key: str) -> None:
        """Close a key."""
        found = self.keyring.find(key)
        assert found is not None
        self._runner.run(self.keyring.revoke(found.id, self.now))

    def balance(self, key: str) -> int | None:
        """Thousandths left on the key's account."""
        found = self.keyring.find(key)
        entries = self._runner.run(self.keyring.entries())
        return next(entry.balance for entry in entries if found is not None and entry.key.id == found.id)

    def ask(
        self,
        method: str,
        url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        address: str = "127.0.0.1",
    ) -> httpx.Response:
        """One request; `key` goes into X-Key, an iterator makes a chunked body, `address` is the caller's."""
        given = {**({} if key is None else {"X-Key": key}), **(headers or {})}
        content = body if body is None or isinstance(body, bytes) else _pieces(body)
        return self._runner.run(
            self._client(address).request(method, url, headers=given, params=query, content=content)
        )

    def ask_raw(self, method: str, url: str, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> httpx.Response:
        """One request with exactly these headers beside Host and Content-Length, repetitions and all."""
        return self._runner.run(self._client("127.0.0.1").request(method, url, headers=headers, content=body))

    def post(self, path: str, fields: object, **headers: str) -> httpx.Response:
        """Submit `fields` as JSON with the first key; `headers` with underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, key=self.key, headers=named, body=json.dumps(fields).encode())

    def submit(self, fields: Mapping[str, object] | None = None, path: str = "/v1/flux-dev") -> Json:
        """An accepted task."""
        answer = self.post(path, {"prompt": "a red apple", "width": 256, "height": 256, **(fields or {})})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def submit_with(self, path: str, headers: Mapping[str, str], fields: Mapping[str, object]) -> Json:
        """A task accepted for these headers alone."""
        answer = self.ask("POST", path, headers=headers, body=json.dumps(fields).encode())
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def record(self, task: Json) -> TaskRecord:
        """The task as it is written down."""
        (record,) = self._runner.run(self._store.get_many([str(task["id"])]))
        assert record is not None
        return record

    def poll(self, task: Json) -> Json:
        """The task as its polling_url shows it."""
        answer = self.ask("GET", str(task["polling_url"]))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def claim(self) -> list[TaskRecord]:
        """A worker takes up to eight tasks that can be drawn together."""
        return self._runner.run(self.service.claim(WORKER, tuple(MODELS), 8, {}))

    def draw(self, seconds: float = 0.0) -> None:
        """A worker draws everything that waits, each group in so many seconds."""
        while records := self.claim():
            self.now += seconds
            for record in records:
                self.draw_claimed(record)

    def draw_claimed(self, record: TaskRecord, warnings: tuple[str, ...] = ()) -> None:
        """A worker draws a task that it has claimed, and has this to say about it."""
        files = self._runner.run(self.service.read_inputs(record))
        pictures = {picture.name: decode(files[picture.name], picture) for picture in record.generation.pictures}
        self._engine.admit(record.id, record.generation, pictures=pictures)
        finished = next(event for event in self._engine.step() if isinstance(event, Finished))
        mark = mark_of(record.generation, finished.drawn_by, tells_prompt=self.service.settings.prompt_in_pictures)
        picture = encode(finished.pixels, record.generation.output_format, mark)
        scores = FakeClassifier().score(finished.pixels.size, finished.pixels.data)
        drawn = Drawn(
            drawn_by=finished.drawn_by, duration=0.0, facts=finished.facts, warnings=warnings, scores=scores
        )  # fmt: skip
        assert self._runner.run(self.service.complete(record.id, record.fence, record.generation, picture, drawn))

    def fail(self, record: TaskRecord, message: str) -> None:
        """A worker gives a claimed task up."""
        assert self._runner.run(
            self.service.fail(record.id, record.fence, Reason(code="DrawingFailed", message=message))
        )

    def preparer(self, fetch: Fetch) -> Preparer:
        """What prepares tasks whose pictures are fetched so."""
        return Preparer(self.service, store=self._store, inputs=self.inputs, fetch=fetch, now=lambda: self.now)

    def faults(self) -> list[str]:
        """What is wrong with the books."""
        return self._runner.run(self._store.fsck())

    def sweep(self) -> None:
        """Delete what is past its retention."""
        settings = self.service.settings
        sweeper = Sweeper(
            settings=settings, store=self._store, storage=self.storage, waypoints=self.waypoints,
            inputs=self.inputs, views=self.service.views, now=lambda: self.now,
        )  # fmt: skip
        self._runner.run(sweeper.sweep())

    def lose_database(self) -> None:
        """Close the database under the server."""
        self._runner.run(self._store.close())

    def _client(self, address: str) -> httpx.AsyncClient:
        if address not in self._clients:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 1234))
            self._clients[address] = httpx.AsyncClient(transport=transport, base_url=ORIGIN)
        return self._clients[address]

    async def close(self) -> None:
        """Close connections and files."""
        for client in self._clients.values():
            await client.aclose()
        await self.decoders.close()
        await self._store.close()


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Server]:
    """A server with these settings on a new data folder."""
    folder.mkdir(exist_ok=True)
    known = Settings.model_validate({"data_dir": folder, "min_free_disk": 0, **settings})
    with asyncio.Runner() as runner:
        server = Server(folder, runner, known)
        try:
            yield server
        finally:
            runner.run(server.close())


async def _pieces(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
