"""The one place where parts are wired together: a server, a worker, a command without a server.

Everything that runs is started here, in order, and stopped in the opposite order.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
import uvloop

from fluxserve import catalogue, database, engine
from fluxserve.accounts import api_keys
from fluxserve.api import admin
from fluxserve.api.about import Readiness
from fluxserve.api.application import build
from fluxserve.api.gate import Gate
from fluxserve.api.http_protocol import Limits, make_protocol
from fluxserve.api.workers import Gateway
from fluxserve.delivery.files import sync_folder, write_new
from fluxserve.delivery.links import LinkSigner
from fluxserve.delivery.secrets import Secrets, load_or_create
from fluxserve.delivery.storage import LocalStorage
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.errors import ConfigurationError, LicenseNotAccepted, PublicBindWithoutKey
from fluxserve.fleet.local import LocalFleet
from fluxserve.service.housekeeping import Sweeper
from fluxserve.service.keyring import Keyring
from fluxserve.service.service import Service
from fluxserve.settings import Settings
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker.connection import (
    LOCAL_PREFIX,
    forget_dead_workers,
    make_run_dir,
    remove_run_dir,
    run_dir,
    worker_lock,
)

logger = logging.getLogger(__name__)
#: Open connections get this long to end after the workers have drained.
CLOSE_S = 2.0
#: Outcomes that arrived last get this long to be written down.
OUTCOMES_S = 1.0
LICENSES_FILE = "accepted_licenses.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a server tells when it answers: its address, its data folder, and the first key if it was just made."""

    url: str
    data_dir: Path
    new_key: str | None
    engine: str
    checkpoints: dict[str, Checkpoint]


def database_path(settings: Settings) -> Path:
    """The database of a data folder."""
    return settings.data_dir / "fluxserve.db"


def lock_path(settings: Settings) -> Path:
    """The lock a server holds on its data folder."""
    return settings.data_dir / "server.lock"


def admin_path(settings: Settings) -> Path:
    """The running server's admin socket."""
    return run_dir(settings.data_dir) / "admin.sock"


def key_path(data_dir: Path) -> Path:
    """Where the first key is kept for the command line on this machine."""
    return data_dir / "api_key"


def address_path(data_dir: Path) -> Path:
    """Where a running server says at which URL it answers, for the command line on this machine."""
    return data_dir / "address"


