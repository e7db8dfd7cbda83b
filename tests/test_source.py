"""One contract for every source, and what each fault of an origin becomes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.origin import IDLE_SECONDS, Fault, Origin
from firsttouch.clock import Deadline
from firsttouch.errors import (
    AddressRefused,
    RangeNotSupported,
    SourceChanged,
    SourceCutOff,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTimeout,
    SourceTooLarge,
    UnsupportedScheme,
)
from firsttouch.netpolicy import Policy
from firsttouch.ranges import ByteRange, gaps
from firsttouch.source import Connections, Facts, FileSource, HttpSource, MemorySource, Source, open_source
from firsttouch.source.arrivals import Arrivals
from firsttouch.source.replies import Reply, fit_to_show, identity_of, parse_content_range
from firsttouch.source.schedule import Pace, next_piece
from firsttouch.sparse import SparseBytes

SIZE = 600_000
DATA = random.Random(7).randbytes(SIZE)
SMALL = DATA[:90_000]
NAME = "clip.mp4"
LONG = 20.0
"""A deadline no healthy test comes near, however loaded the machine."""

Make = Callable[..., Source]


@pytest.fixture(scope="module")
def plain() -> Iterator[Origin]:
    files = {NAME: DATA, "small.mp4": SMALL, "empty.mp4": b"", "moved.mp4": DATA, "bomb.mp4": bytes(5_000_000)}
    with Origin(files) as origin:
        yield origin


@pytest.fixture(scope="module")
def secure() -> Iterator[Origin]:
    with Origin({NAME: DATA, "small.mp4": SMALL, "empty.mp4": b""}, tls=True) as origin:
        yield origin


@pytest.fixture
def origin(plain: Origin) -> Iterator[Origin]:
    plain.reset()
    yield plain
    for name in (NAME, "small.mp4", "empty.mp4", "moved.mp4", "bomb.mp4"):
        plain.fault(name, None)
    plain.shape(bandwidth=0.0, rtt=0.0, idle_seconds=IDLE_SECONDS)


@pytest.fixture(params=["file", "memory", "memory stream", "http", "http no ranges", "http no length", "http2"])
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a source of some bytes the way the parameter says."""
    files = {NAME: DATA, "small.mp4": SMALL, "empty.mp4": b""}
    kind: str = request.param

    def make(name: str = NAME, **options: Any) -> Source:
        if kind == "file":
            (tmp_path / name).write_bytes(files[name])
            return FileSource(tmp_path / name, **options)
        if kind.startswith("memory"):
            return MemorySource(files[name], accepts_ranges=kind == "memory", **options)
        origin = request.getfixturevalue("secure" if kind == "http2" else "origin")
        if kind == "http2":
            monkeypatch.setenv("SSL_CERT_FILE", str(origin.certificate))
        if kind != "http" and kind != "http2":
            origin.fault(name, Fault(ignore_range=True, no_length=kind == "http no length"))
        return HttpSource(origin.url(name), **options)

    return make


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a test's coroutine; a test that hangs fails."""

    async def limited() -> Any:
        async with asyncio.timeout(LONG):
            return await work

    return asyncio.run(limited())


async def opened(source: Source, **options: Any) -> tuple[Facts, SparseBytes]:
    return await source.open(deadline=Deadline.after(LONG), **options)


def used(source: Source, work: Callable[[Source], Awaitable[Any]]) -> Any:
    """What `work` returns, with the source closed after it."""

    async def go() -> Any:
        try:
            return await work(source)
        finally:
            await source.close()

    return run(go())


# ---- the contract, on every kind ----


def test_what_is_fetched_is_what_the_file_holds(make: Make) -> None:
    async def work(source: Source) -> None:
        facts, sparse = await opened(source, head=1000, tail=2000)
        for part in (ByteRange(0, 1000), ByteRange(300_001, 300_002), ByteRange(123_456, 500_000)):
            await source.fetch(part)
            assert sparse.read(part) == DATA[part.start : part.stop]
        if facts.accepts_ranges:
            assert facts.size_bytes == sparse.size == SIZE

    used(make(), work)


def test_head_and_tail_come_without_being_asked_again(make: Make) -> None:
    async def work(source: Source) -> None:
        facts, sparse = await opened(source, head=1000, tail=2000)
        if facts.accepts_ranges:
            await source.fetch_all([ByteRange(0, 1000), ByteRange(SIZE - 2000, SIZE)])
            assert source.requests == 2
            assert source.bytes_fetched == 3000
            assert sparse.have() == [ByteRange(0, 1000), ByteRange(SIZE - 2000, SIZE)]

    used(make(), work)


