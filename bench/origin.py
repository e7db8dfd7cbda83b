"""A web server in its own process with a link of a given width and length, and with faults on demand.

    with Origin({"clip.mp4": path}, bandwidth=100e6, rtt=0.03) as origin:
        ... origin.url("clip.mp4") ... origin.counts()

or `python -m bench.origin FILE... --bandwidth-mbit 100 --rtt-ms 30`. HTTP/1.1 with keep-alive; with `tls=True` also
HTTP/2, under a certificate made for the occasion. Loopback only.

The link is modelled where it matters to a client: all bodies share one bandwidth, the first byte of every answer
comes one round trip after its request, and a new connection costs `setup` more. Loopback itself costs next to
nothing. Not modelled: loss, and TCP's slow start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import gzip
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

QUANTUM_SECONDS = 0.005
"""Bytes are let out in slices of this length: short enough for a smooth link, long enough to cost little CPU."""
IDLE_SECONDS = 75.0
CHUNK_BYTES = 64 * 1024

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with a file; None or 0 is health. Bytes are counted within one answer's body.

    `times`: how many answers of the file it befalls, then it recovers; None: all. `after`: how many go well before.
    """

    status: int | None = None
    retry_after: int | None = None
    stall_after: int | None = None
    drip_bytes_per_second: float | None = None
    cut_after: int | None = None
    length_lie: int = 0
    range_shift: int = 0
    total_lie: int = 0
    extra_bytes: int = 0
    change: bool = False
    redirect: str | None = None
    encoding: str | None = None
    no_length: bool = False
    ignore_range: bool = False
    no_suffix: bool = False
    slow_headers: float = 0.0
    short_range: int | None = None
    weak_etag: bool = False
    no_etag: bool = False
    times: int | None = None
    after: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """The link: bits per second (0: no limit), and seconds."""

    bandwidth: float = 0.0
    rtt: float = 0.0
    setup: float = 0.0
    ranges: bool = True
    idle_seconds: float = IDLE_SECONDS


@dataclass(slots=True)
class Counts:
    """What the origin has seen and sent. `bytes` are body bytes handed to the socket."""

    requests: int = 0
    connections: int = 0
    bytes: int = 0
    aborted: int = 0
    open_connections: int = 0
    log: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Method, path, Range header, status of every request."""


class Origin:
    """The server as a context manager; `url`, `counts`, `shape`, `fault` and `drop` talk to its process."""

    def __init__(
        self,
        files: Mapping[str, str | Path | bytes],
        *,
        bandwidth: float = 0.0,
        rtt: float = 0.0,
        setup: float = 0.0,
        ranges: bool = True,
        idle_seconds: float = IDLE_SECONDS,
        faults: Mapping[str, Fault] | None = None,
        tls: bool = False,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self._files = {
            name: value if isinstance(value, bytes) else Path(value).resolve() for name, value in files.items()
        }
        self._shape = Shape(bandwidth, rtt, setup, ranges, idle_seconds)
        self._faults = dict(faults or {})
        self._tls = tls
        self._host = host
        self._port = port
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.certificate: Path | None = None

    def __enter__(self) -> Origin:
        if self._tls:
            self._folder = tempfile.TemporaryDirectory(prefix="firsttouch-origin-")
            self.certificate = make_certificate(Path(self._folder.name), self._host)
        ours, theirs = socket.socketpair()
        # A fresh interpreter, neither forked (we have threads) nor one that runs the caller's main module again.
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from bench.origin import serve_until_told; serve_until_told({theirs.fileno()})"],
            cwd=Path(__file__).resolve().parents[1],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._pipe = Connection(ours.detach())
        self._pipe.send((self._files, self._shape, self._faults, self._host, self._port, self.certificate))
        self._port = self._answer()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._pipe is not None and self._process is not None:
            self._pipe.close()  # which the child takes as its end
            self._pipe = None
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def port(self) -> int:
        return self._port

    @property
    def base(self) -> str:
        """`http://host:port`, the origin itself."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._port}"

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"

    def counts(self) -> Counts:
        """What was counted since the start or the last `reset`."""
        counts: Counts = self._call("counts")
        return counts

    def reset(self) -> None:
        """Count from nought again."""
        self._call("reset")

    def shape(self, **changes: Any) -> None:
        """Change the link for the requests to come."""
        self._shape = replace(self._shape, **changes)
        self._call("shape", self._shape)

    def fault(self, name: str, fault: Fault | None) -> None:
        """Break file `name`, or mend it with None."""
        self._call("fault", name, fault)

    def drop(self) -> None:
        """Close every connection, as an origin that goes away does."""
        self._call("drop")

    def _call(self, *message: Any) -> Any:
        assert self._pipe is not None, "the origin is not running"
        self._pipe.send(message)
        return self._answer()

    def _answer(self) -> Any:
        assert self._pipe is not None
        if not self._pipe.poll(20):
            raise RuntimeError("the origin's process does not answer")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def make_certificate(folder: Path, host: str) -> Path:
    """A certificate and its key in one PEM file, good for a day, for `host` and localhost."""
    path = folder / "origin.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "1", "-subj", "/CN=localhost", "-addext", f"subjectAltName=DNS:localhost,IP:{host}"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    path.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return path


