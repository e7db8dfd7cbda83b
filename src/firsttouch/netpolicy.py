"""What may be fetched: a URL judged by its form, then by every address its name resolves to.

The judgement is pure; `Policy` adds the resolver. Its answer, `Pinned`, holds the normalised URL and the very
addresses that were judged, so that whoever connects never asks the resolver a second time (DNS rebinding) and
never parses the caller's spelling a second time (two parsers, two hosts). Each redirect is judged again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote, urlsplit

import idna

from firsttouch.errors import AddressRefused, SourceNotFound, SourceRefused, SourceTimeout, UnsupportedScheme

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

PUBLIC_PORTS = (80, 443, 8080, 8443)
"""Ports of public origins; others are mail and databases. An allow-list entry `host:port` opens one."""

MAX_URL_LENGTH = 4096
MAX_ADDRESSES = 16
DEFAULT_PORTS = {"http": 80, "https": 443}

# RFC 6761, 6762, 7686, 8375, 9476 and the names clouds use inside: never public, so not resolved.
_INSIDE_NAMES = (
    "localhost",
    "local",
    "internal",
    "intranet",
    "lan",
    "home",
    "home.arpa",
    "corp",
    "onion",
    "alt",
    "test",
    "invalid",
    "example",
    "arpa",
)

# IANA special-purpose registries (2026-11). `is_global` of Python 3.11 misses some, so the lists are ours.
_V4_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_V4_NEVER = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "169.254.0.0/16",  # link-local, cloud metadata
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
_V6_PRIVATE = (IPv6Network("::1/128"), IPv6Network("fc00::/7"))
_V6_UNICAST = IPv6Network("2000::/3")  # all that IANA gives out; everything else needs a reason
_V6_NEVER = (IPv6Network("2001::/23"), IPv6Network("2001:db8::/32"), IPv6Network("3fff::/20"))
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_FORBIDDEN = re.compile(
    r"[\x00-\x20\x7f\\<>\"^`{|}]|[\x80-\x9f\u00a0\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff]"
)


@dataclass(frozen=True, slots=True)
class JudgedURL:
    """A URL whose form is allowed; `url` is rebuilt from its parts, in ASCII, without a fragment."""

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None
    """The address when the host is one, else None: the name is still to be resolved and judged."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Where to connect: only `addresses`, all judged, for `host`:`port` of `url`."""

    url: str
    host: str
    port: int
    addresses: tuple[str, ...]

    @property
    def curl_resolve(self) -> str:
        """The entry for CURLOPT_RESOLVE that makes libcurl connect to these addresses and no other."""
        return f"{self.host}:{self.port}:" + ",".join(f"[{a}]" if ":" in a else a for a in self.addresses)


def judge(
    url: str,
    *,
    allow_private: bool = False,
    allowed_hosts: Iterable[str] = (),
    ports: Iterable[int] = PUBLIC_PORTS,
) -> JudgedURL:
    """The URL in its one normal form, or why not.

    Parameters
    ----------
    allow_private: also loopback, private and unique-local addresses, names without a dot, any port.
    allowed_hosts: when not empty, nothing else is: `host`, `.domain` (it and all below), or `host:port`.

    Raises UnsupportedScheme (not http or https), AddressRefused (all else).
    """
    if not isinstance(url, str) or not url or len(url) > MAX_URL_LENGTH:
        raise AddressRefused(f"a URL must have 1 to {MAX_URL_LENGTH} characters", hint="give a plain http(s) URL")
    if _FORBIDDEN.search(url):
        raise AddressRefused(
            f"blanks, control characters and backslashes are not allowed in a URL: {url!r}",
            hint="percent-encode them",
        )
    scheme = url.partition(":")[0].lower()
    if scheme not in DEFAULT_PORTS or not url[len(scheme) :].startswith("://"):
        raise UnsupportedScheme(f"only http:// and https:// are fetched: {url!r}")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise AddressRefused(f"not a URL: {url!r} ({exc})", hint="give a plain http(s) URL") from exc
    if "@" in parts.netloc:
        raise AddressRefused("a URL with a user name or password is not fetched", hint="sign the URL by query instead")
    host, port, address = _judge_authority(parts.netloc, scheme)
    _judge_port(host, port, allow_private, allowed_hosts, ports)
    if allowed_hosts and not _listed(host, port, allowed_hosts):
        raise AddressRefused(
            f"{host}:{port} is not on the list of allowed hosts", hint="add it to the allow-list of origins"
        )
    if address is not None:
        judge_address(address, allow_private=allow_private)
    elif not allow_private:
        _judge_name(host)
    return JudgedURL(_rebuilt(scheme, host, port, parts.path, parts.query), scheme, host, port, address)