def test_bytes_at_hand_are_not_asked_again(make: Make) -> None:
    async def work(source: Source) -> None:
        await opened(source, head=1000, tail=1000)
        await source.fetch(ByteRange(0, 400_000))
        before = source.requests
        await source.fetch(ByteRange(1000, 399_000))
        assert source.requests == before

    used(make(), work)


def test_the_whole_file_streams_and_is_fetched_once(make: Make) -> None:
    async def work(source: Source) -> None:
        _, sparse = await opened(source)
        await source.stream()
        assert sparse.complete
        assert sparse.size == SIZE
        assert sparse.read(ByteRange(0, SIZE)) == DATA
        assert source.bytes_fetched <= SIZE * 1.01
        await source.stream()

    used(make(), work)


def test_many_ranges_at_once_and_overlapping(make: Make) -> None:
    parts = [ByteRange(start, start + 9_000) for start in range(500_000, 0, -7_000)]

    async def work(source: Source) -> None:
        _, sparse = await opened(source, head=1000, tail=1000)
        await asyncio.gather(source.fetch_all(parts), source.fetch_all(parts[::-2]), source.fetch(parts[3]))
        assert all(sparse.read(part) == DATA[part.start : part.stop] for part in parts)
        assert source.bytes_fetched <= SIZE * 1.01

    used(make(), work)


def test_a_range_is_cut_to_the_file(make: Make) -> None:
    async def work(source: Source) -> None:
        facts, sparse = await opened(source)
        await source.fetch(ByteRange(SIZE - 10, SIZE + 1000))
        assert sparse.read(ByteRange(SIZE - 10, SIZE)) == DATA[-10:]
        if facts.size_bytes is not None:
            with pytest.raises(ValueError, match="outside"):
                await source.fetch(ByteRange(SIZE, SIZE + 1))

    used(make(), work)


def test_head_and_tail_of_a_small_file_come_once(make: Make) -> None:
    async def work(source: Source) -> None:
        _, sparse = await opened(source)
        await source.stream()
        assert sparse.read(ByteRange(0, len(SMALL))) == SMALL
        assert source.bytes_fetched <= len(SMALL) * 1.1

    used(make("small.mp4"), work)


def test_an_empty_file_has_no_bytes(make: Make) -> None:
    async def work(source: Source) -> None:
        _, sparse = await opened(source)
        await source.stream()
        assert sparse.size == 0
        assert sparse.complete

    used(make("empty.mp4"), work)


def test_a_file_larger_than_allowed_is_refused(make: Make) -> None:
    async def work(source: Source) -> None:
        with pytest.raises(SourceTooLarge):  # noqa: PT012  a stream shows its size only later
            await opened(source)
            await source.stream()
        assert source.bytes_fetched < SIZE

    used(make(max_bytes=SIZE // 4), work)


def test_fetching_before_opening_is_a_mistake(make: Make) -> None:
    async def work(source: Source) -> None:
        with pytest.raises(RuntimeError, match="open"):
            await source.fetch(ByteRange(0, 1))

    used(make(), work)


def test_closing_twice_is_fine_and_what_came_stays(make: Make) -> None:
    async def work(source: Source) -> SparseBytes:
        _, sparse = await opened(source, head=1000)
        await source.fetch(ByteRange(0, 1000))
        await source.close()
        return sparse

    sparse = used(make(), work)
    assert sparse.read(ByteRange(0, 1000)) == DATA[:1000]
    assert sparse.closed


def test_a_cancelled_fetch_leaves_the_source_usable(make: Make) -> None:
    async def work(source: Source) -> None:
        _, sparse = await opened(source, head=1000, tail=1000)
        fetching = asyncio.create_task(source.fetch(ByteRange(0, SIZE)))
        await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)  # what is there already needs no cancelling
        await source.fetch(ByteRange(200_000, 300_000))
        assert sparse.read(ByteRange(200_000, 300_000)) == DATA[200_000:300_000]

    used(make(), work)


# ---- names ----


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("ftp://host/clip.mp4", UnsupportedScheme),
        ("rtmp://host/clip", UnsupportedScheme),
        ("", SourceNotFound),
        ("no/such/clip.mp4", SourceNotFound),
        ("/", UnsupportedScheme),
        ("/dev/zero", UnsupportedScheme),
        ("bad\0name", SourceRefused),
        ("http://127.0.0.1:1/clip.mp4", SourceRefused),
        ("http://no-such-host.invalid/clip.mp4", SourceRefused),
        ("http://[broken/clip.mp4", SourceRefused),
        ("http:///clip.mp4", SourceRefused),
    ],
)
def test_a_name_that_cannot_be_read_is_a_typed_error(name: str, error: type[SourceError]) -> None:
    async def go() -> None:
        source = open_source(name)
        try:
            await opened(source)
        finally:
            await source.close()

    with pytest.raises(error) as caught:
        run(go())
    assert caught.value.hint


