"""A file behind HTTP(S), read by range: what is wanted first is asked first, and the link is kept full.

One `_Request` is one range on the wire. `_pump` cuts the next one from what is wanted, not there, and not on its
way; every answer is judged before its first byte is kept; what a failed request did not bring is still wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from firsttouch.clock import Deadline
from firsttouch.errors import (
    RangeNotSupported,
    SourceChanged,
    SourceCutOff,
    SourceError,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
)
from firsttouch.netpolicy import Pinned, Policy
from firsttouch.ranges import ByteRange, gaps
from firsttouch.source.arrivals import Arrivals
from firsttouch.source.base import DEFAULT_MAX_BYTES, HEAD_BYTES, TAIL_BYTES, Facts
from firsttouch.source.connections import Connections, Link
from firsttouch.source.replies import (
    REDIRECTS,
    WORTH_ANOTHER_TRY,
    Identity,
    Reply,
    check_same,
    check_url,
    error_for_status,
    fit_to_show,
    identity_of,
    judge_partial,
    parse_content_range,
    redirect_target,
    retry_after_seconds,
)
from firsttouch.source.schedule import PARALLEL_REQUESTS, PARALLEL_STREAMS, Pace, next_piece, touch
from firsttouch.sparse import SparseBytes

LET_FINISH_BYTES = 96 * 1024
"""A cancelled HTTP/1.1 request costs its connection: one that lacks only this much may finish unwanted."""
LET_GO_SECONDS = 0.02
"""How long a request nobody wants any more lives on: a new plan usually wants the same bytes."""
STALL_SECONDS = 3.0
IMPATIENCE_SECONDS = 0.7
"""A warm connection that says nothing for so long may be dead without our being told: ask on a new one."""
TRIES = 4
BACKOFF_SECONDS = 0.05
MAX_REDIRECTS = 8
SMALL_TALK_BYTES = 64 * 1024
"""The body of an error or redirect is read up to this, which keeps the connection; beyond it is not worth it."""
MEAGRE_BYTES, MEAGRE_ANSWERS = 4096, 16
"""A server may send less than was asked, but not a file in thousands of crumbs."""


class _Dropped(Exception):
    """This answer is of no use: another one came first, or it speaks of ranges in a way that cannot be used."""


class _TryAgain(Exception):
    """What went wrong may pass: `error` is what to raise when it does not."""

    def __init__(self, error: SourceError, after_seconds: float | None = None) -> None:
        self.error = error
        self.after_seconds = after_seconds


@dataclass(slots=True, eq=False)
class _Want:
    """A range somebody waits for."""

    part: ByteRange
    done: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _Request:
    """One request. `asked` may be longer than what the answer brings; `at` is where its next byte goes.

    `suffix`: the last `len(asked)` bytes; until `placed`, nobody knows where they begin. `whole`: the body is
    the file from byte 0, to be read to its end. `sipped`: the same, but left when enough has come.
    """

    asked: ByteRange
    suffix: bool = False
    whole: bool = False
    sipped: bool = False
    placed: bool = True
    fresh: bool = False
    at: int = 0
    stop: int | None = None
    kept: bool = False
    link: Link = field(default_factory=Link)
    hops: list[Link] = field(default_factory=list)
    touched: float = 0.0
    stalled: bool = False
    task: asyncio.Task[None] | None = None

    def coming(self) -> ByteRange | None:
        """What this request will still bring, as far as is known."""
        if self.whole or not self.placed:
            return None
        start, stop = (self.at, self.stop) if self.kept else (self.asked.start, self.asked.stop)
        return ByteRange(start, stop) if stop is not None and start < stop else None


class HttpSource:
    """One URL. Keeps the contract of `Source`; without `connections` it makes and closes its own."""

    def __init__(
        self,
        url: str,
        *,
        connections: Connections | None = None,
        policy: Policy | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        parallel: int | None = None,
        stall_seconds: float = STALL_SECONDS,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        check_url(url)
        self.name = fit_to_show(url)
        self.bytes_fetched = 0
        self.requests = 0
        self.round_trip_seconds: float | None = None
        self._url = url
        self._connections = connections if connections is not None else Connections(policy=policy)
        self._owns_connections = connections is None
        self._policy = policy
        self._max_bytes = max_bytes
        self._parallel = parallel
        self._multiplexed = False
        self._stall_seconds = stall_seconds
        self._backoff_seconds = backoff_seconds
        self._deadline = Deadline.after(None)
        self._facts: Facts | None = None
        self._sparse = SparseBytes(None)
        self._known: Identity | None = None
        self._inflate: zlib._Decompress | None = None
        self._wants: list[_Want] = []
        self._running: set[_Request] = set()
        self._opened: asyncio.Future[None] | None = None
        self._failed_tries = 0
        self._meagre = 0
        self._distrust = False
        self._pinned: dict[str, Pinned] = {}
        self._judging = asyncio.Lock()
        self._resend: list[_Request] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._arrivals = Arrivals()
        self._closed = False

    async def __aenter__(self) -> HttpSource:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # ---- the contract ----

    async def open(
        self, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES, deadline: Deadline
    ) -> tuple[Facts, SparseBytes]:
        """See `Source.open`."""
        if self._opened is not None:
            raise RuntimeError("a source is opened once")
        self._deadline = deadline
        self._opened = asyncio.get_running_loop().create_future()
        first = [_Request(ByteRange(0, max(head, 1)))]
        if tail > 0:
            first.append(_Request(ByteRange(0, tail), suffix=True, placed=False))
        try:
            left = deadline.remaining()
            async with asyncio.timeout(left if left < 1e9 else None):
                for request in first:
                    self._send(request)
                await self._opened
        except TimeoutError as exc:
            late = SourceTimeout(f"the deadline came before the origin answered: {self.name}")
            self._fail(late)
            raise late from exc
        except BaseException:
            self._cancel_requests()
            raise
        assert self._facts is not None
        self._want_first(head, tail)
        return self._facts, self._sparse

    async def fetch(self, byte_range: ByteRange) -> None:
        """See `Source.fetch`."""
        await self.fetch_all([byte_range])

    async def fetch_all(self, ranges: Sequence[ByteRange]) -> None:
        """See `Source.fetch_all`."""
        wants = [self._want(part) for part in map(self._cut_to_size, ranges) if not self._sparse.has(part)]
        if not wants:
            return
        if self._sparse.error is not None:
            self._withdraw(wants)
            raise self._sparse.error
        self._pump()
        try:
            for want in wants:
                await want.done
        finally:
            self._withdraw(wants)

    async def stream(self) -> None:
        """See `Source.stream`."""
        size = self._sparse.size
        if size is None:
            await self._until_finished()
        elif size > 0:
            await self.fetch(ByteRange(0, size))

    async def close(self) -> None:
        """See `Source.close`."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks = [request.task for request in self._running if request.task is not None]
        self._cancel_requests()
        for want in self._wants:
            want.done.cancel()
        if not self._sparse.complete:
            self._sparse.fail(SourceCutOff(f"closed before all of it was read: {self.name}"))
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._owns_connections:
            await self._connections.close()

    @property
    def bytes_per_second(self) -> float | None:
        """Body bytes over the time they took, within the last half second in which any came."""
        return self._arrivals.bytes_per_second

    # ---- what is wanted ----

    def _cut_to_size(self, part: ByteRange) -> ByteRange:
        size = self._sparse.size
        if self._facts is None:
            raise RuntimeError("open the source before fetching from it")
        if size is None or part.stop <= size:
            return part
        if part.start >= size:
            raise ValueError(f"bytes {part.start}..{part.stop} lie outside a file of {size}")
        return ByteRange(part.start, size)

    def _want(self, part: ByteRange) -> _Want:
        want = _Want(part, asyncio.get_running_loop().create_future())
        self._wants.append(want)
        return want

    def _want_first(self, head: int, tail: int) -> None:
        """Head and tail stay wanted by the source itself, so that they are asked again if they are cut off."""
        size = self._sparse.size
        if not self._ranged or not size:
            return
        for start, stop in ((0, min(max(head, 1), size)), (max(0, size - tail), size)):
            if start < stop and not self._sparse.has(part := ByteRange(start, stop)):
                self._want(part).done.add_done_callback(_quietly)
        self._pump()

    def _withdraw(self, wants: Sequence[_Want]) -> None:
        gone = set(map(id, wants))
        self._wants = [want for want in self._wants if id(want) not in gone]
        for want in wants:
            if want.done.done():
                _quietly(want.done)
            else:
                want.done.cancel()
        if self._ranged and self._running and not self._closed:
            self._later("let go", LET_GO_SECONDS, self._let_go)

    def _let_go(self) -> None:
        """Stop requests that bring nothing anybody wants; over HTTP/1.1 one that is nearly done may finish."""
        for request in list(self._running):
            coming = request.coming()
            if coming is None or request.task is None:
                continue
            if any(touch(want.part, coming) for want in self._wants):
                continue
            if request.kept and not request.link.multiplexed and len(coming) <= LET_FINISH_BYTES:
                continue
            request.task.cancel()

    def _settle(self, written: ByteRange) -> None:
        """Wake who waited for what has just come."""
        done = [w for w in self._wants if touch(w.part, written) and self._sparse.has(w.part)]
        for want in done:
            self._wants.remove(want)
            if not want.done.done():
                want.done.set_result(None)

    # ---- what is asked ----

    @property
    def _ranged(self) -> bool:
        return self._facts is not None and self._facts.accepts_ranges

    def _pump(self) -> None:
        """Send requests until enough are on the wire."""
        if self._closed or not self._ranged or "again" in self._timers or self._sparse.error is not None:
            return
        pace = self._pace()
        while len(self._running) < pace.most_requests:
            coming = self._coming()
            if sum(map(len, coming)) >= pace.flight_bytes:
                return
            piece = next_piece([want.part for want in self._wants], self._sparse.missing, coming, pace)
            if piece is None:
                return
            self._send(_Request(piece, fresh=self._distrust))

    def _pace(self) -> Pace:
        most = self._parallel or (PARALLEL_STREAMS if self._multiplexed else PARALLEL_REQUESTS)
        return Pace(self.bytes_per_second, self.round_trip_seconds, most)

    def _coming(self) -> list[ByteRange]:
        return [part for request in self._running if (part := request.coming()) is not None]

    def _send(self, request: _Request) -> None:
        request.touched = asyncio.get_running_loop().time()
        request.task = asyncio.create_task(self._run(request))
        self._running.add(request)
        self._later("watch", self._watch_seconds(), self._watch, keep=True)

    async def _run(self, request: _Request) -> None:
        """One request from being sent to its end, good or bad; never raises but for cancellation."""
        try:
            await self._ask(request)
            if request.kept:
                self._failed_tries, self._distrust = 0, False
        except asyncio.CancelledError:
            if not request.stalled:
                raise
            self._again(request, _TryAgain(SourceTimeout(f"no byte for a while: {self.name}")))
        except _Dropped:
            pass
        except _TryAgain as exc:
            self._again(request, exc)
        except (SourceCutOff, SourceTimeout) as exc:
            self._again(request, _TryAgain(exc))
        except SourceError as exc:
            self._give_up(request, exc)
        except Exception as exc:
            self._give_up(request, SourceRefused(f"{type(exc).__name__} while reading {self.name}: {exc}"))
        finally:
            self._running.discard(request)
            self._begin_whole()
            self._pump()

    async def _ask(self, request: _Request) -> None:
        """Send it, and follow redirects; the policy judges each hop."""
        url = self._facts.url if self._facts is not None else self._url
        for _ in range(MAX_REDIRECTS + 1):
            url, addresses = await self._judge(url)
            receiver = _Receiver(self, request, url)
            self.requests += 1
            request.hops.append(request.link)
            request.link = Link()
            await self._connections.ask(
                url,
                receiver,
                headers=self._headers(request),
                addresses=addresses,
                fresh=request.fresh,
                link=request.link,
            )
            if receiver.verdict is not None:
                raise receiver.verdict
            if receiver.redirect is None:
                return self._check_end(request)
            url = receiver.redirect
        raise SourceRefused(f"more than {MAX_REDIRECTS} redirects: {self.name}")

    async def _judge(self, url: str) -> tuple[str, tuple[str, ...]]:
        """The URL and addresses the policy allows, asked once for each URL; no addresses: any."""
        if self._policy is None:
            return url, ()
        async with self._judging:
            if url not in self._pinned:
                self._pinned[url] = await self._policy.judge(url)
        return self._pinned[url].url, self._pinned[url].addresses

    def _headers(self, request: _Request) -> dict[str, str]:
        if request.whole:
            return {}
        headers = {"Range": f"bytes=-{len(request.asked)}" if request.suffix else request.asked.http}
        if self._known is not None and self._known.if_range is not None:
            headers["If-Range"] = self._known.if_range
        return headers

    # ---- what comes ----

    def _first_facts(self, reply: Reply, request: _Request, size: int | None, accepts_ranges: bool) -> None:
        """The first sound answer says what the file is."""
        if size is not None and size > self._max_bytes:
            raise SourceTooLarge(f"{size} bytes, at most {self._max_bytes} are read: {self.name}")
        links = [*request.hops, request.link]
        self._known = identity_of(reply, size)
        self._facts = Facts(
            reply.url,
            size,
            accepts_ranges,
            reply.headers.get("etag"),
            reply.headers.get("content-type"),
            sum(link.connect_seconds for link in links),
            all(link.warm for link in links),
        )
        self._sparse = SparseBytes(size)
        for other in self._running:
            if other.suffix and size:
                other.asked, other.placed = ByteRange(max(0, size - len(other.asked)), size), True
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _take_partial(self, reply: Reply, request: _Request) -> None:
        """A 206: judge it, and keep its bytes from now on."""
        if self._facts is not None and not self._facts.accepts_ranges:
            raise _Dropped
        sent = parse_content_range(reply.headers.get("content-range"))
        if self._facts is None and (reply.encoding or sent is None or sent.total is None):
            raise _Dropped
        if reply.encoding:
            raise RangeNotSupported(f"ranges of a {reply.encoding} body: {self.name}")
        if not request.placed and sent is not None and sent.total:
            request.asked = ByteRange(max(0, sent.total - len(request.asked)), sent.total)
            request.placed = True
        judged = judge_partial(reply, request.asked, self.name)
        assert judged.part is not None
        if self._facts is None:
            self._first_facts(reply, request, judged.total, True)
        else:
            assert self._known is not None
            check_same(self._known, identity_of(reply, judged.total), self.name)
        if judged.part.stop < request.asked.stop and len(judged.part) < MEAGRE_BYTES:
            self._meagre += 1
            if self._meagre > MEAGRE_ANSWERS:
                raise RangeNotSupported(f"the origin sends {len(judged.part)} bytes at a time: {self.name}")
        self._keep(request, judged.part)

    def _keep(self, request: _Request, part: ByteRange) -> None:
        """Keep what comes, unless much of it is there or coming already: no byte is fetched twice."""
        others = [c for r in self._running if r is not request and r.kept and (c := r.coming()) is not None]
        known = len(part) - sum(len(new) for piece in self._sparse.missing(part) for new in gaps(piece, others))
        if known > (self._sparse.size or 0) // 20:
            raise _Dropped
        request.at, request.stop, request.kept = part.start, part.stop, True

    def _take_whole(self, reply: Reply, request: _Request) -> None:
        """A 200: the file from byte 0, whatever was asked."""
        if self._facts is None:
            self._begin_stream(reply, request)
            return
        if request.whole or not self._facts.accepts_ranges:
            raise _Dropped
        assert self._known is not None
        check_same(self._known, identity_of(reply, None if reply.encoding else reply.length), self.name)
        if request.suffix:
            raise _Dropped
        if reply.encoding or request.asked.start > 0:
            raise RangeNotSupported(f"the origin ignored the Range header: {self.name}")
        request.at, request.stop, request.kept, request.sipped = 0, request.asked.stop, True, True

    def _begin_stream(self, reply: Reply, request: _Request) -> None:
        if reply.encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        elif reply.encoding:
            raise SourceRefused(f"the origin insists on Content-Encoding {reply.encoding}: {self.name}")
        chunked = "transfer-encoding" in reply.headers
        self._first_facts(reply, request, None if reply.encoding or chunked else reply.length, False)
        request.whole = request.kept = True
        request.at, request.stop = 0, self._sparse.size
        for other in list(self._running):
            if other is not request and other.task is not None:
                other.task.cancel()

    def _take_bytes(self, request: _Request, data: bytes) -> None:
        if self._inflate is not None and request.whole:
            data = self._inflate.decompress(data, self._max_bytes + 1 - request.at)
        if request.stop is not None and request.at + len(data) > request.stop:
            if request.sipped:
                self._write(request, data[: request.stop - request.at])
                raise _Dropped
            raise RangeNotSupported(f"more bytes than were promised: {self.name}")
        if request.at + len(data) > self._max_bytes:
            raise SourceTooLarge(f"more than {self._max_bytes} bytes: {self.name}")
        self._write(request, data)

    def _write(self, request: _Request, data: bytes) -> None:
        if data:
            start, request.at = request.at, request.at + len(data)
            self._sparse.write(start, data)
            self._settle(ByteRange(start, request.at))

    def _count(self, request: _Request, count: int) -> None:
        """Every body byte counts, kept or not."""
        self.bytes_fetched += count
        request.touched = asyncio.get_running_loop().time()
        self._arrivals.add(request.touched, count)

    def _saw_first_byte(self, request: _Request) -> None:
        wait = request.link.wait_seconds
        self._multiplexed = request.link.multiplexed
        request.touched = asyncio.get_running_loop().time()
        if wait is not None and (self.round_trip_seconds is None or wait < self.round_trip_seconds):
            self.round_trip_seconds = wait
        others = (other for other in self._running if other is not request)
        if all(other.link.wait_seconds is None for other in others):
            self._arrivals.leave_out_silence(request.touched)  # nothing else was on its way

    def _check_end(self, request: _Request) -> None:
        """The answer has ended: with all that was promised?"""
        if request.whole and request.kept:
            if self._inflate is not None and not self._inflate.eof:
                raise SourceCutOff(f"the compressed body ended early: {self.name}")
            if request.stop is not None and request.at < request.stop:
                raise SourceCutOff(f"{request.at} of {request.stop} bytes came: {self.name}")
            self._finish(request.at)
        elif request.stop is not None and request.at < request.stop:
            raise SourceCutOff(f"the answer ended {request.stop - request.at} bytes early: {self.name}")

    def _finish(self, size: int) -> None:
        self._sparse.finish(size)
        for want in list(self._wants):
            # Of a stream whose length nobody knew: what lies beyond its end is not missing.
            self._wants.remove(want)
            if not want.done.done():
                want.done.set_result(None)

    async def _until_finished(self) -> None:
        want = self._want(ByteRange(0, self._max_bytes + 1))
        try:
            if self._sparse.error is not None:
                raise self._sparse.error
            await want.done
        finally:
            self._withdraw([want])

    # ---- what goes wrong ----

    def _again(self, request: _Request, why: _TryAgain) -> None:
        """Ask again for what is missing, a few times with growing pauses; then it is an error."""
        if "again" not in self._timers:  # what fails together counts once
            self._failed_tries += 1
        pause = self._backoff_seconds * 2 ** (self._failed_tries - 1)
        if why.after_seconds is not None:
            pause = max(pause, why.after_seconds)
        if (request.whole and request.kept) or self._failed_tries > TRIES or pause >= self._deadline.remaining():
            self._give_up(request, why.error)
            return
        self._distrust = self._distrust or request.stalled
        if self._facts is None:
            self._later("again", pause, self._resend_first)
            self._resend.append(request)
        else:
            self._later("again", pause, self._pump)

    def _resend_first(self) -> None:
        """Head and tail again; once the facts are known they are wanted like any other range."""
        failed, self._resend = self._resend, []
        for old in failed if self._facts is None else ():
            self._send(_Request(old.asked, old.suffix, old.whole, placed=old.placed, fresh=self._distrust))
        self._pump()

    def _begin_whole(self) -> None:
        """Neither head nor tail has shown what the file is, and nothing else is under way: ask for it without Range."""
        waiting = self._opened is not None and not self._opened.done()
        if waiting and not self._running and not self._resend and not self._closed:
            self._send(_Request(ByteRange(0, 1), whole=True))

    def _give_up(self, request: _Request, error: SourceError) -> None:
        """A tail that is refused matters only where there is no head: with one, it is asked again by its place."""
        headed = self._facts is not None or self._running != {request} or bool(self._resend)
        if request.suffix and not request.whole and headed and not isinstance(error, SourceChanged):
            return
        self._fail(error)

    def _fail(self, error: SourceError) -> None:
        self._sparse.fail(error)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(error)
        self._cancel_requests()
        wants, self._wants = self._wants, []
        for want in wants:
            if not want.done.done():
                want.done.set_exception(error)

    def _cancel_requests(self) -> None:
        for request in self._running:
            if request.task is not None and request.task is not asyncio.current_task():
                request.task.cancel()

    def _watch_seconds(self) -> float:
        return max(0.02, min(self._stall_seconds, IMPATIENCE_SECONDS) / 4)

    def _watch(self) -> None:
        """Stop requests that have brought nothing for too long; what they lack is asked again."""
        now = asyncio.get_running_loop().time()
        impatience = min(IMPATIENCE_SECONDS + 4 * (self.round_trip_seconds or 0.0), self._stall_seconds)
        flowing = self._arrivals.flowing(now, impatience)
        for request in list(self._running):
            link = request.link
            if link.address == "":
                request.touched = now  # still connecting: that has a limit of its own
            silent = link.warm and link.wait_seconds is None and not (flowing and self._multiplexed)
            limit = impatience if silent else self._stall_seconds
            if now - request.touched > limit and request.task is not None:
                request.stalled = True
                request.task.cancel()
        if self._running:
            self._later("watch", self._watch_seconds(), self._watch)

    def _later(self, name: str, seconds: float, call: object, *, keep: bool = False) -> None:
        """Call once, `seconds` from now; a second call of the same name moves it, or with `keep` changes nothing."""
        if name in self._timers:
            if keep:
                return
            self._timers.pop(name).cancel()

        def run() -> None:
            self._timers.pop(name, None)
            call()  # type: ignore[operator]

        self._timers[name] = asyncio.get_running_loop().call_later(seconds, run)


