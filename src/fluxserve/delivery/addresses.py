"""Which addresses may be dialled for a caller: public unicast ones, and what the operator allows.

Networks that reach this machine, its neighbours or its cloud are never public, however an address spells them: what
carries an IPv4 address inside an IPv6 one is refused as a whole.
What it does not know: names, sockets, HTTP.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.errors import ConfigurationError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Labels of letters, digits, hyphens and underscores, with dots between.
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
#: What resolvers take for the end of an IPv4 address: decimal, octal or hexadecimal.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT; metadata of one cloud
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's own agent on every machine of it
            "169.254.0.0/16",  # link-local; metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks of networks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
#: All of IPv6 that is handed out as global unicast. Outside lie ::, ::1, ::/96, ::ffff:0:0/96, 64:ff9b::/96 and
#: 64:ff9b:1::/48 (NAT64), 100::/64, fc00::/7, fe80::/10, fec0::/10 and ff00::/8.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # Teredo and other protocols
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)


def is_public(address: Address) -> bool:
    """Whether anybody on the internet may own the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def literal(host: str) -> Address | None:
    """The address that a URL's host is, if it is one; only the plain spelling counts."""
    try:
        return ipaddress.IPv6Address(host[1:-1]) if host.startswith("[") else ipaddress.IPv4Address(host)
    except ValueError:
        return None


def is_name(host: str) -> bool:
    """Whether a host is a name, and nothing that a resolver would read as a number."""
    return _NAME.fullmatch(host) is not None and _NUMBER.fullmatch(host.rpartition(".")[2]) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Hosts and networks of the operator's own that callers may name, by plain HTTP and on any port too."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> Allowance:
        """From the setting `outbound_allow`. Raises ConfigurationError."""
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if not is_name(entry.lower()):
                    raise ConfigurationError(
                        f"outbound_allow: {entry!r} is neither a host name nor a network such as 10.1.0.0/16."
                    ) from None
                hosts.add(entry.lower())
        return cls(hosts=frozenset(hosts), networks=tuple(networks))

    def names(self, host: str) -> bool:
        """Whether the host is allowed, wherever it leads."""
        return host in self.hosts

    def holds(self, address: Address) -> bool:
        """Whether the address lies in a network that is allowed."""
        return any(address.version == network.version and address in network for network in self.networks)