def test_a_file_url_and_a_path_are_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a clip.mp4"
    path.write_bytes(SMALL)
    for name in (path, str(path), path.as_uri()):
        source = open_source(name)
        assert used(source, lambda source: opened(source))[0].size_bytes == len(SMALL)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsupportedScheme):
        used(FileSource(tmp_path / "pipe"), lambda source: opened(source))


def test_a_file_written_to_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(DATA)

    async def work(source: Source) -> None:
        _, sparse = await opened(source, head=1000, tail=1000)
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(SourceChanged):
            await source.fetch(ByteRange(0, SIZE))
        assert isinstance(sparse.error, SourceChanged)

    used(FileSource(path), work)


def test_user_and_query_of_a_url_are_not_shown() -> None:
    assert fit_to_show("https://me:secret@host:8/a/b.mp4?sig=123#x") == "https://host:8/a/b.mp4?..."


# ---- what answers mean ----


@pytest.mark.parametrize(
    ("text", "part", "total"),
    [
        ("bytes 0-99/1000", ByteRange(0, 100), 1000),
        ("bytes 5-5/*", ByteRange(5, 6), None),
        ("Bytes  0-0/1 ", ByteRange(0, 1), 1),
        ("bytes */77", None, 77),
    ],
)
def test_content_range_is_read(text: str, part: ByteRange | None, total: int | None) -> None:
    found = parse_content_range(text)
    assert found is not None
    assert (found.part, found.total) == (part, total)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "bytes",
        "bytes 5-4/10",
        "bytes 0-10/10",
        "bytes 0-9",
        "lines 0-9/10",
        "bytes -1-5/10",
        "bytes 0-1e3/2000",
    ],
)
def test_content_range_that_makes_no_sense_is_none(text: str | None) -> None:
    assert parse_content_range(text) is None


def test_only_strong_validators_are_sent_back() -> None:
    def if_range(**headers: str) -> str | None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return identity_of(Reply("http://host/", 206, named), 10).if_range

    noon, later = "Mon, 01 Jan 2024 12:00:00 GMT", "Mon, 01 Jan 2024 12:00:30 GMT"
    assert if_range(etag='"x"', last_modified=noon, date=later) == '"x"'
    assert if_range(etag='W/"x"', last_modified=noon) is None
    assert if_range(last_modified=noon, date="Mon, 01 Jan 2024 13:00:00 GMT") == noon
    assert if_range(last_modified=noon, date=later) is None
    assert if_range(last_modified="yesterday", date=later) is None


# ---- what is asked next ----


UNKNOWN = Pace(None, None, 8)


def asked_for(
    *wanted: tuple[int, int],
    have: Sequence[tuple[int, int]] = (),
    coming: Sequence[tuple[int, int]] = (),
    pace: Pace = UNKNOWN,
) -> tuple[int, int] | None:
    def missing(part: ByteRange) -> list[ByteRange]:
        return gaps(part, [ByteRange(*pair) for pair in have])

    flying = [ByteRange(*pair) for pair in coming]
    piece = next_piece([ByteRange(*pair) for pair in wanted], missing, flying, pace)
    return (piece.start, piece.stop) if piece is not None else None


def test_the_most_wanted_is_asked_first_wherever_it_lies() -> None:
    assert asked_for((900_000, 950_000), (0, 50_000)) == (900_000, 950_000)


def test_what_is_there_or_coming_is_not_asked() -> None:
    assert asked_for((0, 100), (500_000, 500_100), have=[(0, 60)], coming=[(60, 100)]) == (500_000, 500_100)
    assert asked_for((0, 100), have=[(0, 60)], coming=[(50, 100)]) is None
    assert asked_for((0, 100), have=[(30, 60)]) == (0, 30)


def test_a_long_range_is_cut_and_a_short_remainder_comes_along() -> None:
    assert asked_for((0, 5_000_000)) == (0, 512 * 1024)
    assert asked_for((0, 530_000)) == (0, 530_000)


def test_a_slow_link_gets_short_requests_and_little_ahead() -> None:
    slow, fast = Pace(1.65e6, 0.1, 8), Pace(12.5e6, 0.03, 8)
    assert asked_for((0, 5_000_000), pace=slow) == (0, 132_000)
    assert slow.flight_bytes == pytest.approx(1.65e6 * 0.3)
    assert fast.flight_bytes == pytest.approx(12.5e6 * 0.16)
    assert Pace(10e3, 0.1, 8).flight_bytes == 192 * 1024


