"""The outbound client: hostile URLs reach nobody, and what it may call it calls as it should (target S1)."""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme

from builders import in_event_loop
from fluxserve.delivery import outbound
from fluxserve.delivery.addresses import Address, Allowance
from fluxserve.delivery.outbound import Call, objection, target_of
from fluxserve.errors import OutboundError, OutboundFailed, UrlRefused
from receivers import (
    OK,
    PUBLIC,
    Behave,
    Network,
    Seen,
    answer_ok,
    drips,
    never_answers,
    receiving,
    resets,
    says,
    server_tls,
    status,
)

#: Names that lead inside, and some that lead outside as well.
ZONE = {
    "public.test": [PUBLIC],
    "loopback.test": ["127.0.0.1"],
    "private.test": ["10.0.0.5"],
    "mixed.test": [PUBLIC, "127.0.0.1"],
    "mixed6.test": [PUBLIC, "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "sixtofour.test": ["2002:7f00:1::"],
    "teredo.test": ["2001:0:7f00:1::"],
    "cgnat.test": ["100.100.100.200"],
    "metadata.google.internal": ["169.254.169.254"],
    "site.test": ["fec0::1"],
    "zero.test": ["0.0.0.0"],
    "localhost": ["127.0.0.1", "::1"],
    "nothing.test": [],
}
#: A line each; what holds spaces or more stands below.
HOSTILE = [
    *(Path(__file__).with_name("hostile_urls.txt").read_text("utf-8").split()),
    "",
    "http://",
    "http://public.test/\r\nHost: 127.0.0.1",
    "http://public.test/ HTTP/1.1\r\n\r\n",
    "http://public.test\t/",
    " http://public.test/",
    "http://pub lic.test/",
    "http://public.test/" + "a" * 3000,
    "http://[::1",
    "http://[public.test]/",
]
#: The only ones that reach anybody: a fragment is no authority.
HARMLESS = {"http://public.test#@127.0.0.1/x"}


def get(url: str, **fields: object) -> Call:
    """A call that would take anything."""
    return Call(**({"method": "GET", "url": url, "limit": 4096, "timeout": 10.0, "redirects": 3} | fields))  # type: ignore[arg-type]


@in_event_loop
async def test_no_hostile_url_reaches_anybody() -> None:
    assert len(HOSTILE) >= 31
    async with receiving() as secret:
        network = Network(secret.port, ZONE)
        client = network.client()
        reached = []
        for url in HOSTILE:
            try:
                answer = await client.call(get(url))
            except OutboundError:
                continue
            reached.append(url)
            assert answer.status == 200
        assert set(reached) == HARMLESS
        assert (secret.connections, set(network.dialled)) == (len(HARMLESS), {PUBLIC})
        assert (await client.call(get("http://public.test/"))).body == b"ok"  # the trap itself works


@in_event_loop
async def test_a_thousand_names_that_change_while_they_are_used_lead_nowhere_inside() -> None:
    rng = random.Random(11)
    inside = ["127.0.0.1", "::1", "10.0.0.5", "169.254.169.254", "::ffff:10.0.0.5", "64:ff9b::a00:5"]
    answers = [[PUBLIC], [rng.choice(inside)], [PUBLIC, rng.choice(inside)], [rng.choice(inside), PUBLIC]]

    class Rebinding(Network):
        async def resolve(self, host: str, _port: int) -> Sequence[Address]:
            self.asked.append(host)
            return [ipaddress.ip_address(text) for text in rng.choice(answers)]

    async with receiving() as outside, receiving(says(b"HTTP/1.1 200 OK\r\n\r\nsecret")) as secret:
        network = Rebinding(secret.port, routes={PUBLIC: outside.port})
        client, reached, said = network.client(), 0, set()
        for number in range(1000):
            try:
                answer = await client.call(get(f"http://rebind{number}.test/"))
            except OutboundFailed as error:
                said.add(error.message)
            else:
                reached += 1
                assert answer.body == b"ok"
        assert said == {"The address cannot be reached"}
        assert secret.connections == 0
        assert set(network.dialled) == {PUBLIC}
        # Looked up once each: there is no second answer that could have been another.
        assert len(network.asked) == 1000
        assert outside.connections == reached > 100


REDIRECTS = {
    "to metadata": "http://169.254.169.254/latest/meta-data/",
    "to a name inside": "http://loopback.test/",
    "to another port": "http://public.test:6379/",
    "to a file": "file:///etc/passwd",
    "without a place": "",
    "to a number": "http://2130706433/",
    "relative to another host": "//127.0.0.1/",
}


@pytest.mark.parametrize("place", REDIRECTS)
@in_event_loop
async def test_each_redirect_is_checked_anew(place: str) -> None:
    target = REDIRECTS[place]
    async with receiving(status(302, location=target) if target else status(302)) as outside, receiving() as secret:
        network = Network(secret.port, ZONE, routes={PUBLIC: outside.port})
        with pytest.raises(OutboundError):
            await network.client().call(get("http://public.test/"))
        assert secret.connections == 0
        assert set(network.dialled) == {PUBLIC}


@in_event_loop
async def test_redirects_are_followed_three_times_and_not_four() -> None:
    hops = {"/0": "/1", "/1": "http://other.test/2", "/2": "/3", "/3": "/4"}

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        place = hops.get(seen.path)
        writer.write(f"HTTP/1.1 302 X\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode() if place else OK)

    async with receiving(behave) as receiver:
        network = Network(receiver.port, {"public.test": [PUBLIC], "other.test": [PUBLIC]})
        assert (await network.client().call(get("http://public.test/1"))).body == b"ok"
        assert [seen.headers["host"] for seen in receiver.seen] == ["public.test"] + ["other.test"] * 3
        with pytest.raises(OutboundFailed, match="too often"):
            await network.client().call(get("http://public.test/0"))


@in_event_loop
async def test_a_call_that_follows_none_answers_the_redirect_itself() -> None:
    async with receiving(status(302, location="http://public.test/elsewhere")) as receiver:
        network = Network(receiver.port, ZONE)
        assert (await network.client().call(get("http://public.test/", redirects=0))).status == 302
        assert receiver.connections == 1


@in_event_loop
async def test_tls_asks_for_the_name_and_believes_only_its_certificate() -> None:
    authority, impostor = trustme.CA(), trustme.CA()
    zone = {"hooks.test": [PUBLIC], "other.test": [PUBLIC]}
    async with receiving(tls=server_tls(authority, "hooks.test")) as receiver:
        client = Network(receiver.port, zone).client(trust=authority)
        assert (await client.call(get("https://hooks.test/", secure=True))).body == b"ok"
        assert receiver.names == ["hooks.test"]
        assert receiver.seen[0].headers["host"] == "hooks.test"
        for url, trusted in (("https://other.test/", authority), ("https://hooks.test/", impostor)):
            with pytest.raises(OutboundFailed) as refused:
                await Network(receiver.port, zone).client(trust=trusted).call(get(url))
            assert refused.value.kind == "tls"
        assert len(receiver.seen) == 1


@in_event_loop
async def test_a_secure_address_does_not_redirect_to_an_open_one() -> None:
    authority = trustme.CA()
    tls = server_tls(authority, "hooks.test")
    async with receiving(status(302, location="http://public.test/"), tls) as receiver:
        network = Network(receiver.port, {**ZONE, "hooks.test": [PUBLIC]})
        with pytest.raises(UrlRefused, match="redirects"):
            await network.client(trust=authority).call(get("https://hooks.test/"))
        assert receiver.connections == 1


@in_event_loop
async def test_what_must_be_secure_is_called_by_tls_alone() -> None:
    async with receiving() as receiver:
        network = Network(receiver.port, ZONE)
        with pytest.raises(OutboundFailed):
            await network.client().call(get("http://public.test/", secure=True))
        assert receiver.connections == 0


@pytest.mark.parametrize("allowed", ["private.test", "10.0.0.0/8", "10.0.0.5"])
@in_event_loop
async def test_what_the_operator_allows_is_called_by_plain_http_and_on_any_port(allowed: str) -> None:
    async with receiving() as receiver:
        network = Network(receiver.port, ZONE)
        client = network.client(allowed)
        assert (await client.call(get("http://private.test:8123/x?y=1", secure=True))).body == b"ok"
        assert receiver.seen[0].headers["host"] == "private.test:8123"
        assert receiver.seen[0].path == "/x?y=1"
        with pytest.raises(OutboundFailed):
            await client.call(get("http://loopback.test/"))
        assert receiver.connections == 1


@in_event_loop
async def test_an_address_of_this_machine_is_not_dialled_even_where_it_is_public() -> None:
    async with receiving() as receiver:
        network = Network(receiver.port, ZONE)
        client = outbound.Outbound(
            allowance=Allowance(), tls=outbound.tls_context(), resolves=network.resolve, dials=network.dial,
            is_own=lambda address: str(address) == PUBLIC,
        )  # fmt: skip
        with pytest.raises(OutboundFailed, match="cannot be reached"):
            await client.call(get("http://public.test/"))
        assert receiver.connections == 0
    assert outbound.is_own(ipaddress.ip_address("127.0.0.1"))
    assert not outbound.is_own(ipaddress.ip_address("192.0.2.1"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://0.0.0.0:{port}/"])
@in_event_loop
async def test_the_client_on_the_real_network_reaches_nobody_here_but_whom_it_may(url: str) -> None:
    async with receiving() as receiver:
        strict, lenient = (
            outbound.open_outbound((), "test"),
            outbound.open_outbound(("127.0.0.0/8", "::/64", "0.0.0.0"), "test"),
        )
        with pytest.raises(OutboundError):
            await strict.call(get(url.format(port=receiver.port)))
        assert receiver.connections == 0
        assert (await lenient.call(get(url.format(port=receiver.port)))).body == b"ok"
        assert receiver.seen[0].headers["user-agent"] == "test"


@in_event_loop
async def test_no_proxy_of_the_environment_is_used() -> None:
    async with receiving() as receiver, receiving() as proxy:
        patch = pytest.MonkeyPatch()
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        try:
            client = outbound.open_outbound(("127.0.0.0/8",), "test")
            await client.call(get(f"http://127.0.0.1:{receiver.port}/"))
        finally:
            patch.undo()
        assert (receiver.connections, proxy.connections) == (1, 0)


@in_event_loop
async def test_of_a_huge_answer_no_more_is_read_than_allowed() -> None:
    handed_over = 0

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        nonlocal handed_over
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        for _ in range(1526):
            writer.write(b"x" * 2**16)
            await writer.drain()
            handed_over += 2**16

    async with receiving(behave) as receiver:
        client = Network(receiver.port, ZONE).client()
        answer = await client.call(get("http://public.test/"))
        assert (answer.status, len(answer.body)) == (200, 4096)
        with pytest.raises(OutboundFailed) as refused:
            await client.call(get("http://public.test/", whole=True))
        assert refused.value.kind == "too_large"
        await asyncio.gather(*receiver.serving)
    assert handed_over < 50_000_000  # what the system's own buffers took


@pytest.mark.parametrize("behave", [never_answers, drips])
@in_event_loop
async def test_a_slow_answer_ends_at_the_deadline_however_it_is_slow(behave: Behave) -> None:
    async with receiving(behave) as receiver:
        client = Network(receiver.port, ZONE).client()
        with pytest.raises(OutboundFailed) as refused:
            await client.call(get("http://public.test/", timeout=0.2, limit=10**9))
        assert refused.value.kind == "timeout"


@in_event_loop
async def test_a_name_server_that_never_answers_ends_the_call_too() -> None:
    class Silent(Network):
        async def resolve(self, _host: str, _port: int) -> Sequence[Address]:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(OutboundFailed) as refused:
        await Silent(1).client().call(get("http://public.test/", timeout=0.2))
    assert refused.value.kind == "timeout"


@pytest.mark.parametrize(
    "behave",
    [
        resets,
        says(b"SSH-2.0-OpenSSH_9.6\r\n"),
        says(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"),
        says(b"HTTP/1.1 200 OK\r\n" + b"x-long: " + b"a" * 500_000 + b"\r\n\r\n"),
        says(b""),
    ],
    ids=["resets", "ssh", "short", "headers", "nothing"],
)
@in_event_loop
async def test_what_is_no_whole_answer_is_none(behave: Behave) -> None:
    async with receiving(behave) as receiver:
        with pytest.raises(OutboundFailed) as refused:
            await Network(receiver.port, ZONE).client().call(get("http://public.test/"))
        assert refused.value.kind == "no_answer"


@in_event_loop
async def test_open_and_closed_ports_inside_look_the_same() -> None:
    async with receiving(answer_ok) as receiver:
        client = Network(receiver.port, ZONE).client()
        said = set()
        for host in ("loopback.test", "private.test", "unknown.test", "nothing.test"):
            with pytest.raises(OutboundFailed) as refused:
                await client.call(get(f"http://{host}/"))
            said.add((refused.value.kind, refused.value.message))
        assert len(said) == 1
        assert receiver.connections == 0


@in_event_loop
async def test_another_address_of_a_name_is_tried_where_one_is_down() -> None:
    async with receiving() as receiver:
        network = Network(receiver.port, {"two.test": ["93.184.215.13", PUBLIC]}, routes={"93.184.215.13": 1})
        assert (await network.client().call(get("http://two.test/"))).body == b"ok"
        assert network.dialled == ["93.184.215.13", PUBLIC]


@pytest.mark.parametrize(
    ("url", "allowed", "said"),
    [
        ("https://hooks.test/x", (), None),
        ("http://hooks.test/x", (), "https://"),
        ("https://hooks.test:8443/", (), "port"),
        ("https://10.1.2.3/", (), "not public"),
        ("http://10.1.2.3:8080/", ("10.1.0.0/16",), None),
        ("http://hooks.lan:8080/", ("hooks.lan",), None),
        ("http://hooks.lan:8080/", ("10.1.0.0/16",), None),
        ("http://hooks.test/", ("hooks.lan",), "https://"),
    ],
)
def test_what_can_never_be_called_is_known_before_a_name_is_resolved(
    url: str, allowed: tuple[str, ...], said: str | None
) -> None:
    found = objection(target_of(url), Allowance.parse(allowed), secure=True)
    assert found is None if said is None else said in (found or "")


@in_event_loop
async def test_hosts_of_the_operators_own_are_allowed_to_one_client_and_to_no_other() -> None:
    async with receiving() as receiver:
        network = Network(receiver.port, {"judge.lan": ["10.0.0.9"]})
        callers = network.client()
        own = callers.allowing(["judge.lan", "127.0.0.1"])
        for url in ("http://judge.lan:8000/x", "http://127.0.0.1:9/y"):
            call = Call(method="GET", url=url, limit=10, timeout=5.0)
            assert (await own.call(call)).status == 200
            with pytest.raises(OutboundError):
                await callers.call(call)
    assert network.dialled == ["10.0.0.9", "127.0.0.1"]
