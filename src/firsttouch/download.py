"""The guide's `download_video_partial`: the first megabytes of a clip as a file that plays.

A prefix plays only when it holds the index. Where moov comes last, it is fetched too and put in front of the
samples, as `qt-faststart` would have done, with its chunk offsets moved; the file is then an ordinary prefix.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from firsttouch.boxes import Box, children, read_header
from firsttouch.clock import Deadline, Stopwatch
from firsttouch.errors import IndexInvalid, IndexNotFound, SourceTimeout
from firsttouch.index import locate_index
from firsttouch.netpolicy import Policy
from firsttouch.ranges import MEGABYTE, ByteRange
from firsttouch.source import Connections, Source, open_source
from firsttouch.sparse import SparseBytes

TAIL_BYTES = 64 * 1024
DEFAULT_TIMEOUT_SECONDS = 60.0

_CHUNK_OFFSET_BYTES = {b"stco": 4, b"co64": 8}
_ON_THE_WAY = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})

log = logging.getLogger(__name__)


async def download_video_partial(
    url: str | Path,
    max_bytes: int = 4 * MEGABYTE,
    *,
    connections: Connections | None = None,
    policy: Policy | None = None,
    folder: Path | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> Path:
    """Download the first `max_bytes` of a video into a temporary file that plays, and give its path.

    The caller owns the file; on any error, and when cancelled, none is left. A shorter clip comes whole. An
    origin that ignores Range is read only as far as needed: to the end where moov is last. Raises the errors
    of `source` and `index`.
    """
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be positive, got {max_bytes}")
    watch = Stopwatch()
    log.info("Downloading first %.4g MB", max_bytes / MEGABYTE)
    source = open_source(url, connections=connections, policy=policy)
    try:
        async with asyncio.timeout(timeout_seconds):
            sparse = await _fetch(source, max_bytes, Deadline.after(timeout_seconds))
    except TimeoutError as exc:
        raise SourceTimeout(f"the prefix did not come within {timeout_seconds:g} s: {source.name}") from exc
    finally:
        await source.close()
    path = _write(_playable(sparse, max_bytes), _suffix(str(url)), folder)
    log.info("Downloaded %.4g MB in %.1fs", source.bytes_fetched / MEGABYTE, watch.elapsed)
    return path


async def _fetch(source: Source, max_bytes: int, deadline: Deadline) -> SparseBytes:
    """The prefix and the index."""
    facts, sparse = await source.open(head=max_bytes, tail=TAIL_BYTES, deadline=deadline)
    ranges = facts.accepts_ranges and sparse.size is not None
    if not ranges:
        await _stream_until(source, sparse, lambda: _enough(sparse, max_bytes))
    with suppress(IndexNotFound):  # Matroska, MPEG-TS, fragments: a prefix plays as it is
        while (missing := locate_index(sparse)) is not None and ranges:
            await source.fetch(missing)
    if ranges and sparse.size is not None:
        await source.fetch(ByteRange(0, min(max_bytes, sparse.size)))
    return sparse


async def _stream_until(source: Source, sparse: SparseBytes, enough: Callable[[], bool]) -> None:
    """Read from the start until `enough()` or the end, then stop the stream."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    unsubscribe = sparse.subscribe(tell)
    stream = asyncio.ensure_future(source.stream())
    stream.add_done_callback(lambda _: changed.set())
    try:
        while not enough() and not stream.done():
            await changed.wait()
            changed.clear()
        if stream.done():
            stream.result()
    finally:
        unsubscribe()
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)


def _enough(sparse: SparseBytes, max_bytes: int) -> bool:
    """The prefix is there, and the index with it unless the file has none to find."""
    if not sparse.has(ByteRange(0, max_bytes)):
        return False
    moov, walked_to = find_moov(sparse)
    return walked_to is None or (moov is not None and sparse.has(ByteRange(moov.start, moov.stop)))


def find_moov(sparse: SparseBytes) -> tuple[Box | None, int | None]:
    """The moov box, when the bytes that are here lead to it; else where the walk from box to box had to stop.

    (None, None): this is no file of boxes.
    """
    at = 0
    while sparse.has(ByteRange(at, at + 16)):
        try:
            box = read_header(sparse.read(ByteRange(at, at + 16)), 0, at, sparse.size or 1 << 62)
        except IndexInvalid:
            return None, None
        if at == 0 and box.kind not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return None, None
        if box.kind == b"moov":
            return box, at
        at = box.stop
    return None, at


def _playable(sparse: SparseBytes, max_bytes: int) -> list[bytes]:
    """The prefix as it is where it holds the index; otherwise with moov moved in front of the samples."""
    have = sparse.have()
    stop = min(max_bytes, have[0].stop) if have and have[0].start == 0 else 0
    prefix = sparse.read(ByteRange(0, stop)) if stop else b""
    moov, _ = find_moov(sparse)
    if moov is None or moov.stop <= stop or not sparse.has(ByteRange(moov.start, moov.stop)):
        return [prefix]
    samples_end = min(stop, moov.start)
    first = read_header(prefix[:16], 0, 0, stop)
    at = min(first.stop, samples_end) if first.kind == b"ftyp" else 0
    index = bytearray(sparse.read(ByteRange(moov.start, moov.stop)))
    _move_chunks(index, Box(b"moov", 0, moov.body - moov.start, len(index)), len(index))
    return [prefix[:at], bytes(index), prefix[at:samples_end]]


def _move_chunks(moov: bytearray, parent: Box, distance: int) -> None:
    """Add `distance` to every chunk offset under `parent`; one too large for its field lies far off."""
    for box in children(moov, parent):
        if box.kind in _ON_THE_WAY:
            _move_chunks(moov, box, distance)
        elif box.kind in _CHUNK_OFFSET_BYTES:
            width = _CHUNK_OFFSET_BYTES[box.kind]
            body = slice(box.body + 8, box.stop - (box.stop - box.body - 8) % width)
            offsets = np.frombuffer(bytes(moov[body]), f">u{width}").astype(np.uint64)
            moved = np.minimum(offsets + np.uint64(distance), np.uint64(256**width - 1))
            moov[body] = moved.astype(f">u{width}").tobytes()


def _suffix(url: str) -> str:
    return PurePosixPath(urlsplit(url).path).suffix[:8] or ".mp4"


def _write(parts: list[bytes], suffix: str, folder: Path | None) -> Path:
    """A new temporary file; removed again when writing fails (a full disk)."""
    handle, name = tempfile.mkstemp(suffix, "firsttouch-", folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