def test_neighbours_share_a_request_across_a_small_gap_only() -> None:
    assert asked_for((0, 1000), (3000, 4000), (100_000, 101_000)) == (0, 4000)
    assert asked_for((0, 1000), (90_000, 91_000), pace=Pace(12.5e6, 0.1, 8)) == (0, 1000)
    assert asked_for((0, 1000), (60_000, 61_000), pace=Pace(12.5e6, 0.1, 8)) == (0, 61_000)


def test_a_shared_request_never_runs_over_bytes_at_hand() -> None:
    assert asked_for((0, 1000), (3000, 4000), have=[(1500, 1600)]) == (0, 1000)
    assert asked_for((0, 1000), (3000, 4000), coming=[(2000, 2100)]) == (0, 1000)


def test_what_is_wanted_much_later_does_not_delay_what_is_wanted_now() -> None:
    between = [(10_000_000 + i * 1_000_000, 10_000_100 + i * 1_000_000) for i in range(30)]
    assert asked_for((0, 1000), *between, (1000, 2000)) == (0, 1000)


# ---- faults of an origin ----


async def fetch_everything(source: Source) -> SparseBytes:
    _, sparse = await opened(source, head=1000, tail=1000)
    try:
        await source.fetch_all([ByteRange(start, start + 50_000) for start in range(0, SIZE, 50_000)])
    finally:
        for part in sparse.have():  # whatever went wrong: no wrong byte
            assert sparse.read(part) == DATA[part.start : part.stop]
    return sparse


FATAL = [
    ("not found", Fault(status=404), SourceNotFound),
    ("gone", Fault(status=410), SourceNotFound),
    ("unauthorized", Fault(status=401), SourceRefused),
    ("forbidden", Fault(status=403), SourceRefused),
    ("broken for good", Fault(status=500), SourceRefused),
    ("away for long", Fault(status=503, retry_after=3600), SourceRefused),
    ("teapot", Fault(status=418), SourceRefused),
    ("redirect to nowhere", Fault(redirect=""), SourceRefused),
    ("redirect to itself", Fault(redirect="/clip.mp4"), SourceRefused),
    ("redirect to another scheme", Fault(redirect="file:///etc/passwd"), UnsupportedScheme),
    ("gone later", Fault(status=404, after=2), SourceChanged),
    ("changed later", Fault(change=True, after=2), SourceChanged),
    ("another part than asked", Fault(range_shift=7), RangeNotSupported),
    ("another part later", Fault(range_shift=7, after=2), RangeNotSupported),
    ("another total later", Fault(total_lie=100, after=2), SourceChanged),
    ("a shorter file later", Fault(total_lie=-400_000, after=2), SourceError),
    ("length and range disagree", Fault(length_lie=5), RangeNotSupported),
    ("no range any more", Fault(ignore_range=True, after=2), RangeNotSupported),
    ("416 inside the file", Fault(status=416, after=2), RangeNotSupported),
    ("416 whatever is asked", Fault(status=416), RangeNotSupported),
    ("crumbs", Fault(short_range=3), RangeNotSupported),
    ("more bytes than promised", Fault(extra_bytes=50, no_length=True, after=2), RangeNotSupported),
    ("cut every time", Fault(cut_after=100, after=2), SourceCutOff),
    ("stalled every time", Fault(stall_after=100, after=2), SourceTimeout),
    ("compressed parts", Fault(encoding="gzip", after=2), RangeNotSupported),
    ("unreadable encoding", Fault(encoding="br"), SourceRefused),
]


@pytest.mark.parametrize(("fault", "error"), [pytest.param(f, e, id=name) for name, f, e in FATAL])
def test_a_fault_for_good_is_a_typed_error_and_never_a_wrong_byte(
    origin: Origin, fault: Fault, error: type[SourceError]
) -> None:
    origin.fault(NAME, fault)
    source = HttpSource(origin.url(NAME), stall_seconds=0.08, backoff_seconds=0.01)
    with pytest.raises(error) as caught:
        used(source, fetch_everything)
    assert caught.value.hint
    assert NAME in str(caught.value)


