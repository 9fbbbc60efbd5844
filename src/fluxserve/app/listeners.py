"""What a server listens on: HTTP, workers, administration."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from fluxserve.api.admin import AdminSocket
from fluxserve.api.gate import Gate
from fluxserve.api.http_protocol import Limits, make_protocol
from fluxserve.api.workers import Gateway
from fluxserve.errors import ConfigurationError
from fluxserve.settings import Settings

#: Open connections get this long to end after the workers have drained.
CLOSE_S = 2.0


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers of its own: `server` decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_config(app: Gate, settings: Settings) -> uvicorn.Config:
    """uvicorn, with our protocol and without what we do ourselves. Proxies speak for many callers."""
    return uvicorn.Config(
        app,
        http=make_protocol(Limits(exempt=frozenset(settings.trusted_proxies))),
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


def local_url(settings: Settings, listener: socket.socket) -> str:
    """Where this machine itself reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - a comparison
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def open_sockets(
    settings: Settings, folder: Path, gateway: Gateway, administration: AdminSocket
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