@dataclass(slots=True)
class _Receiver:
    """Judges one answer and passes its bytes on."""

    source: HttpSource
    request: _Request
    url: str
    redirect: str | None = None
    verdict: BaseException | None = None
    small_talk: int = 0

    def reply(self, reply: Reply) -> None:
        source, request = self.source, self.request
        source._saw_first_byte(request)
        if reply.status == 206 and not request.whole:
            source._take_partial(reply, request)
        elif reply.status == 200:
            source._take_whole(reply, request)
        elif reply.status in REDIRECTS:
            self.redirect = redirect_target(reply, source.name)
        else:
            self.verdict = self._refusal(reply)

    def body(self, data: bytes) -> None:
        self.source._count(self.request, len(data))
        if self.request.kept:
            self.source._take_bytes(self.request, data)
            return
        self.small_talk += len(data)
        if self.small_talk > SMALL_TALK_BYTES:
            raise self.verdict or SourceRefused(f"an endless redirect: {self.source.name}")

    def _refusal(self, reply: Reply) -> BaseException:
        source = self.source
        error = error_for_status(reply, source.name)
        if reply.status in WORTH_ANOTHER_TRY:
            return _TryAgain(error, retry_after_seconds(reply))
        if reply.status == 416:
            return self._unsatisfied(reply, error)
        if source._known is not None and reply.status in (404, 410):
            return SourceChanged(f"gone while it was read ({reply.status}): {source.name}")
        return error

    def _unsatisfied(self, reply: Reply, error: SourceError) -> BaseException:
        """416: an empty file, a suffix it does not know, a file that has shrunk, or a server that lies."""
        source, request = self.source, self.request
        sent = parse_content_range(reply.headers.get("content-range"))
        size = sent.total if sent is not None else None
        if source._known is not None and size is not None and size != source._known.size:
            return SourceChanged(f"size went from {source._known.size} to {size} while it was read: {source.name}")
        if source._facts is not None:
            return _Dropped() if request.suffix else error
        if request.whole:
            return error
        if size == 0:
            source._first_facts(reply, request, 0, True)
            return _Dropped()
        return _Dropped()


def _quietly(future: asyncio.Future[None]) -> None:
    """Nobody may be waiting: an error of this future is not news."""
    with contextlib.suppress(asyncio.CancelledError):
        future.exception()