PASSING = [
    ("503 then well", Fault(status=503, times=3)),
    ("503 in the middle", Fault(status=503, after=4, times=2)),
    ("429 with Retry-After 0", Fault(status=429, retry_after=0, after=2, times=1)),
    ("cut once", Fault(cut_after=20_000, after=2, times=1)),
    ("cut at once", Fault(cut_after=0, times=1)),
    ("stalled once", Fault(stall_after=20_000, after=2, times=1)),
    ("stalled in the first answer", Fault(stall_after=0, times=1)),
    ("no suffix ranges", Fault(no_suffix=True)),
    ("shorter parts than asked", Fault(short_range=30_000)),
    ("parts without a length", Fault(no_length=True)),
    ("weak ETag", Fault(weak_etag=True)),
    ("no ETag", Fault(no_etag=True)),
    ("drip", Fault(drip_bytes_per_second=2e6)),
    ("slow headers", Fault(slow_headers=0.05)),
    ("200 for a while in the middle", Fault(status=502, after=3, times=1)),
]


@pytest.mark.parametrize("fault", [pytest.param(fault, id=name) for name, fault in PASSING])
def test_a_fault_that_passes_is_got_over_and_only_what_lacks_is_asked_again(origin: Origin, fault: Fault) -> None:
    origin.fault(NAME, fault)
    source = HttpSource(origin.url(NAME), stall_seconds=0.25, backoff_seconds=0.01)
    sparse = used(source, fetch_everything)
    assert sparse.complete
    assert source.bytes_fetched <= SIZE * 1.1
    assert sparse.read(ByteRange(0, SIZE)) == DATA


def any_fault(dice: random.Random) -> Fault:
    """Some of everything that can go wrong, for a while or for good."""
    choices: dict[str, list[Any]] = {
        "status": [404, 500, 503, 416, 403, 204, 206, 304],
        "retry_after": [0],
        "stall_after": [0, 10, 30_000],
        "cut_after": [0, 10, 30_000],
        "length_lie": [-5, 5],
        "range_shift": [1, -1],
        "total_lie": [-5, 5, -100_000],
        "extra_bytes": [9],
        "encoding": ["gzip", "br"],
        "no_length": [True],
        "ignore_range": [True],
        "no_suffix": [True],
        "slow_headers": [0.01, 0.2],
        "short_range": [1, 5000, 40_000],
        "weak_etag": [True],
        "no_etag": [True],
    }
    names = dice.sample(sorted(choices), dice.choice([1, 1, 2, 3]))
    chosen = {name: dice.choice(choices[name]) for name in names}
    return Fault(**chosen, times=dice.choice([None, 1, 2, 3]), after=dice.choice([0, 0, 1, 2, 4]))