# ---- the server's process ----


class _Wire(Protocol):
    """Where an answer goes: an HTTP/1.1 connection, or one HTTP/2 stream."""

    async def head(self, status: int, headers: Mapping[str, str]) -> None: ...

    async def body(self, data: memoryview) -> None: ...

    async def end(self) -> None: ...

    def cut(self) -> None:
        """End it in the middle, as a broken connection does."""


@dataclass(slots=True)
class _File:
    data: memoryview
    etag: str
    modified: str
    answers: int = 0
    compressed: memoryview | None = None


class _Link:
    """One bandwidth for all: who sends takes turns, a quantum's worth of bytes at a time."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    async def pass_through(self, count: int) -> None:
        """Return when `count` more bytes have left."""
        rate = self.shape.bandwidth / 8
        if rate <= 0:
            return
        loop = asyncio.get_running_loop()
        async with self._turn:  # first come, first served: the connections share evenly
            now = loop.time()
            # A sleeper wakes late; what the link could have sent meanwhile (up to two quanta) is not lost.
            self._free_at = max(self._free_at, now - 2 * QUANTUM_SECONDS) + count / rate
            if self._free_at > now:
                await asyncio.sleep(self._free_at - now)

    def slice(self) -> int:
        """Bytes of one turn."""
        rate = self.shape.bandwidth / 8
        return max(1024, int(rate * QUANTUM_SECONDS)) if rate > 0 else 4 * CHUNK_BYTES


class _Server:
    def __init__(self, files: Mapping[str, bytes | Path], shape: Shape, faults: dict[str, Fault]) -> None:
        self.files = {name: _load(value) for name, value in files.items()}
        self.link = _Link(shape)
        self.faults = faults
        self.counts = Counts()
        self.transports: set[asyncio.WriteTransport] = set()

    async def answer(self, method: str, target: str, headers: Mapping[str, str], wire: _Wire) -> None:
        """One request, whole."""
        self.counts.requests += 1
        name = unquote(target.partition("?")[0].lstrip("/"))
        wanted = headers.get("range", "")
        file = self.files.get(name)
        fault = self._fault_of(name, file)
        await asyncio.sleep(self.link.shape.rtt + fault.slow_headers)
        status, fields, body = _reply(file, fault, headers, self.link.shape.ranges)
        self.counts.log.append((method, target, wanted, status))
        await wire.head(status, {"content-length": str(len(body) + fault.length_lie), **fields})
        if method != "HEAD":
            await self._send_body(body, fault, wire)

    def _fault_of(self, name: str, file: _File | None) -> Fault:
        fault = self.faults.get(name)
        if fault is None or file is None:
            return Fault()
        nth = file.answers - fault.after
        file.answers += 1
        return fault if nth >= 0 and (fault.times is None or nth < fault.times) else Fault()

    async def _send_body(self, body: memoryview, fault: Fault, wire: _Wire) -> None:
        sent = 0
        while sent < len(body):
            piece = body[sent : sent + self.link.slice()]
            if fault.drip_bytes_per_second:
                piece = piece[: max(1, int(fault.drip_bytes_per_second * 0.02))]
                await asyncio.sleep(len(piece) / fault.drip_bytes_per_second)
            for limit in (fault.cut_after, fault.stall_after):
                if limit is not None and sent + len(piece) > limit:
                    piece = piece[: max(0, limit - sent)]
            if piece:
                await self.link.pass_through(len(piece))
                await wire.body(piece)
                sent += len(piece)
                self.counts.bytes += len(piece)
            if fault.cut_after is not None and sent >= fault.cut_after:
                wire.cut()
                return
            if fault.stall_after is not None and sent >= fault.stall_after:
                await asyncio.sleep(3600)
        if fault.length_lie > 0:
            wire.cut()
            return
        await wire.end()


def _load(value: bytes | Path) -> _File:
    data = value if isinstance(value, bytes) else value.read_bytes()
    stamp = 1_700_000_000 if isinstance(value, bytes) else value.stat().st_mtime
    modified = email.utils.formatdate(stamp, usegmt=True)
    return _File(memoryview(data), f'"{len(data):x}-{int(stamp):x}"', modified)


def _reply(
    file: _File | None, fault: Fault, headers: Mapping[str, str], ranges: bool
) -> tuple[int, dict[str, str], memoryview]:
    """Status, headers and body of one answer, as RFC 9110 has it, and then as the fault bends it."""
    if file is None:
        return 404, {}, memoryview(b"not here\n")
    if fault.redirect is not None:
        return 302, {"location": fault.redirect}, memoryview(b"over there\n")
    if fault.status is not None:
        extra = {"retry-after": str(fault.retry_after)} if fault.retry_after is not None else {}
        return fault.status, extra, memoryview(b"no\n")
    data, etag = file.data, file.etag
    if fault.change:
        data, etag = memoryview(bytes(data[::-1]) + b"changed"), '"changed"'
    fields = {"content-type": "video/mp4", "last-modified": file.modified}
    fields["date"] = email.utils.formatdate(usegmt=True)
    if not fault.no_etag:
        fields["etag"] = f"W/{etag}" if fault.weak_etag else etag
    if fault.encoding is not None:
        data = _compressed(file, data)
        fields["content-encoding"] = fault.encoding
    obeys = ranges and not fault.ignore_range
    if obeys:
        fields["accept-ranges"] = "bytes"
    unchanged = headers.get("if-range", etag) in (etag, file.modified)
    found = _RANGE.fullmatch(headers.get("range", "")) if obeys and unchanged else None
    if found is None or (fault.no_suffix and not found[1]):
        fields |= {"content-length": "", "transfer-encoding": "chunked"} if fault.no_length else {}
        return 200, fields, data
    start, stop = _span(found[1], found[2], len(data))
    if start >= stop:
        return 416, {"content-range": f"bytes */{len(data)}"}, memoryview(b"")
    if fault.short_range is not None:
        stop = min(stop, start + fault.short_range)
    shown = f"{start + fault.range_shift}-{stop - 1 + fault.range_shift}/{len(data) + fault.total_lie}"
    fields["content-range"] = f"bytes {shown}"
    body = data[start:stop]
    if fault.extra_bytes:
        body = memoryview(bytes(body) + b"\0" * fault.extra_bytes)
    if fault.no_length:
        fields |= {"content-length": "", "transfer-encoding": "chunked"}
    return 206, fields, body


def _compressed(file: _File, data: memoryview) -> memoryview:
    if file.compressed is None:
        file.compressed = memoryview(gzip.compress(data, 1))
    return file.compressed


def _span(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(size, int(last) + 1 if last else size)


class _Http1Wire:
    """One answer on an HTTP/1.1 connection."""

    def __init__(self, server: _Server, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._writer = writer
        self._chunked = False

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._chunked = headers.get("transfer-encoding") == "chunked"
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}"]
        lines += [f"{name.title()}: {value}" for name, value in headers.items() if value != ""]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        await self._writer.drain()

    async def body(self, data: memoryview) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), bytes(data)) if self._chunked else data)
        await self._writer.drain()

    async def end(self) -> None:
        if self._chunked:
            self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def cut(self) -> None:
        self._writer.close()


_REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 404: "Not Found", 416: "Range Not Satisfiable"}


async def _serve_http1(server: _Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, one after the other."""
    while not writer.is_closing():
        try:
            async with asyncio.timeout(server.link.shape.idle_seconds):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        answering = asyncio.create_task(server.answer(method, target, headers, _Http1Wire(server, writer)))
        # Who hangs up in the middle frees the link at once, also while we wait to send.
        gone = asyncio.create_task(_until_gone(reader))
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (answering, gone):
            task.cancel()
        done = await asyncio.gather(answering, gone, return_exceptions=True)
        if isinstance(done[0], BaseException):
            server.counts.aborted += 1
            return


