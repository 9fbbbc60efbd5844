"""Which addresses are public, and what an operator allows."""

from __future__ import annotations

import ipaddress
import random

import pytest

from fluxserve.delivery.addresses import Allowance, is_name, is_public
from fluxserve.errors import ConfigurationError

FORBIDDEN = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.1.2.3",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:93.184.215.14",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:5db8:d70e::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "100.63.255.255",
    "172.32.0.1",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "2a00::1",
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_no_address_of_ours_our_neighbours_or_our_cloud_is_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_that_anybody_may_own_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def test_nothing_counts_as_public_that_the_standard_library_does_not() -> None:
    rng = random.Random(7)
    for _ in range(20_000):
        for address in (ipaddress.IPv4Address(rng.getrandbits(32)), ipaddress.IPv6Address(rng.getrandbits(128))):
            assert address.is_global or not is_public(address), address
            assert not address.is_multicast or not is_public(address), address


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f.1", "0x7f000001", "127.1", "017700000001", "a.0x7f", "", "-a", "a..b", "x" * 254]
)
def test_a_host_that_a_resolver_might_read_as_a_number_is_no_name(host: str) -> None:
    assert not is_name(host)


def test_an_operator_allows_hosts_networks_and_single_addresses() -> None:
    allowance = Allowance.parse(("Hooks.lan", "10.1.0.0/16", "192.168.7.7", "fd00::/8"))
    assert allowance.names("hooks.lan")
    assert not allowance.names("other.lan")
    held = {text for text in ("10.1.2.3", "10.2.0.1", "192.168.7.7", "192.168.7.8", "fd00::1", "::1")
            if allowance.holds(ipaddress.ip_address(text))}  # fmt: skip
    assert held == {"10.1.2.3", "192.168.7.7", "fd00::1"}


@pytest.mark.parametrize("entry", ["10.1.2.3/16", "http://hooks.lan", "hooks.lan:8080", "*", "*.lan", "10.1"])
def test_what_is_neither_a_host_nor_a_network_stops_the_start(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="neither a host name nor a network"):
        Allowance.parse((entry,))