def judge_address(address: str | Address, *, allow_private: bool = False) -> Address:
    """The address, when it may be connected to; else AddressRefused.

    Addresses that carry an IPv4 address inside (mapped, NAT64, 6to4) are judged by that one as well.
    Link-local, multicast, unspecified, documentation and reserved ones are refused even with `allow_private`:
    no origin lives there, but a cloud's metadata service does.
    """
    if isinstance(address, str):
        try:
            address = ipaddress.ip_address(address)
        except ValueError as exc:
            raise AddressRefused(f"not an address: {address!r}") from exc
    allowed = (
        _v4_allowed(address, allow_private) if isinstance(address, IPv4Address) else _v6_allowed(address, allow_private)
    )
    if not allowed:
        raise AddressRefused(
            f"the address {address} is not public" if not allow_private else f"the address {address} is never an origin"
        )
    return address


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one service, and the resolver. `await policy.judge(url)` before each hop."""

    allow_private: bool = False
    allowed_hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = PUBLIC_PORTS
    resolve_timeout_seconds: float = 5.0
    resolve: Resolve | None = None
    """Name and port to addresses; None: the system's resolver. Tests hand in their own."""

    def judge_form(self, url: str) -> JudgedURL:
        """What can be said without asking the resolver: cheap enough for the event loop."""
        return judge(url, allow_private=self.allow_private, allowed_hosts=self.allowed_hosts, ports=self.ports)

    async def judge(self, url: str) -> Pinned:
        """Judge the form, resolve, judge every address; one bad address refuses the name."""
        judged = self.judge_form(url)
        if judged.address is not None:
            return Pinned(judged.url, judged.host, judged.port, (str(judged.address),))
        found = await self._addresses(judged)
        addresses = tuple(str(judge_address(a, allow_private=self.allow_private)) for a in found)
        return Pinned(judged.url, judged.host, judged.port, addresses)

    async def _addresses(self, judged: JudgedURL) -> list[str]:
        resolve = self.resolve or _system_resolve
        try:
            async with asyncio.timeout(self.resolve_timeout_seconds):
                found = await resolve(judged.host, judged.port)
        except TimeoutError as exc:
            raise SourceTimeout(f"the name {judged.host} was not resolved in {self.resolve_timeout_seconds} s") from exc
        except (OSError, UnicodeError) as exc:
            raise SourceRefused(f"the name {judged.host} does not resolve: {exc}", hint="check the host name") from exc
        distinct = list(dict.fromkeys(found))[:MAX_ADDRESSES]
        if not distinct:
            raise SourceNotFound(f"the name {judged.host} has no address", hint="check the host name")
        return distinct


async def _system_resolve(host: str, port: int) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in infos]


def _judge_authority(netloc: str, scheme: str) -> tuple[str, int, Address | None]:
    """Host in its normal form, port, and the address when the host is one."""
    if "%" in netloc:
        raise AddressRefused(f"percent signs are not allowed in a host: {netloc!r}")
    if netloc.startswith("["):
        inside, bracket, rest = netloc[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise AddressRefused(f"not a host: {netloc!r}")
        try:
            address: Address = IPv6Address(inside)
        except ValueError as exc:
            raise AddressRefused(f"not an IPv6 address: {inside!r}") from exc
        return str(address), _read_port(rest[1:], rest.startswith(":"), scheme), address
    name, colon, digits = netloc.partition(":")
    host = _normal_name(name)
    port = _read_port(digits, bool(colon), scheme)
    # The last label decides, as in the WHATWG URL standard: numbers of any base and count are IPv4.
    # Only the canonical form is taken; 2130706433, 0177.1 and 0x7f.0.0.1 have no honest user.
    if _NUMBER.fullmatch(host.rsplit(".", 1)[-1]):
        try:
            return host, port, IPv4Address(host)
        except ValueError as exc:
            raise AddressRefused(f"an IPv4 address must be four decimal numbers: {netloc!r}") from exc
    return host, port, None


def _normal_name(name: str) -> str:
    """Lower-case ASCII; IDN by UTS 46, which also folds full-width digits before we look for numbers."""
    try:
        host = name.lower() if name.isascii() else idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as exc:
        raise AddressRefused(f"not a host name: {name!r}") from exc
    host = host.removesuffix(".")
    if not host or len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise AddressRefused(f"not a host name: {name!r}")
    return host


def _read_port(digits: str, given: bool, scheme: str) -> int:
    if not given or digits == "":
        return DEFAULT_PORTS[scheme]
    if not _PORT.fullmatch(digits) or not 1 <= int(digits) <= 65535:
        raise AddressRefused(f"not a port: {digits!r}")
    return int(digits)


def _judge_port(host: str, port: int, allow_private: bool, allowed_hosts: Iterable[str], ports: Iterable[int]) -> None:
    if not allow_private and port not in tuple(ports) and f"{host}:{port}" not in tuple(allowed_hosts):
        raise AddressRefused(
            f"port {port} is not one of {', '.join(map(str, ports))}",
            hint="serve the clip on a usual web port",
        )


def _judge_name(host: str) -> None:
    if "." not in host or any(host == name or host.endswith("." + name) for name in _INSIDE_NAMES):
        raise AddressRefused(f"the name {host} is not a public one")


def _listed(host: str, port: int, allowed_hosts: Iterable[str]) -> bool:
    return any(
        entry in (host, f"{host}:{port}") or (entry.startswith(".") and (host == entry[1:] or host.endswith(entry)))
        for entry in (entry.lower() for entry in allowed_hosts)
    )


def _rebuilt(scheme: str, host: str, port: int, path: str, query: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    where = shown if port == DEFAULT_PORTS[scheme] else f"{shown}:{port}"
    ascii_path = quote(path or "/", safe="/%:@!$&'()*+,;=~[]")
    ascii_query = quote(query, safe="/%:@!$&'()*+,;=~?[]")
    return f"{scheme}://{where}{ascii_path}" + (f"?{ascii_query}" if query else "")


def _v4_allowed(address: IPv4Address, allow_private: bool) -> bool:
    if any(address in net for net in _V4_PRIVATE):
        return allow_private
    return not any(address in net for net in _V4_NEVER)


def _v6_allowed(address: IPv6Address, allow_private: bool) -> bool:
    if address.scope_id is not None:
        return False
    if any(address in net for net in _V6_PRIVATE):
        return allow_private
    if address in _MAPPED or address in _NAT64:
        return _v4_allowed(IPv4Address(int(address) & 0xFFFFFFFF), allow_private)
    if address in _SIX_TO_FOUR:
        return _v4_allowed(IPv4Address(int(address) >> 80 & 0xFFFFFFFF), allow_private)
    return address in _V6_UNICAST and not any(address in net for net in _V6_NEVER)
