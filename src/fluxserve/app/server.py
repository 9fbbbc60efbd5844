"""A server: its parts, started in order and stopped in the opposite order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop

from fluxserve import engine
from fluxserve.accounts import api_keys
from fluxserve.api import DIALECTS, OTHER_APIS
from fluxserve.api.about import Readiness
from fluxserve.api.admin import AdminSocket
from fluxserve.api.application import build
from fluxserve.api.couriers import Couriers
from fluxserve.api.gate import Gate
from fluxserve.api.webhooks import Composer
from fluxserve.api.workers import Gateway
from fluxserve.app.folder import address_path, input_storage, is_alive, key_path, locked, open_store, run_folder
from fluxserve.app.listeners import HttpServer, http_config, is_loopback, listening, local_url, open_sockets
from fluxserve.app.signing import open_signing
from fluxserve.delivery.addresses import Allowance
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.files import sync_folder, write_new
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.secrets import Secrets, load_or_create
from fluxserve.delivery.storage import LocalStorage
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.errors import ConfigurationError, PublicBindWithoutKey
from fluxserve.fleet.local import LocalFleet
from fluxserve.moderation import pictures
from fluxserve.service.housekeeping import Sweeper
from fluxserve.service.inputs import Inputs
from fluxserve.service.judges import Judges
from fluxserve.service.keyring import DEFAULT_WEIGHT, Keyring
from fluxserve.service.moderation import Moderation
from fluxserve.service.preparation import Preparer
from fluxserve.service.service import Service
from fluxserve.service.sharing import Sharing
from fluxserve.service.signing import Signing
from fluxserve.service.upsampling import Upsampling
from fluxserve.service.waypoints import Waypoints
from fluxserve.service.webhooks import Webhooks
from fluxserve.settings import Endpoint, EngineChoice, Settings
from fluxserve.store.sqlite import SqliteStore

logger = logging.getLogger(__name__)
#: Where files lie is told in the log; anybody may ask whether the server is ready.
_FOLDERS = re.compile(r"(?<!\S)/(?:[^\s/]+/)*(?=[^\s/]+/[^\s/]+)")
#: Outcomes that arrived last get this long to be written down.
OUTCOMES_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a server tells when it answers: its addresses, its data folder, and the first key if it was just made."""

    url: str
    public_url: str | None
    data_dir: Path
    new_key: str | None
    engine: EngineChoice
    checkpoints: dict[str, Checkpoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A server's parts, wired together."""

    service: Service
    fleet: LocalFleet
    gateway: Gateway
    couriers: Couriers
    preparer: Preparer
    sweeper: Sweeper
    decoders: Decoders
    administration: AdminSocket
    app: Gate


def run_server(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError when the start is impossible."""
    _allow_many_connections()
    uvloop.run(Server(settings, announce).run())


class Server:
    """One server process: HTTP, the store, the gateway of workers, and local workers."""

    def __init__(self, settings: Settings, announce: Callable[[Running], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._engine = engine.choose(settings)
        self._blind = ""
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """1. check, 2. open, 3. wire, 4. serve until told to stop, 5. drain and close."""
        settings = self._settings
        self._listen_to_signals()
        engine.check(settings)
        checkpoints = dict(plan(settings))
        if settings.moderation == "on" and engine.worker_count(settings):
            self._blind = await asyncio.to_thread(pictures.missing, pictures.suited_to(self._engine))
        with locked(settings), run_folder(settings) as folder, listening(settings) as listener:
            async with open_store(settings) as store:
                secrets = load_or_create(settings.data_dir)
                keyring = Keyring(store, secrets.pepper)
                await keyring.load()
                new_key = await first_key(settings, keyring)
                signing = await asyncio.to_thread(open_signing, settings)
                parts = self._wire(store, keyring, secrets, signing, folder, checkpoints)
                await parts.gateway.adopt(await parts.service.start())
                _calm_collector()
                running = Running(
                    url=local_url(settings, listener),
                    public_url=settings.public_url,
                    data_dir=settings.data_dir,
                    new_key=new_key,
                    engine=self._engine,
                    checkpoints=checkpoints,
                )
                await self._serve(parts, folder, listener, running)

    def _wire(
        self,
        store: SqliteStore,
        keyring: Keyring,
        secrets: Secrets,
        signing: Signing,
        folder: Path,
        checkpoints: dict[str, Checkpoint],
    ) -> Parts:
        settings = self._settings
        storage = LocalStorage(settings.data_dir / "results")
        waypoints = Waypoints(
            store=store,
            storage=LocalStorage(settings.data_dir / "waypoints"),
            budget=settings.waypoint_budget,
            now=time.time,
        )
        decoders, input_files = Decoders(), input_storage(settings)
        inputs = Inputs(store=store, storage=input_files, decoders=decoders, budget=settings.input_budget)
        judges = Judges(settings.moderation_judges, timeout=settings.moderation_timeout)
        moderation = Moderation(is_on=settings.moderation == "on", judges=judges)
        upsampling = Upsampling(settings.prompt_upsampler, timeout=settings.prompt_upsampler_timeout)
        service = Service(
            settings=settings,
            store=store,
            storage=storage,
            waypoints=waypoints,
            inputs=inputs,
            keyring=keyring,
            sharing=Sharing(
                secret=secrets.pepper,
                budget=settings.result_cache,
                origin=f"{signing.identity} {settings.prompt_in_pictures} {moderation.identity}",
            ),
            signing=signing,
            webhooks=Webhooks(
                store=store,
                sealer=Sealer(secrets.pepper),
                allowance=Allowance.parse(settings.outbound_allow),
                now=time.time,
                rng=random.SystemRandom(),
            ),
            moderation=moderation,
            upsampling=upsampling,
            now=time.time,
            rng=random.SystemRandom(),
        )
        count = engine.worker_count(settings)
        fleet = LocalFleet(
            settings.model_copy(update={"workers": count}),  # so that each knows how many share the machine
            server=f"unix:{folder / 'worker.sock'}",
            count=count,
            run_dir=folder,
            gpus=engine.gpus(settings),
        )
        signer = LinkSigner(secrets.link_keys, settings.link_ttl)
        couriers = Couriers(
            service.webhooks,
            Composer(service, signer, (*DIALECTS, *OTHER_APIS), time.time).compose,
            settings=settings,
            need=fleet.need_courier,
            on_ready=fleet.arrived,
            on_hung=fleet.kill,
        )
        judges.ask = upsampling.ask = couriers.ask
        gateway = Gateway(
            service,
            token=settings.worker_token.get_secret_value() if settings.worker_token else None,
            is_alive=lambda worker_id: is_alive(folder, worker_id),
            serve_courier=couriers.serve,
            on_ready=fleet.arrived,
            on_hung=fleet.kill,
        )
        upsampling.write = gateway.writers.write
        app = build(
            service=service,
            signer=signer,
            storage=storage,
            checkpoints=checkpoints,
            missing=engine.missing(settings),
            readiness=lambda: self._readiness(service, gateway, couriers, fleet),
            now=time.time,
        )
        return Parts(
            service=service,
            fleet=fleet,
            gateway=gateway,
            couriers=couriers,
            preparer=Preparer(service, store=store, inputs=inputs, fetch=couriers.fetch, now=time.time),
            sweeper=Sweeper(
                settings=settings,
                store=store,
                storage=storage,
                waypoints=waypoints,
                inputs=inputs,
                views=service.views,
                now=time.time,
            ),
            decoders=decoders,
            administration=AdminSocket(store=store, keyring=keyring, inputs=input_files, now=time.time),
            app=app,
        )

    async def _serve(self, parts: Parts, folder: Path, listener: socket.socket, running: Running) -> None:
        sockets = await open_sockets(self._settings, folder, parts.gateway, parts.administration)
        config = http_config(parts.app, self._settings)
        listener.listen(config.backlog)  # whoever reads the address may call at once
        http = HttpServer(config)
        answering = asyncio.create_task(http.serve(sockets=[listener]))
        background = [answering, *(asyncio.create_task(part) for part in _for_ever(parts))]
        parts.fleet.start()
        if self._asks_judges or isinstance(self._settings.prompt_upsampler, Endpoint):
            parts.fleet.need_courier()
        with parts.service.metrics.counting_events(), self._published(running.url):
            self._announce(running)
            # None of the parts ends by itself; if one does, the server is broken and has to go.
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stop, *background], return_when=asyncio.FIRST_COMPLETED)
        await self._drain(parts)
        parts.service.watches.end()
        http.should_exit = True
        await answering
        await parts.decoders.close()
        for task in background:
            task.cancel()
        for server in sockets:
            server.close()
        for outcome in await asyncio.gather(*background, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    @contextlib.contextmanager
    def _published(self, url: str) -> Iterator[None]:
        """Tell the command line on this machine where to find us; it can do without."""
        path = address_path(self._settings.data_dir)
        try:
            path.write_text(url + "\n", "utf-8")
        except OSError:
            logger.warning("The address file cannot be written", extra={"action": "not_published"})
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    async def _drain(self, parts: Parts) -> None:
        """Accept nothing more, let what runs finish, keep answering polls meanwhile."""
        logger.info("Stopping: running tasks are finished, waiting ones stay queued", extra={"action": "stopping"})
        parts.service.stop_accepting()
        parts.gateway.drain()
        parts.preparer.drain()
        parts.couriers.drain()

        def is_connected(child: str) -> bool:
            return parts.gateway.is_connected(child) or parts.couriers.is_connected(child)

        draining = asyncio.create_task(parts.fleet.stop(self._settings.drain, is_connected=is_connected))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await parts.fleet.stop(0.0, is_connected=is_connected)
        await parts.gateway.write_down_all(OUTCOMES_S)
        await parts.couriers.settled(OUTCOMES_S)
        await parts.preparer.settled(OUTCOMES_S)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        """The first signal drains, the second hurries."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    @property
    def _asks_judges(self) -> bool:
        return self._settings.moderation == "on" and bool(self._settings.moderation_judges)

    def _readiness(self, service: Service, gateway: Gateway, couriers: Couriers, fleet: LocalFleet) -> Readiness:
        reason, starting = "", False
        if self._stop.is_set():
            reason = "The server is stopping."
        elif not gateway.ready and (missing := engine.missing(self._settings) or self._blind):
            reason = missing
        elif not gateway.ready:
            reason, starting = fleet.status, fleet.is_starting
        elif self._asks_judges and not couriers.ready:
            reason = "The courier that asks the judges of moderation_judges is not connected."
        return Readiness(
            ready=not reason,
            reason=reason,
            starting=starting,
            workers=gateway.ready,
            left_out=[_FOLDERS.sub("", line) for line in gateway.left_out],
            unfinished_tasks=len(service.views),
            upsampling=service.upsampling.trouble,
            moderation=self._settings.moderation,
        )


def _for_ever(parts: Parts) -> tuple[Coroutine[None, None, None], ...]:
    """What runs beside the answers."""
    return (
        parts.gateway.reap(), parts.couriers.reap(), parts.couriers.post(), parts.preparer.run(), parts.sweeper.run(),
    )  # fmt: skip


def _allow_many_connections() -> None:
    """Every connection is an open file, and many systems allow a process 1,024 of them until it asks for more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names a limit that it then refuses
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _calm_collector() -> None:
    """Let Python's collector look at old objects rarely.

    Thousands of waiting tasks live long in memory; a full collection over them holds every request up for tens of
    milliseconds. What dies young is still collected as it comes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def first_key(settings: Settings, keyring: Keyring) -> str | None:
    """Make the first key of a new data folder, unlimited; refuses to do so for a public address."""
    if not keyring.is_empty:
        return None
    if not is_loopback(settings.host):
        raise PublicBindWithoutKey(
            f"{settings.host} can be reached by others and no API key exists yet. "
            "Make one with `fluxserve keys create NAME`, or listen on 127.0.0.1."
        )
    text = api_keys.new_key()
    _keep_key(key_path(settings.data_dir), text)  # before the key counts: after a kill in between there is none yet
    await keyring.create(
        name="first", account="default", grant=None, max_active=None, rate_per_minute=None,
        weight=DEFAULT_WEIGHT, now=time.time(), text=text,
    )  # fmt: skip
    return text


def _keep_key(path: Path, text: str) -> None:
    try:
        path.unlink(missing_ok=True)
        write_new(path, text.encode() + b"\n")
        sync_folder(path.parent)
    except OSError:
        raise ConfigurationError(f"The first API key cannot be kept in {path}: check the data folder.") from None
