"""From a request's headers to a key, and from its addresses to an origin."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.types import Scope

from fluxserve.accounts.api_keys import ApiKey
from fluxserve.errors import MisdirectedHost, NotAuthenticated
from fluxserve.service.service import Service
from fluxserve.settings import Settings

MISSING = "Not authenticated"
WRONG = "Not authenticated - Invalid Authentication"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_SCHEMES = ("bearer ", "x-key ", "token ")
RawHeaders = Sequence[tuple[bytes, bytes]]


def presented_key(headers: RawHeaders) -> str | None:
    """The key a request carries: `X-Key: K`, or `Authorization: Bearer K`, `X-Key K`, `Token K` or bare `K`.

    Raises NotAuthenticated when two different keys are given.
    """
    found: set[str] = set()
    for name, value in headers:
        if name == b"x-key":
            found.add(value.decode("latin-1").strip())
        elif name == b"authorization":
            found.add(_without_scheme(value.decode("latin-1").strip()))
    found.discard("")
    if len(found) > 1:
        raise NotAuthenticated("Not authenticated - the request carries two different keys")
    return found.pop() if found else None


def _without_scheme(text: str) -> str:
    lowered = text.lower()
    scheme = next((scheme for scheme in _SCHEMES if lowered.startswith(scheme)), "")
    return text[len(scheme) :].strip()


def authenticate(scope: Scope, service: Service) -> ApiKey:
    """The key of a request; raises NotAuthenticated, and TooManyRequests where wrong keys never end."""
    text = presented_key(scope["headers"])
    if text is None:
        raise NotAuthenticated(MISSING)
    key = service.keyring.find(text)
    if key is None:
        if (address := _address(scope, service.settings)) is not None:
            service.keyring.count_wrong(address)
        raise NotAuthenticated(WRONG)
    return key


def is_admin(scope: Scope, service: Service) -> bool:
    """Whether a request carries the admin key. Raises TooManyRequests where wrong keys never end."""
    text, admin = presented_key(scope["headers"]), service.settings.admin_key
    if text is not None and admin is not None and hmac.compare_digest(text.encode(), admin.get_secret_value().encode()):
        return True
    if text is not None and (address := _address(scope, service.settings)) is not None:
        service.keyring.count_wrong(address)
    return False


def _address(scope: Scope, settings: Settings) -> str | None:
    """Whom a request comes from, as far as trusted proxies say; None on a unix socket."""
    client = scope.get("client")
    if client is None:
        return None
    return _forwarded(scope, b"x-forwarded-for", client[0]) if _is_from_proxy(scope, settings) else str(client[0])


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def origin(scope: Scope, settings: Settings) -> str:
    """Where links should lead: the configured public URL, or else the request's own scheme and host.

    A trusted proxy may say what the outside world sees. Raises MisdirectedHost for a malformed or unlisted host.
    """
    if settings.public_url is not None:
        return settings.public_url
    scheme, host = scope["scheme"], header(scope, b"host") or ""
    if _is_from_proxy(scope, settings):
        scheme = _forwarded(scope, b"x-forwarded-proto", scheme).lower()
        host = _forwarded(scope, b"x-forwarded-host", host)
    if not _HOST.fullmatch(host) or scheme not in ("http", "https"):
        raise MisdirectedHost("The Host header is not a host name.")
    return f"{scheme}://{host}"


def check_host(scope: Scope, settings: Settings) -> None:
    """Refuse a host that is not listed; an empty list allows any. Raises MisdirectedHost.

    What a trusted proxy forwards must be listed as well as the Host itself: a web page that rebinds its name to the
    proxy's own machine may set every header but Host.
    """
    if not settings.allowed_hosts:
        return
    hosts = [header(scope, b"host") or ""]
    if _is_from_proxy(scope, settings):
        hosts.append(_forwarded(scope, b"x-forwarded-host", hosts[0]))
    for text in hosts:
        host = _HOST.fullmatch(text)
        if host is None or host.group(1).lower() not in settings.allowed_hosts:
            raise MisdirectedHost("This server does not answer for that host name.")


def _is_from_proxy(scope: Scope, settings: Settings) -> bool:
    client = scope.get("client")
    return client is not None and client[0] in settings.trusted_proxies


def _forwarded(scope: Scope, name: bytes, otherwise: str) -> str:
    """What the outermost of the proxies saw."""
    return (header(scope, name) or otherwise).split(",")[0].strip()
