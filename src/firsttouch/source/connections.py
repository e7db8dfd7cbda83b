"""The warm keep-alive and HTTP/2 connections of one loop, and one request on them: the door to libcurl."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.parse import urlsplit

import pycurl  # type: ignore[import-untyped, unused-ignore]

from firsttouch.errors import SourceCutOff, SourceError, SourceRefused, SourceTimeout, UnsupportedScheme
from firsttouch.netpolicy import Policy
from firsttouch.source.replies import Reply, fit_to_show

CONNECT_SECONDS = 10.0
"""For name, TCP and TLS together; with more than one address each gets CONNECT_SECONDS_EACH."""
CONNECT_SECONDS_EACH = 3.0
REWARM_SECONDS = 45.0
"""Common origins close idle connections after 60 to 75 s (nginx: keepalive_timeout 75 s)."""
WARM_PER_ORIGIN = 8
"""As many connections as HttpSource uses on HTTP/1.1; with HTTP/2 one is enough and one is made."""
POOL_SIZE = 64
BUFFER_BYTES = 256 * 1024

_CUT_OFF = frozenset(
    {
        pycurl.E_PARTIAL_FILE,
        pycurl.E_GOT_NOTHING,
        pycurl.E_SEND_ERROR,
        pycurl.E_RECV_ERROR,
        pycurl.E_HTTP2,
        92,  # CURLE_HTTP2_STREAM, which pycurl has no name for
    }
)


class Receiver(Protocol):
    """Takes one answer as it comes. What either method raises stops the transfer and comes out of `ask`."""

    def reply(self, reply: Reply) -> None: ...

    def body(self, data: bytes) -> None: ...


@dataclass(slots=True)
class Link:
    """How the connection of one request came about, filled in while it runs.

    `warm`: it was there already. `connect_seconds` runs from `ask` until the connection could carry the request;
    `wait_seconds` from there to the first line of the answer, None before that.
    """

    connect_seconds: float = 0.0
    wait_seconds: float | None = None
    warm: bool = True
    multiplexed: bool = False
    address: str = ""


class Connections:
    """The pool. Bound to the event loop that first uses it; `close` when done."""

    def __init__(self, *, policy: Policy | None = None) -> None:
        """`policy` judges the origins that `warm` is given; requests bring their own judgement along."""
        self._policy = policy
        self._certificates = _certificates()
        self._multi = pycurl.AsyncCurlMulti()
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAXCONNECTS, POOL_SIZE)
        self._good_address: dict[tuple[str, int], str] = {}
        self._multiplexing: set[tuple[str, str]] = set()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def warm(
        self,
        origins: Sequence[str],
        *,
        per_origin: int = WARM_PER_ORIGIN,
        again_after_seconds: float = REWARM_SECONDS,
    ) -> dict[str, SourceError | None]:
        """Connect to each origin (`https://host`), and keep the connections from expiring until `close`.

        Returns what went wrong by origin, None for those that are warm. One that is away is tried again.
        """
        outcome = await self._warm_once(origins, per_origin)
        if self._keeper is not None:
            self._keeper.cancel()
        self._keeper = asyncio.create_task(self._keep_warm(tuple(origins), per_origin, again_after_seconds))
        return outcome

    async def ask(
        self,
        url: str,
        receiver: Receiver,
        *,
        headers: Mapping[str, str] | None = None,
        addresses: Sequence[str] = (),
        method: str = "GET",
        fresh: bool = False,
        link: Link | None = None,
    ) -> Link:
        """One request, its answer into `receiver`. Follows no redirect.

        `addresses`: connect to these and no other (judged before). `fresh`: on a connection of its own.
        Raises what the receiver raised, SourceRefused, SourceTimeout or SourceCutOff. Cancelling stops the
        transfer at once: HTTP/2 resets its stream, HTTP/1.1 can only close the connection.
        """
        link = link if link is not None else Link()
        last: SourceError | None = None
        for address in self._in_order(url, addresses):
            exchange = _Exchange(url, receiver, link, asyncio.get_running_loop())
            several = len(addresses) > 1
            exchange.prepare(
                method=method,
                certificates=self._certificates,
                headers=headers or {},
                address=address,
                fresh=fresh,
                pipewait=_origin_key(url) in self._multiplexing,
                connect_seconds=CONNECT_SECONDS_EACH if several else CONNECT_SECONDS,
            )
            try:
                await self._perform(exchange)
            except _NoConnection as exc:
                last = exc.error
                continue
            self._learn(url, address, link)
            return link
        assert last is not None
        raise last

    async def close(self) -> None:
        """Close every connection; idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._multi.aclose()

    async def _perform(self, exchange: _Exchange) -> None:
        curl = exchange.curl
        try:
            await self._multi.perform(curl)
        except pycurl.error as exc:
            raise exchange.error(exc) from exc
        except asyncio.CancelledError:
            # The pool would let go of it in the next turn of the loop: do it now, so that no byte follows.
            with contextlib.suppress(RuntimeError, pycurl.error):
                self._multi.remove_handle(curl)
            raise
        finally:
            exchange.finish()

    def _in_order(self, url: str, addresses: Sequence[str]) -> Sequence[str | None]:
        """The address that worked last comes first, so that the connection to it is used again."""
        good = self._good_address.get(_host_port(url))
        if not addresses:
            return [None]
        return sorted(addresses, key=lambda address: address != good)

    def _learn(self, url: str, address: str | None, link: Link) -> None:
        if address is not None:
            self._good_address[_host_port(url)] = address
        if link.multiplexed:
            self._multiplexing.add(_origin_key(url))

    async def _warm_once(self, origins: Iterable[str], per_origin: int) -> dict[str, SourceError | None]:
        names = tuple(dict.fromkeys(origins))
        outcomes = await asyncio.gather(*(self._warm_one(name, per_origin) for name in names))
        return dict(zip(names, outcomes, strict=True))

    async def _warm_one(self, origin: str, count: int) -> SourceError | None:
        """HEADs side by side take a connection each, unless HTTP/2 lets them share one."""
        try:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UnsupportedScheme(f"an origin to keep warm is http(s)://host: {origin!r}")
            url = f"{parts.scheme}://{parts.netloc}/"
            pinned = await self._policy.judge(url) if self._policy is not None else None
            addresses = pinned.addresses if pinned is not None else ()
            # The first tells whether the origin multiplexes, and whether it is there at all.
            await self.ask(url, _Ignore(), method="HEAD", addresses=addresses)
            if _origin_key(url) not in self._multiplexing:
                heads = [self.ask(url, _Ignore(), method="HEAD", addresses=addresses) for _ in range(count)]
                await asyncio.gather(*heads)
        except SourceError as exc:
            return exc
        return None

    async def _keep_warm(self, origins: tuple[str, ...], per_origin: int, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._warm_once(origins, per_origin)


class _NoConnection(Exception):
    """No connection came about: the next address may do."""

    def __init__(self, error: SourceError) -> None:
        self.error = error


@dataclass(slots=True)
class _Ignore:
    """The receiver of a HEAD whose answer does not matter."""

    def reply(self, reply: Reply) -> None: ...

    def body(self, data: bytes) -> None: ...


@dataclass(slots=True)
class _Exchange:
    """One easy handle and its callbacks. What a callback raises is kept, because libcurl cannot carry it."""

    url: str
    receiver: Receiver
    link: Link
    loop: asyncio.AbstractEventLoop
    curl: Any = field(default_factory=pycurl.Curl)
    raised: BaseException | None = None
    started: float = 0.0
    connected: float = 0.0
    _lines: list[bytes] = field(default_factory=list)

    def prepare(
        self,
        *,
        method: str,
        certificates: str | None,
        headers: Mapping[str, str],
        address: str | None,
        fresh: bool,
        pipewait: bool,
        connect_seconds: float,
    ) -> None:
        option = self.curl.setopt
        try:
            option(pycurl.URL, self.url)
        except (pycurl.error, UnicodeEncodeError) as exc:
            raise SourceRefused(f"not a URL: {fit_to_show(self.url)}") from exc
        option(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        option(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        option(pycurl.FOLLOWLOCATION, False)
        option(pycurl.NOSIGNAL, True)
        option(pycurl.TCP_NODELAY, True)
        option(pycurl.TCP_KEEPALIVE, True)
        option(pycurl.PATH_AS_IS, True)
        option(pycurl.BUFFERSIZE, BUFFER_BYTES)
        option(pycurl.CONNECTTIMEOUT_MS, int(connect_seconds * 1000))
        option(pycurl.PIPEWAIT, pipewait)
        option(pycurl.FRESH_CONNECT, fresh)
        option(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in _all_headers(headers).items()])
        if certificates is not None:
            option(pycurl.CAINFO, certificates)
        if method == "HEAD":
            option(pycurl.NOBODY, True)
        if address is not None:
            # Connections are told apart by this: none made to an address that was not judged is used again.
            option(pycurl.CONNECT_TO, [f"::{f'[{address}]' if ':' in address else address}:"])
            option(pycurl.PROXY, "")
        option(pycurl.SOCKOPTFUNCTION, self._on_socket)
        option(pycurl.PREREQFUNCTION, self._on_connected)
        option(pycurl.HEADERFUNCTION, self._on_header)
        option(pycurl.WRITEFUNCTION, self._on_body)
        self.started = self.connected = self.loop.time()

    def finish(self) -> None:
        self.curl.close()

    def error(self, exc: pycurl.error) -> BaseException:
        """Our exception for libcurl's code (https://curl.se/libcurl/c/libcurl-errors.html)."""
        if self.raised is not None:
            return self.raised
        code, text = exc.args[0], str(exc.args[1] if len(exc.args) > 1 else exc)
        shown = fit_to_show(self.url)
        if code in _CUT_OFF:
            return SourceCutOff(f"{text}: {shown}")
        if code == pycurl.E_OPERATION_TIMEDOUT:
            late = SourceTimeout(f"{text}: {shown}")
            return late if self.link.address else _NoConnection(late)
        refused = SourceRefused(f"{text}: {shown}")
        if code == pycurl.E_COULDNT_RESOLVE_HOST:
            refused.hint = "check the host name"
        return _NoConnection(refused) if code == pycurl.E_COULDNT_CONNECT else refused

    def _on_socket(self, _fd: int, _purpose: int) -> int:
        self.link.warm = False
        return 0

    def _on_connected(self, address: str, _local: str, _port: int, _local_port: int) -> int:
        self.connected = self.loop.time()
        self.link.address = address
        self.link.connect_seconds = self.connected - self.started
        return 0

    def _on_header(self, line: bytes) -> int | None:
        if line.startswith(b"HTTP/"):
            self._lines.clear()
        if line not in (b"\r\n", b"\n"):
            self._lines.append(line)
            return None
        # Lines after the body are trailers of a chunked answer: they begin with no status line.
        if not self._lines or not self._lines[0].startswith(b"HTTP/"):
            return None
        multiplexed = self._lines[0].startswith((b"HTTP/2", b"HTTP/3"))
        reply = _parse_reply(self.url, self._lines)
        self._lines.clear()
        if reply.status < 200:
            return None
        self.link.multiplexed = multiplexed
        self.link.wait_seconds = self.loop.time() - self.connected
        return self._guarded(lambda: self.receiver.reply(reply))

    def _on_body(self, data: bytes) -> int | None:
        if self.raised is not None:
            return -1
        try:
            self.receiver.body(data)
        except BaseException as exc:
            self.raised = exc
            return -1
        return None

    def _guarded(self, step: Any) -> int | None:
        try:
            step()
        except BaseException as exc:
            self.raised = exc
            return -1
        return None


def _parse_reply(url: str, lines: Sequence[bytes]) -> Reply:
    status = int(lines[0].split(None, 2)[1])
    headers = {}
    for line in lines[1:]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Reply(url, status, headers)


def _all_headers(own: Mapping[str, str]) -> dict[str, str]:
    return {"User-Agent": "firsttouch", "Accept": "*/*", "Accept-Encoding": "identity", **own}


def _host_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _origin_key(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _certificates() -> str | None:
    """The system's certificates: libcurl in a wheel looks where its builder had them, not where they are here."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile is not None:
        return paths.cafile
    if find_spec("certifi") is not None:
        import certifi

        return str(certifi.where())
    return None
