"""The one HTTP client for addresses that callers chose.

A host is resolved once, every one of its addresses is checked, and the checked address is dialled, so no second look
at a changing name counts; TLS still asks for the name. Redirects are followed by the same rules, where a call allows
any. No environment variable and no proxy changes where a call goes; it ends at its deadline, whatever is slow, and
reads no more than it may. Whatever keeps it from a connection is told in the same words.
What it does not know: webhooks, pictures.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from urllib.parse import urljoin

import certifi
import httpcore

from fluxserve.delivery.addresses import Address, Allowance, is_name, is_public, literal
from fluxserve.errors import OutboundFailed, UrlRefused

#: A name server that never answers holds a thread for so long as the system's resolver is patient; there have to be
#: more than one account may have under way.
_RESOLVERS: Final = 512
#: Of many addresses, so many are tried.
_MOST_ADDRESSES: Final = 4
CONNECT_S: Final = 5.0
_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Printable ASCII that may stand in a URL; the fragment stays here.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>[/?][!$-;=?-Z\[\]_a-z~]*)?(?:#[!-~]*)?",
    re.IGNORECASE,
)
MAX_URL: Final = 2083
Headers = Sequence[tuple[bytes, bytes]]
Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
Dial = Callable[[Address, int], Awaitable[httpcore.AsyncNetworkStream]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a URL leads to. `host` in lower case, an IPv6 address in brackets; `path` with its query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole, as it was read."""
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. `secure`: by TLS only, but to what the operator allows. At most `limit` bytes of the answer's body

    are read; where there are more, the call fails if it wants it `whole`. All of it ends within `timeout` seconds.
    """

    method: str
    url: str
    limit: int
    timeout: float
    headers: Headers = ()
    body: bytes = b""
    secure: bool = False
    whole: bool = False
    redirects: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; names of `headers` in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def target_of(url: str) -> Target:
    """Read a URL; the one reading that is checked is also the one that is dialled. Raises UrlRefused."""
    found = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if found is None:
        raise UrlRefused("This is no http or https URL of plain ASCII with a host, and without a user or password")
    host = found["host"].lower().removesuffix(".")
    if literal(host) is None and not is_name(host):
        raise UrlRefused("This URL's host is neither a name nor a plain address")
    scheme = found["scheme"].lower()
    port = int(found["port"] or _PORTS[scheme])
    if not 0 < port < 2**16:
        raise UrlRefused("This URL's port is none")
    rest = found["rest"] or "/"
    return Target(scheme=scheme, host=host, port=port, path=rest if rest.startswith("/") else f"/{rest}")


def objection(target: Target, allowance: Allowance, *, secure: bool) -> str | None:
    """What is wrong with a target as it stands, before any name is resolved; None: it may be called."""
    address = literal(target.host)
    if allowance.names(target.host) or (address is not None and allowance.holds(address)):
        return None
    if address is not None and not is_public(address):
        return "This URL leads to an address that is not public"
    if allowance.networks and address is None:
        return None  # where the name leads decides
    return _unusual(target, secure=secure)


def fault_of(url: str, allowance: Allowance, *, secure: bool) -> str | None:
    """Why a URL as it stands is never called; None: it may be."""
    try:
        return objection(target_of(url), allowance, secure=secure)
    except UrlRefused as error:
        return error.message


def _unusual(target: Target, *, secure: bool) -> str | None:
    if secure and target.scheme != "https":
        return "This URL has to begin with https://"
    if target.port not in _PORTS.values():
        return "This URL's port has to be 443 or 80"
    return None


async def resolve(host: str, port: int, *, threads: ThreadPoolExecutor) -> Sequence[Address]:
    """Every address of a name, as the system has them; raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(threads, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    return [ipaddress.ip_address(entry[4][0]) for entry in found]


async def dial(address: Address, port: int) -> httpcore.AsyncNetworkStream:
    """A connection to exactly this address."""
    return await httpcore.AnyIOBackend().connect_tcp(str(address), port, timeout=CONNECT_S)


def is_own(address: Address) -> bool:
    """Whether the address is this machine's: what answers there may trust its neighbours. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:  # no way leads there
        return False


def tls_context() -> ssl.SSLContext:
    """Trusts the public authorities and those of this machine."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context


@dataclass(slots=True)
class _Pinned(httpcore.AsyncNetworkBackend):
    """Dials addresses that were checked, whatever name it is asked for."""

    addresses: Sequence[Address]
    dial: Dial
    is_connected: bool = False

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - its addresses are known
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the call has one of its own
        local_address: str | None = None,  # noqa: ARG002 - any
        socket_options: object = None,  # noqa: ARG002 - none
    ) -> httpcore.AsyncNetworkStream:
        for address in self.addresses[:_MOST_ADDRESSES]:
            try:
                stream = await self.dial(address, port)
            except (OSError, httpcore.NetworkError, httpcore.TimeoutException):
                continue
            self.is_connected = True
            return stream
        raise httpcore.ConnectError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """Calls what callers name. `dials`, `resolves` and `is_own` are the network, and others in tests."""

    allowance: Allowance
    tls: ssl.SSLContext
    resolves: Resolve
    dials: Dial = dial
    is_own: Callable[[Address], bool] = is_own
    agent: bytes = b"fluxserve"
    _common: Headers = field(default=((b"accept", b"*/*"), (b"accept-encoding", b"identity")))

    def allowing(self, hosts: Sequence[str]) -> Outbound:
        """The same client for addresses that the operator chose, at these hosts too. Raises ConfigurationError."""
        more = Allowance.parse(hosts)
        allowance = Allowance(
            hosts=self.allowance.hosts | more.hosts, networks=(*self.allowance.networks, *more.networks)
        )
        return replace(self, allowance=allowance)

    async def call(self, call: Call) -> Answer:
        """One call to its end. Raises UrlRefused and OutboundFailed."""
        try:
            async with asyncio.timeout(call.timeout):
                return await self._follow(call)
        except TimeoutError:
            raise OutboundFailed("timeout", "No whole answer came in time") from None

    async def _follow(self, call: Call) -> Answer:
        target = target_of(call.url)
        for _ in range(call.redirects + 1):
            answer = await self._call_once(call, target)
            if not call.redirects or answer.status not in _REDIRECTS:
                return answer
            further = target_of(urljoin(target.url, answer.headers.get("location", "")))
            if target.scheme == "https" and further.scheme != "https":
                raise UrlRefused("A secure address redirects to one that is not")
            target, call = further, replace(call, method="GET", body=b"")
        raise OutboundFailed("redirects", "The address redirects too often")

    async def _call_once(self, call: Call, target: Target) -> Answer:
        network = _Pinned(await self._addresses(target, secure=call.secure), self.dials)
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.strip("[]").encode(), port=target.port,
            target=target.path.encode(),
        )  # fmt: skip
        try:
            async with httpcore.AsyncHTTPConnection(
                origin=url.origin, ssl_context=self.tls, network_backend=network
            ) as connection:
                headers = [(b"host", target.authority.encode()), (b"user-agent", self.agent), *self._common]
                length = [(b"content-length", b"%d" % len(call.body))] if call.body or call.method == "POST" else []
                request = httpcore.Request(
                    call.method.encode(),
                    url,
                    headers=[*headers, *length, (b"connection", b"close"), *call.headers],
                    content=call.body,
                )
                response = await connection.handle_async_request(request)
                try:
                    return await self._read(response, call)
                finally:
                    await response.aclose()
        except httpcore.ConnectError:
            raise (_tls_failed() if network.is_connected else _unreachable()) from None
        except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException, OSError, ValueError):
            raise OutboundFailed("no_answer", "The connection brought no whole HTTP answer") from None

    async def _addresses(self, target: Target, *, secure: bool) -> Sequence[Address]:
        """Those of the target, if each of them may be dialled; what is wrong with one of them is never told."""
        address = literal(target.host)
        try:
            async with asyncio.timeout(CONNECT_S):
                found = [address] if address is not None else await self.resolves(target.host, target.port)
        except (OSError, ValueError):  # a timeout is an OSError, too; some names cannot be encoded
            found = []
        found = list(dict.fromkeys(found))
        if not found or not all(self._may_dial(target, one, secure=secure) for one in found):
            raise _unreachable()
        return found

    def _may_dial(self, target: Target, address: Address, *, secure: bool) -> bool:
        if self.allowance.names(target.host) or self.allowance.holds(address):
            return True
        return is_public(address) and not self.is_own(address) and _unusual(target, secure=secure) is None

    @staticmethod
    async def _read(response: httpcore.Response, call: Call) -> Answer:
        body = bytearray()
        named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status not in _REDIRECTS or not call.redirects:
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > call.limit:
                    if call.whole:
                        raise OutboundFailed("too_large", f"The answer has more than {call.limit} bytes")
                    break
                if len(body) == call.limit and not call.whole:
                    break
        return Answer(status=response.status, headers=named, body=bytes(body[: call.limit]))


def open_outbound(allowed: Sequence[str], agent: str) -> Outbound:
    """The client on the real network. Raises ConfigurationError."""
    threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="fluxserve-resolver")
    return Outbound(
        allowance=Allowance.parse(allowed),
        tls=tls_context(),
        resolves=partial(resolve, threads=threads),
        agent=agent.encode(),
    )


def _unreachable() -> OutboundFailed:
    return OutboundFailed("unreachable", "The address cannot be reached")


def _tls_failed() -> OutboundFailed:
    return OutboundFailed("tls", "The address has no certificate that can be trusted")