async def _until_gone(reader: asyncio.StreamReader) -> None:
    # StreamReader tells nobody about an end of file but who reads, and reading would take the next request.
    while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def serve_until_told(descriptor: int) -> None:
    """The child's main: takes its files and orders from `descriptor`, and ends when that does."""
    pipe = Connection(descriptor)
    logging.disable()  # broken connections are what it is for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's business
    asyncio.run(_serve(pipe, *pipe.recv()))


async def _serve(
    pipe: Connection,
    files: Mapping[str, bytes | Path],
    shape: Shape,
    faults: dict[str, Fault],
    host: str,
    port: int,
    certificate: Path | None,
) -> None:
    try:
        server = _Server(files, shape, faults)
        listener = await _listen(server, host, port, certificate)
    except Exception as exc:
        pipe.send(exc)
        return
    pipe.send(listener.sockets[0].getsockname()[1])
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), _obey, pipe, server, stopped)
    await stopped.wait()
    listener.close()
    for transport in list(server.transports):
        transport.abort()


async def _listen(server: _Server, host: str, port: int, certificate: Path | None) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.counts.connections += 1
        server.counts.open_connections += 1
        server.transports.add(writer.transport)
        try:
            await asyncio.sleep(server.link.shape.setup)
            tls = writer.get_extra_info("ssl_object")
            if tls is not None and tls.selected_alpn_protocol() == "h2":
                from bench.origin_http2 import serve_http2

                await serve_http2(server, reader, writer)
            else:
                await _serve_http1(server, reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            server.counts.open_connections -= 1
            server.transports.discard(writer.transport)
            writer.close()

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.set_alpn_protocols(["h2", "http/1.1"])
    return await asyncio.start_server(serve, host, port, ssl=context, backlog=128)


def _obey(pipe: Connection, server: _Server, stopped: asyncio.Event) -> None:
    try:
        order, *values = pipe.recv()
    except (EOFError, OSError):
        stopped.set()
        return
    if order == "fault":
        name, fault = values
        server.faults.pop(name, None)
        if fault is not None:
            server.faults[name] = fault
        server.files[name].answers = 0
    elif order == "shape":
        server.link.shape = values[0]
    elif order == "drop":
        for transport in list(server.transports):
            transport.abort()
    elif order == "reset":
        server.counts = Counts(open_connections=server.counts.open_connections)
    pipe.send(server.counts if order == "counts" else None)


def main(arguments: list[str] | None = None) -> int:
    """Serve files until interrupted; one JSON line with their URLs first."""
    parser = argparse.ArgumentParser(prog="python -m bench.origin", description="A shaped web server on loopback.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bandwidth-mbit", type=float, default=0.0, help="shared by all connections; 0: no limit")
    parser.add_argument("--rtt-ms", type=float, default=0.0)
    parser.add_argument("--setup-ms", type=float, default=0.0, help="what a new connection costs more")
    parser.add_argument("--no-range", action="store_true", help="answer 200 to every Range request")
    parser.add_argument("--tls", action="store_true", help="https with HTTP/2, under a certificate of its own")
    chosen = parser.parse_args(arguments)
    for path in chosen.files:
        if not path.is_file():
            parser.error(f"no such file: {path}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Origin(
        {path.name: path for path in chosen.files},
        bandwidth=chosen.bandwidth_mbit * 1e6,
        rtt=chosen.rtt_ms / 1e3,
        setup=chosen.setup_ms / 1e3,
        ranges=not chosen.no_range,
        tls=chosen.tls,
        port=chosen.port,
    ) as origin:
        urls = {path.name: origin.url(path.name) for path in chosen.files}
        certificate = str(origin.certificate) if origin.certificate else None
        print(json.dumps({"urls": urls, "pid": os.getpid(), "certificate": certificate}), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    # Imported once more, under its own name: what is sent to the child must be found there.
    from bench import origin

    raise SystemExit(origin.main())