@pytest.mark.parametrize("seed", range(30))
def test_whatever_an_origin_does_ends_in_right_bytes_or_a_typed_error(origin: Origin, seed: int) -> None:
    dice = random.Random(seed)
    fault = any_fault(dice)
    origin.fault(NAME, fault)

    async def work(source: Source) -> None:
        ends = [dice.choice([1, 1000, 65_536, 700_000]) for _ in range(2)]
        _, sparse = await opened(source, head=ends[0], tail=ends[1])
        starts = [dice.randrange(SIZE // 2) for _ in range(dice.randrange(1, 12))]
        try:
            hasty = asyncio.create_task(source.fetch(ByteRange(starts[0], SIZE)))
            await asyncio.sleep(dice.random() * 0.02)
            hasty.cancel()
            await asyncio.gather(hasty, return_exceptions=True)
            await source.fetch_all([ByteRange(start, start + dice.randrange(1, 90_000)) for start in starts])
        finally:
            for part in sparse.have():
                assert sparse.read(part) == DATA[part.start : part.stop]

    source = HttpSource(origin.url(NAME), stall_seconds=0.1, backoff_seconds=0.005, max_bytes=2 * SIZE)
    with contextlib.suppress(SourceError):
        used(source, work)
    assert source.bytes_fetched <= SIZE * 1.1


@pytest.mark.parametrize("fault", [Fault(encoding="gzip"), Fault(encoding="gzip", ignore_range=True)])
def test_a_compressed_file_is_streamed_and_inflated(origin: Origin, fault: Fault) -> None:
    origin.fault(NAME, fault)

    async def work(source: Source) -> None:
        facts, sparse = await opened(source)
        assert not facts.accepts_ranges
        assert facts.size_bytes is None
        await source.stream()
        assert sparse.read(ByteRange(0, SIZE)) == DATA
        assert source.bytes_fetched < len(gzip.compress(DATA, 1)) * 1.2

    used(HttpSource(origin.url(NAME)), work)


def test_a_compressed_bomb_is_too_large(origin: Origin) -> None:
    origin.fault("bomb.mp4", Fault(encoding="gzip", ignore_range=True))

    async def work(source: Source) -> SparseBytes:
        _, sparse = await opened(source)
        with pytest.raises(SourceTooLarge):
            await source.stream()
        return sparse

    sparse = used(HttpSource(origin.url("bomb.mp4"), max_bytes=1_000_000), work)
    assert all(part.stop <= 1_000_000 for part in sparse.have())


@pytest.mark.parametrize("fault", [Fault(no_suffix=True, cut_after=10, times=2), Fault(range_shift=1, times=1)])
def test_a_tail_of_another_kind_than_the_head_confuses_nobody(origin: Origin, fault: Fault) -> None:
    for _ in range(4):  # head and tail race
        origin.fault("small.mp4", fault)

        async def work(source: Source) -> None:
            try:
                _, sparse = await opened(source)
                await source.stream()
                assert sparse.read(ByteRange(0, len(SMALL))) == SMALL
            except (SourceCutOff, RangeNotSupported):
                pass
            assert source.bytes_fetched <= len(SMALL) * 1.1

        used(HttpSource(origin.url("small.mp4"), backoff_seconds=0.01), work)


def test_a_stream_that_is_cut_off_fails_and_says_so_to_its_readers(origin: Origin) -> None:
    origin.fault(NAME, Fault(ignore_range=True, cut_after=200_000))

    async def work(source: Source) -> SparseBytes:
        _, sparse = await opened(source)
        with pytest.raises(SourceCutOff):
            await source.stream()
        return sparse

    sparse = used(HttpSource(origin.url(NAME)), work)
    assert isinstance(sparse.error, SourceCutOff)
    assert sparse.read(ByteRange(0, 100_000)) == DATA[:100_000]


def test_an_origin_without_ranges_is_asked_once_and_its_body_goes_on(origin: Origin) -> None:
    origin.fault(NAME, Fault(ignore_range=True))

    async def work(source: Source) -> None:
        facts, sparse = await opened(source)
        assert not facts.accepts_ranges
        assert facts.size_bytes == SIZE
        await asyncio.to_thread(sparse.wait, ByteRange(0, SIZE), Deadline.after(LONG))
        assert sparse.complete
        assert source.requests == 2  # head and tail, side by side

    used(HttpSource(origin.url(NAME)), work)


def test_an_origin_that_says_nothing_is_a_timeout_at_the_deadline(origin: Origin) -> None:
    origin.fault(NAME, Fault(slow_headers=30))

    async def work(source: Source) -> float:
        begun = time.monotonic()
        with pytest.raises(SourceTimeout):
            await source.open(deadline=Deadline.after(0.15))
        return time.monotonic() - begun

    assert used(HttpSource(origin.url(NAME)), work) < 2.0


def test_an_origin_that_stalls_before_its_first_answer_is_asked_again(origin: Origin) -> None:
    origin.fault(NAME, Fault(slow_headers=30, times=2))
    sparse = used(HttpSource(origin.url(NAME), stall_seconds=0.2), fetch_everything)
    assert sparse.complete


def test_redirects_are_followed_and_the_last_url_is_asked_from_then_on(origin: Origin) -> None:
    origin.fault("moved.mp4", Fault(redirect=f"/{NAME}"))

    async def work(source: Source) -> Facts:
        facts, sparse = await opened(source, head=1000, tail=1000)
        await source.fetch(ByteRange(0, 300_000))
        assert sparse.read(ByteRange(0, 300_000)) == DATA[:300_000]
        return facts

    assert used(HttpSource(origin.url("moved.mp4")), work).url == origin.url(NAME)
    asked = [path for _, path, _, _ in origin.counts().log]
    assert asked.count("/moved.mp4") == 2
    assert asked.count(f"/{NAME}") >= 3


def test_head_and_tail_are_asked_in_one_round_trip(origin: Origin) -> None:
    origin.shape(rtt=0.4)

    async def work(source: Source) -> float:
        begun = time.monotonic()
        await opened(source, head=1000, tail=1000)
        await source.fetch_all([ByteRange(0, 1000), ByteRange(SIZE - 1000, SIZE)])
        return time.monotonic() - begun

    took = [used(HttpSource(origin.url(NAME)), work) for _ in range(2)]
    assert 0.4 <= min(took) < 0.8


def test_the_etag_is_sent_back(origin: Origin) -> None:
    used(HttpSource(origin.url(NAME)), fetch_everything)
    statuses = {status for _, _, _, status in origin.counts().log}
    assert statuses == {206}


# ---- the net policy ----


def test_a_private_address_is_refused_before_anything_connects(origin: Origin) -> None:
    with pytest.raises(AddressRefused):
        used(HttpSource(origin.url(NAME), policy=Policy()), lambda source: opened(source))
    assert origin.counts().requests == 0


def test_each_redirect_is_judged(origin: Origin) -> None:
    origin.fault("moved.mp4", Fault(redirect="http://169.254.169.254/latest/meta-data"))
    with pytest.raises(AddressRefused, match=r"169\.254"):
        used(HttpSource(origin.url("moved.mp4"), policy=Policy(allow_private=True)), lambda source: opened(source))


def test_the_judged_address_is_the_one_connected_to(origin: Origin) -> None:
    """The name means what the policy's resolver says, and nothing else is asked."""

    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    policy = Policy(allow_private=True, resolve=resolve)
    source = HttpSource(f"http://clips.example:{origin.port}/{NAME}", policy=policy)
    assert used(source, fetch_everything).complete
    assert asked == [("clips.example", origin.port)]


def test_a_connection_to_another_address_is_not_used_again(origin: Origin) -> None:
    """Warm connections to a name do not get around the judgement of its next address."""

    async def go() -> None:
        async def first(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async def second(host: str, port: int) -> list[str]:
            return ["127.0.0.2"]

        url = f"http://clips.example:{origin.port}/{NAME}"
        async with Connections() as connections:
            one = HttpSource(url, connections=connections, policy=Policy(allow_private=True, resolve=first))
            await fetch_everything(one)
            await one.close()
            two = HttpSource(url, connections=connections, policy=Policy(allow_private=True, resolve=second))
            with pytest.raises(SourceRefused):  # nobody listens there
                await opened(two)
            await two.close()

    run(go())


def test_the_next_address_is_tried_when_one_does_not_answer(origin: Origin) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    policy = Policy(allow_private=True, resolve=resolve)
    source = HttpSource(f"http://clips.example:{origin.port}/{NAME}", policy=policy)
    assert used(source, fetch_everything).complete


# ---- connections ----


@pytest.mark.parametrize("kind", ["http", "http2"])
def test_a_warm_connection_is_used(
    kind: str, origin: Origin, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = origin if kind == "http" else request.getfixturevalue("secure")
    if server.certificate is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))

    async def go() -> None:
        async with Connections() as connections:
            assert await connections.warm([server.base]) == {server.base: None}
            server.reset()
            async with HttpSource(server.url(NAME), connections=connections) as source:
                facts, sparse = await opened(source)
                await source.stream()
                assert facts.warm
                assert sparse.complete
        assert server.counts().connections == 0

    run(go())


def test_the_pace_of_a_link_is_that_of_the_last_half_second_in_which_bytes_came() -> None:
    arrivals = Arrivals()
    for number in range(11):
        arrivals.add(number / 10, 1000 if number < 5 else 4000)
    assert arrivals.bytes_per_second == pytest.approx(40_000)
    arrivals.add(3.0, 1)
    assert arrivals.bytes_per_second is None
    arrivals.add(3.1, 500)
    assert arrivals.bytes_per_second == pytest.approx(5000)


def test_a_round_trip_of_silence_is_not_taken_for_a_slow_link(origin: Origin) -> None:
    origin.shape(bandwidth=16e6, rtt=0.12)

    async def go() -> None:
        async with HttpSource(origin.url(NAME)) as source:
            await opened(source, head=160_000, tail=0)
            await source.fetch(ByteRange(0, 160_000))
            await source.fetch(ByteRange(400_000, 560_000))
            assert source.bytes_per_second is not None
            # With the silence 0.32 MB would have taken 0.28 s, which is 1.1 MB/s.
            assert source.bytes_per_second > 1.4e6

    run(go())


def test_warm_connections_outlive_the_origins_patience(origin: Origin) -> None:
    origin.shape(idle_seconds=0.8)

    async def go() -> None:
        async with Connections() as connections:
            await connections.warm([origin.base], again_after_seconds=0.1)
            await asyncio.sleep(1.1)
            async with HttpSource(origin.url(NAME), connections=connections) as source:
                facts, _ = await opened(source)
                assert facts.warm

    run(go())


def test_an_origin_that_comes_back_is_warm_again(origin: Origin) -> None:
    async def go() -> None:
        async with Connections() as connections:
            await connections.warm([origin.base], again_after_seconds=0.1)
            origin.drop()
            async with HttpSource(origin.url(NAME), connections=connections) as source:
                await fetch_everything(source)
            origin.reset()
            await asyncio.sleep(0.25)
            assert origin.counts().requests > 0

    run(go())


def test_origins_that_cannot_be_warmed_are_named_and_harm_nobody(origin: Origin) -> None:
    async def go() -> None:
        async with Connections() as connections:
            outcome = await connections.warm([origin.base, "http://127.0.0.1:1", "nonsense"])
            assert outcome[origin.base] is None
            assert isinstance(outcome["http://127.0.0.1:1"], SourceRefused)
            assert isinstance(outcome["nonsense"], UnsupportedScheme)

    run(go())


def test_a_dead_warm_connection_costs_little(origin: Origin) -> None:
    """The connection is there but nothing answers on it: a fresh one is tried soon."""

    async def go() -> float:
        async with Connections() as connections:
            await connections.warm([origin.base])
            origin.fault(NAME, Fault(slow_headers=30, times=2))
            begun = time.monotonic()
            async with HttpSource(origin.url(NAME), connections=connections) as source:
                await fetch_everything(source)
            return time.monotonic() - begun

    assert run(go()) < 2.5


# ---- cancelling ----


@pytest.mark.parametrize("kind", ["http", "http2"])
def test_cancelling_returns_at_once_and_harms_nobody(
    kind: str, origin: Origin, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = origin if kind == "http" else request.getfixturevalue("secure")
    if server.certificate is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    server.shape(bandwidth=4e6)

    async def go() -> float:
        async with Connections() as connections, HttpSource(server.url(NAME), connections=connections) as source:
            _, sparse = await opened(source, head=1000, tail=1000)
            other = asyncio.create_task(source.fetch(ByteRange(500_000, 560_000)))
            doomed = asyncio.create_task(source.fetch(ByteRange(1000, 450_000)))
            await asyncio.sleep(0.1)
            server.reset()
            begun = time.monotonic()
            doomed.cancel()
            with pytest.raises(asyncio.CancelledError):
                await doomed
            took = time.monotonic() - begun
            await other
            assert sparse.read(ByteRange(500_000, 560_000)) == DATA[500_000:560_000]
            await asyncio.sleep(0.1)
            stopped_at = source.bytes_fetched
            await asyncio.sleep(0.1)
            assert source.bytes_fetched == stopped_at
            if kind == "http2":
                await source.fetch(ByteRange(400_000, 410_000))
                assert server.counts().connections == 0  # the one there was has lived on
            return took

    try:
        assert min(run(go()) for _ in range(2)) < 0.05  # twice: a busy machine may take a nap in between
    finally:
        server.shape(bandwidth=0.0)


def test_a_new_plan_that_wants_the_same_bytes_keeps_what_flows(origin: Origin) -> None:
    origin.fault(NAME, Fault(slow_headers=0.1, after=2))

    async def work(source: Source) -> None:
        await opened(source, head=1000, tail=1000)
        await source.fetch_all([ByteRange(0, 1000), ByteRange(SIZE - 1000, SIZE)])
        first = asyncio.create_task(source.fetch(ByteRange(100_000, 200_000)))
        await asyncio.sleep(0.03)
        first.cancel()
        await source.fetch_all([ByteRange(100_000, 200_000)])
        assert source.requests == 3

    used(HttpSource(origin.url(NAME)), work)
    assert origin.counts().aborted == 0


def test_closing_in_the_middle_returns_at_once_and_leaves_no_descriptor(origin: Origin) -> None:
    origin.shape(bandwidth=4e6)

    async def go() -> float:
        source = HttpSource(origin.url(NAME))
        await opened(source)
        fetching = asyncio.create_task(source.stream())
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        await source.close()
        took = time.monotonic() - begun
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert len(asyncio.all_tasks()) <= 2  # this one and its time limit
        return took

    run(go())
    before = len(os.listdir("/proc/self/fd"))
    assert min(run(go()) for _ in range(2)) < 0.05
    assert len(os.listdir("/proc/self/fd")) <= before


def test_no_descriptor_is_left_by_errors_and_streams(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(DATA)

    def all_kinds() -> None:
        for fault in (Fault(), Fault(status=404), Fault(ignore_range=True), Fault(cut_after=10, after=2)):
            origin.fault(NAME, fault)
            try:
                used(HttpSource(origin.url(NAME), stall_seconds=0.08, backoff_seconds=0.01), fetch_everything)
            except SourceError:
                continue
        used(FileSource(tmp_path / NAME), fetch_everything)
        with pytest.raises(UnsupportedScheme):
            used(FileSource(tmp_path), lambda source: opened(source))

    all_kinds()
    before = len(os.listdir("/proc/self/fd"))
    all_kinds()
    assert len(os.listdir("/proc/self/fd")) <= before
