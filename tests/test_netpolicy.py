"""The net policy: what may be fetched, and proof that what may not was never connected to."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from firsttouch.errors import AddressRefused, FirsttouchError, SourceRefused, SourceTimeout, UnsupportedScheme
from firsttouch.netpolicy import Pinned, Policy, judge, judge_address

HOSTILE = [
    # schemes
    "file:///etc/passwd",
    "ftp://cdn.example.com/a.mp4",
    "gopher://cdn.example.com:70/_",
    "dict://127.0.0.1:11211/stat",
    "data:video/mp4;base64,AAAA",
    "javascript:alert(1)",
    "//cdn.example.com/a.mp4",
    "http:/127.0.0.1/a",
    "http:127.0.0.1",
    "concat:http://a.com/1|http://a.com/2",
    # loopback and private, plainly
    "http://127.0.0.1/a.mp4",
    "http://127.8.9.10/a.mp4",
    "http://localhost/a.mp4",
    "http://LOCALHOST./a.mp4",
    "http://a.localhost/a.mp4",
    "http://10.0.0.8/a.mp4",
    "http://172.16.4.4/a.mp4",
    "http://192.168.1.1/a.mp4",
    "http://100.64.0.1/a.mp4",
    "http://0.0.0.0/a.mp4",
    # metadata, multicast, reserved, documentation
    "http://169.254.169.254/latest/meta-data/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://224.0.0.1/a.mp4",
    "http://240.0.0.1/a.mp4",
    "http://255.255.255.255/a.mp4",
    "http://192.0.2.1/a.mp4",
    "http://198.18.0.1/a.mp4",
    # other spellings of 127.0.0.1
    "http://2130706433/a.mp4",
    "http://0x7f000001/a.mp4",
    "http://0x7f.0.0.1/a.mp4",
    "http://0177.0.0.1/a.mp4",
    "http://127.1/a.mp4",
    "http://127.0.1/a.mp4",
    "http://127.0.0.1./a.mp4",
    "http://017700000001/a.mp4",
    "http://127.0.0.0x1/a.mp4",
    "http://１２７.０.０.１/a.mp4",
    "http://127。0。0。1/a.mp4",
    "http://①②⑦.0.0.1/a.mp4",
    "http://%31%32%37.0.0.1/a.mp4",
    "http://ｌｏｃａｌｈｏｓｔ/a.mp4",
    # IPv6
    "http://[::1]/a.mp4",
    "http://[::]/a.mp4",
    "http://[0:0:0:0:0:0:0:1]/a.mp4",
    "http://[::ffff:127.0.0.1]/a.mp4",
    "http://[::ffff:7f00:1]/a.mp4",
    "http://[::127.0.0.1]/a.mp4",
    "http://[64:ff9b::7f00:1]/a.mp4",
    "http://[64:ff9b:1::7f00:1]/a.mp4",
    "http://[2002:7f00:1::]/a.mp4",
    "http://[2002:a9fe:a9fe::1]/a.mp4",
    "http://[2001:0:0:1::1]/a.mp4",
    "http://[fe80::1]/a.mp4",
    "http://[fe80::1%25eth0]/a.mp4",
    "http://[fc00::1]/a.mp4",
    "http://[ff02::1]/a.mp4",
    "http://[fec0::1]/a.mp4",
    "http://[::1/a.mp4",
    # who is the host here?
    "http://cdn.example.com@127.0.0.1/a.mp4",
    "http://user:password@cdn.example.com/a.mp4",
    "http://127.0.0.1\\@cdn.example.com/a.mp4",
    "http://127.0.0.1\t.example.com/a.mp4",
    "http://cdn.example.com\r\nHost: 127.0.0.1/a.mp4",
    "http:// 127.0.0.1/a.mp4",
    "http:///a.mp4",
    "http://?a.mp4",
    "http://-/a.mp4",
    "http://a..b/a.mp4",
    # ports
    "http://cdn.example.com:22/a.mp4",
    "http://cdn.example.com:6379/a.mp4",
    "http://cdn.example.com:0/a.mp4",
    "http://cdn.example.com:65536/a.mp4",
    "http://cdn.example.com:-80/a.mp4",
    "http://cdn.example.com:８０/a.mp4",
    "http://cdn.example.com:80:80/a.mp4",
    # too long, empty
    "http://cdn.example.com/" + "a" * 5000,
    "",
]


@pytest.fixture
def network() -> Iterator[list[tuple[str, object]]]:
    """Every connect and every resolver call of the Python process, while the test runs."""
    seen: list[tuple[str, object]] = []
    listening = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if listening and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            seen.append((event, args))

    sys.addaudithook(hook)
    yield seen
    listening = False


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_url_is_refused_before_anything_is_resolved(url: str, network: list[object]) -> None:
    with pytest.raises((AddressRefused, UnsupportedScheme)):
        asyncio.run(Policy().judge(url))
    assert not [event for event in network if event[0] != "socket.connect"]  # type: ignore[index]
    assert not network


def test_there_are_at_least_forty_hostile_urls() -> None:
    assert len(set(HOSTILE)) >= 40


def test_the_recorder_sees_a_real_connection(network: list[object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()[:2]):
        assert network


def _resolving_to(*addresses: str) -> Policy:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return Policy(resolve=resolve)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "fe80::1%eth0",
        "2002:c0a8:101::1",
    ],
)
def test_a_public_name_that_resolves_inside_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(_resolving_to(address).judge("https://cdn.example.com/a.mp4"))


def test_one_inside_address_among_public_ones_refuses_the_name() -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(_resolving_to("93.184.216.34", "10.0.0.1").judge("https://cdn.example.com/a.mp4"))


def test_what_was_judged_is_what_is_pinned() -> None:
    pinned = asyncio.run(
        _resolving_to("93.184.216.34", "2606:2800:220:1::1").judge(
            "https://CDN.example.com./a b.mp4".replace(" ", "%20")
        )
    )
    assert pinned == Pinned(
        "https://cdn.example.com/a%20b.mp4", "cdn.example.com", 443, ("93.184.216.34", "2606:2800:220:1::1")
    )
    assert pinned.curl_resolve == "cdn.example.com:443:93.184.216.34,[2606:2800:220:1::1]"


def test_a_signed_url_keeps_its_query() -> None:
    url = "https://cdn.example.com/a.mp4?X-Sig=a%2Fb%3D&t=1"
    assert judge(url).url == url


def test_an_international_name_is_asked_for_in_ascii() -> None:
    # The A-label of "bücher" is the example of RFC 3492's readers everywhere.
    assert judge("https://bücher.example.com/ä.mp4").url == "https://xn--bcher-kva.example.com/%C3%A4.mp4"


@pytest.mark.parametrize(
    "url",
    ["http://[64:ff9b::5db8:d822]/a", "http://[2002:5db8:d822::1]/a", "http://[::ffff:93.184.216.34]/a"],
)
def test_a_public_address_inside_another_is_public(url: str) -> None:
    assert judge(url).address is not None


def test_private_origins_are_for_tests_and_closed_networks() -> None:
    for url in (
        "http://127.0.0.1:4321/a",
        "http://[::1]:4321/a",
        "http://origin:4321/a",
        "http://10.0.0.1/a",
        "http://[fc00::1]/a",
    ):
        assert judge(url, allow_private=True)
    for url in (
        "http://169.254.169.254/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://[fe80::1]/",
        "http://2130706433/",
        "file:///a",
    ):
        with pytest.raises(FirsttouchError):
            judge(url, allow_private=True)


def test_the_allow_list_admits_hosts_domains_and_ports_only() -> None:
    hosts = ("cdn.example.com", ".clips.example.org", "big.example.net:9000")
    for url in (
        "https://cdn.example.com/a",
        "https://x.clips.example.org/a",
        "https://clips.example.org/a",
        "http://big.example.net:9000/a",
    ):
        assert judge(url, allowed_hosts=hosts)
    for url in (
        "https://example.com/a",
        "https://evilclips.example.org/a",
        "https://cdn.example.com.evil.com/a",
        "http://cdn.example.com:9000/a",
    ):
        with pytest.raises(AddressRefused):
            judge(url, allowed_hosts=hosts)


def test_an_allow_list_does_not_open_private_addresses() -> None:
    with pytest.raises(AddressRefused):
        judge("http://127.0.0.1/a", allowed_hosts=("127.0.0.1",))


def test_a_resolver_that_fails_or_hangs_is_a_typed_error() -> None:
    async def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    async def hangs(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(SourceRefused):
        asyncio.run(Policy(resolve=fails).judge("https://cdn.example.com/a"))
    with pytest.raises(SourceTimeout):
        asyncio.run(Policy(resolve=hangs, resolve_timeout_seconds=0.01).judge("https://cdn.example.com/a"))


def test_every_special_block_of_the_registries_is_refused() -> None:
    """Python's own table is the second judge: what it calls not global must not pass here."""
    import ipaddress
    import random

    draw = random.Random(4)
    for _ in range(20_000):
        v4 = ipaddress.IPv4Address(draw.getrandbits(32))
        v6 = ipaddress.IPv6Address(draw.getrandbits(128) >> draw.choice([0, 32, 64, 96]))
        for address in (v4, v6):
            if (
                address.is_private
                or address.is_multicast
                or address.is_reserved
                or address.is_link_local
                or address.is_loopback
            ):
                with pytest.raises(AddressRefused):
                    judge_address(address)


class _Counting:
    """A listener on loopback that counts the connections it accepts."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.server.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            self.accepted += 1
            connection.close()


def test_the_real_source_opens_no_connection_to_what_is_refused() -> None:
    """Through libcurl, where no Python hook looks: a listener at the very place each spelling points to."""
    source = pytest.importorskip("firsttouch.source")
    from firsttouch.clock import Deadline

    counting = _Counting()
    policy = Policy(ports=(counting.port,))
    spellings = [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "localhost",
        "１２７.０.０.１",
        "a.com@127.0.0.1",
    ]

    async def attempt(url: str, policy: Policy) -> None:
        opened = source.open_source(url, policy=policy)
        try:
            await opened.open(deadline=Deadline.after(2.0))
        finally:
            await opened.close()

    for spelling in spellings:
        with pytest.raises((AddressRefused, UnsupportedScheme)):
            asyncio.run(attempt(f"http://{spelling}:{counting.port}/a.mp4", policy))
    assert counting.accepted == 0
    with pytest.raises(FirsttouchError):  # the control: the same listener, allowed, is connected to
        asyncio.run(attempt(f"http://127.0.0.1:{counting.port}/a.mp4", Policy(allow_private=True)))
    assert counting.accepted >= 1
    counting.server.close()
