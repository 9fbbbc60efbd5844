"""`GET /metrics`, for whoever runs the server: from the machine itself, or with the admin key.

What it does not know: what is counted (`fluxserve.metrics`), what a task is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

from starlette.types import Scope, Send

from fluxserve.api import auth
from fluxserve.api.about import Readiness
from fluxserve.api.responses import send_bytes
from fluxserve.errors import MethodNotAllowed, NotAuthenticated
from fluxserve.metrics import CONTENT_TYPE, Reading
from fluxserve.service.service import Service

PATH = "/metrics"
_CLOSED = "Not authenticated - metrics are told on the machine itself, or to the admin_key of the settings"
#: Who asks through a proxy is not on this machine, wherever the proxy is.
_OF_PROXIES = frozenset({b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip"})


class Exposition:
    """Answers in the text format of Prometheus."""

    def __init__(self, service: Service, readiness: Callable[[], Readiness]) -> None:
        self._service = service
        self._readiness = readiness
        service.metrics.read_from(self._workers)

    async def __call__(self, scope: Scope, send: Send) -> None:
        """One scrape. Raises NotAuthenticated, TooManyRequests and MethodNotAllowed."""
        if not _is_local(scope) and not auth.is_admin(scope, self._service):
            raise NotAuthenticated(_CLOSED)
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Metrics are read with GET.")
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-store")]
        await send_bytes(send, 200, self._service.metrics.text(), headers)

    def _workers(self) -> Iterator[Reading]:
        state = self._readiness()
        yield Reading(name="fluxserve_ready", help="Whether a picture asked for now is drawn.", value=state.ready)
        yield Reading(name="fluxserve_workers", help="Workers that are connected and warm.", value=state.workers)
        yield Reading(
            name="fluxserve_checkpoints_left_out", help="Weights that could not be loaded.", value=len(state.left_out)
        )


def _is_local(scope: Scope) -> bool:
    """From this machine, by a name of this machine: a page whose name leads here is from elsewhere."""
    client, host = scope.get("client"), auth.header(scope, b"host") or ""
    if client is None or any(name in _OF_PROXIES for name, _ in scope["headers"]):
        return False
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return _is_loopback(str(client[0])) and (name.lower() == "localhost" or _is_loopback(name))


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