def run_server(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError when the start is impossible."""
    uvloop.run(Server(settings, announce).run())


class Server:
    """One server process: HTTP, the store, the gateway of workers, and local workers."""

    def __init__(self, settings: Settings, announce: Callable[[Running], None]) -> None:
        self._settings = settings
        self._announce = announce
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """1. check, 2. open, 3. wire, 4. serve until told to stop, 5. drain and close."""
        settings = self._settings
        self._listen_to_signals()
        checkpoints = dict(plan(settings))
        prepare_data_dir(settings.data_dir)
        with (
            database.hold_lock(lock_path(settings), what=f"The data folder {settings.data_dir}"),
            run_folder(settings) as folder,
            listening(settings) as listener,
        ):
            secrets = load_or_create(settings.data_dir)
            async with open_store(settings) as store:
                keyring = Keyring(store, secrets.pepper)
                await keyring.load()
                new_key = await first_key(settings, keyring)
                await self._serve(store, keyring, secrets, folder, listener, checkpoints, new_key)

    async def _serve(
        self,
        store: SqliteStore,
        keyring: Keyring,
        secrets: Secrets,
        folder: Path,
        listener: socket.socket,
        checkpoints: dict[str, Checkpoint],
        new_key: str | None,
    ) -> None:
        settings = self._settings
        storage = LocalStorage(settings.data_dir / "results")
        service = Service(
            settings=settings, store=store, storage=storage, keyring=keyring, now=time.time, rng=random.SystemRandom()
        )
        choice = engine.choose(settings)
        fleet = LocalFleet(
            settings,
            server=f"unix:{folder / 'worker.sock'}",
            count=0 if choice == "none" else settings.workers,
            run_dir=folder,
        )
        gateway = Gateway(
            service,
            token=settings.worker_token.get_secret_value() if settings.worker_token else None,
            is_alive=lambda worker_id: is_alive(folder, worker_id),
            on_ready=fleet.arrived,
            on_hung=fleet.kill,
        )
        await gateway.adopt(await service.start())
        _calm_collector()
        app = build(
            service=service,
            signer=LinkSigner(secrets.link_keys, settings.link_ttl),
            storage=storage,
            checkpoints=checkpoints,
            missing=engine.MISSING if choice == "none" else "",
            readiness=lambda: self._readiness(service, gateway, fleet, choice),
            now=time.time,
        )
        sweeper = Sweeper(settings=settings, store=store, storage=storage, views=service.views, now=time.time)
        sockets = await open_sockets(
            settings, folder, gateway, admin.AdminSocket(store=store, keyring=keyring, now=time.time)
        )
        http = _HttpServer(_http_config(app, frozenset(settings.trusted_proxies)))
        background = [
            asyncio.create_task(part) for part in (http.serve(sockets=[listener]), gateway.reap(), sweeper.run())
        ]
        fleet.start()
        url = _url(settings, listener)
        with self._published(url):
            self._announce(
                Running(
                    url=url, data_dir=settings.data_dir, new_key=new_key, engine=choice,
                    checkpoints=checkpoints,
                )
            )  # fmt: skip
            # None of the parts ends by itself; if one does, the server is broken and has to go.
            stop = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stop, *background], return_when=asyncio.FIRST_COMPLETED)
        await self._shut_down(service, gateway, fleet)
        http.should_exit = True
        await background[0]
        for task in background[1:]:
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

    async def _shut_down(self, service: Service, gateway: Gateway, fleet: LocalFleet) -> None:
        """Accept nothing more, let what runs finish, keep answering polls meanwhile."""
        logger.info("Stopping: running tasks are finished, waiting ones stay queued", extra={"action": "stopping"})
        service.stop_accepting()
        gateway.drain()
        draining = asyncio.create_task(fleet.stop(self._settings.drain, is_connected=gateway.is_connected))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await fleet.stop(0.0, is_connected=gateway.is_connected)
        await gateway.write_down_all(OUTCOMES_S)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        """The first signal drains, the second hurries."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _readiness(self, service: Service, gateway: Gateway, fleet: LocalFleet, choice: str) -> Readiness:
        reason = ""
        if self._stop.is_set():
            reason = "The server is stopping."
        elif not gateway.ready and choice == "none":
            reason = engine.MISSING
        elif not gateway.ready:
            reason = fleet.status or "No worker is connected. Tasks are accepted and wait."
        return Readiness(ready=not reason, reason=reason, workers=gateway.ready, unfinished_tasks=len(service.views))


def _calm_collector() -> None:
    """Let Python's collector look at old objects rarely.

    Thousands of waiting tasks live long in memory; a full collection over them holds every request up for tens of
    milliseconds. What dies young is still collected as it comes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own: the server above decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_config(app: Gate, exempt: frozenset[str]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=make_protocol(Limits(exempt=exempt)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(CLOSE_S),
        backlog=4096,
    )


@contextlib.contextmanager
def run_folder(settings: Settings) -> Iterator[Path]:
    """The private folder of sockets and workers' locks, cleared of what killed processes left there."""
    folder = make_run_dir(settings.data_dir)
    forget_dead_workers(folder, database.is_locked)
    try:
        yield folder
    finally:
        remove_run_dir(folder)


def is_alive(folder: Path, worker_id: str) -> bool:
    """Whether a worker may come back: its process lives, or it is on another machine, where only its lease can tell."""
    lock = worker_lock(folder, worker_id)
    return not worker_id.startswith(LOCAL_PREFIX) or (lock.exists() and database.is_locked(lock))


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The bound listening socket; raises ConfigurationError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError:
            raise ConfigurationError(
                f"{settings.host}:{settings.port} cannot be listened on: another program uses it, or the address is "
                "not this machine's. Choose another with --host and --port."
            ) from None
        yield listener


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return settings.public_url or f"http://{host}:{listener.getsockname()[1]}"


def prepare_data_dir(folder: Path) -> None:
    """Make the data folder, private; raises ConfigurationError where it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        raise ConfigurationError(f"The data folder {folder} cannot be made: choose another with --data-dir.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"The data folder {folder} is not writable: choose another with --data-dir.")


@contextlib.asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[SqliteStore]:
    """The store of a data folder whose lock is held."""
    store = await asyncio.to_thread(SqliteStore, database_path(settings))
    try:
        yield store
    finally:
        await store.close()


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
        name="first", account="default", grant=None, max_active=None, rate_per_minute=None, now=time.time(), text=text
    )
    return text


def _keep_key(path: Path, text: str) -> None:
    try:
        path.unlink(missing_ok=True)
        write_new(path, text.encode() + b"\n")
        sync_folder(path.parent)
    except OSError:
        raise ConfigurationError(f"The first API key cannot be kept in {path}: check the data folder.") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def accepted_licenses(settings: Settings) -> frozenset[str]:
    """The licences accepted by setting, or earlier on this data folder."""
    try:
        kept = json.loads((settings.data_dir / LICENSES_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        kept = []
    return frozenset(settings.accept_licenses) | frozenset(str(name) for name in kept)


def accept_licenses(settings: Settings, ask: Callable[[Checkpoint], bool] | None) -> None:
    """Make sure the weights' licences are accepted, asking where somebody can answer. Raises LicenseNotAccepted."""
    accepted = accepted_licenses(settings)
    for checkpoint in plan(settings).values():
        needed = checkpoint.license_needed
        if needed is None or needed in accepted:
            continue
        if ask is None or not ask(checkpoint):
            raise LicenseNotAccepted(
                f"{checkpoint.name} is licensed under {needed}, which has to be accepted first: "
                f'set accept_licenses = ["{needed}"] or FLUXSERVE_ACCEPT_LICENSES={needed}.'
            )
        accepted |= {needed}
        prepare_data_dir(settings.data_dir)
        (settings.data_dir / LICENSES_FILE).write_text(json.dumps(sorted(accepted)) + "\n", "utf-8")


async def open_sockets(
    settings: Settings, folder: Path, gateway: Gateway, administration: admin.AdminSocket
) -> list[asyncio.Server]:
    """The sockets of workers and of administration; stale ones are replaced, for the data folder's lock is ours."""
    servers = []
    for name, handler in (("worker.sock", gateway.serve_local), ("admin.sock", administration.serve)):
        path = folder / name
        path.unlink(missing_ok=True)
        servers.append(await asyncio.start_unix_server(handler, path, limit=2**20))
        path.chmod(0o600)
    if settings.worker_listen is not None:
        if settings.worker_token is None:
            raise ConfigurationError("worker_listen needs worker_token: set FLUXSERVE_WORKER_TOKEN.")
        host, _, port = settings.worker_listen.rpartition(":")
        try:
            servers.append(await asyncio.start_server(gateway.serve_remote, host, int(port), limit=2**20))
        except OSError:
            raise ConfigurationError(
                f"Workers cannot be listened for on {settings.worker_listen}: another program uses it, or the address "
                "is not this machine's. Choose another worker_listen."
            ) from None
    return servers


def administer(settings: Settings, command: admin.Command) -> admin.Answer:
    """Run a command in the running server, or here when the data folder's lock is free. Raises ConfigurationError."""
    answer = admin.ask(admin_path(settings), command)
    if answer is not None:
        return answer
    prepare_data_dir(settings.data_dir)
    with database.hold_lock(lock_path(settings), what=f"The data folder {settings.data_dir}"):
        return asyncio.run(_execute_here(settings, command))


async def _execute_here(settings: Settings, command: admin.Command) -> admin.Answer:
    async with open_store(settings) as store:
        keyring = Keyring(store, load_or_create(settings.data_dir).pepper)
        await keyring.load()
        return await admin.execute(command, store=store, keyring=keyring, now=time.time)


def restore(settings: Settings, source: Path) -> None:
    """Put a backup in the database's place; refuses while a server runs."""
    prepare_data_dir(settings.data_dir)
    with database.hold_lock(lock_path(settings), what=f"The data folder {settings.data_dir}"):
        database.restore(source, database_path(settings))


def models_here(settings: Settings) -> dict[str, Checkpoint]:
    """What draws each model under these settings."""
    chosen = plan(settings)
    return {name: chosen[name] for name in catalogue.MODELS}
