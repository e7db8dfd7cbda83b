"""Bytes that are here already: a file, or memory. The same contract as a URL, without the waiting."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from firsttouch.clock import Deadline
from firsttouch.errors import (
    SourceChanged,
    SourceCutOff,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    UnsupportedScheme,
)
from firsttouch.ranges import ByteRange
from firsttouch.source.base import DEFAULT_MAX_BYTES, HEAD_BYTES, TAIL_BYTES, Facts
from firsttouch.sparse import SparseBytes

READ_BYTES = 1024 * 1024
"""One read: long enough to cost nothing, short enough to be cancelled between two."""


class _LocalSource:
    """What a file and a memory share: every range is one read away."""

    def __init__(self, name: str, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.name = name
        self.bytes_fetched = 0
        self.requests = 0
        self.bytes_per_second: float | None = None
        self.round_trip_seconds: float | None = None
        self._max_bytes = max_bytes
        self._sparse: SparseBytes | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> _LocalSource:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def open(
        self, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES, deadline: Deadline
    ) -> tuple[Facts, SparseBytes]:
        """See `Source.open`. The deadline binds nothing here: a read of the disk cannot be hurried."""
        facts = self._look()
        size = facts.size_bytes
        if size is not None and size > self._max_bytes:
            raise SourceTooLarge(f"{size} bytes, at most {self._max_bytes} are read: {self.name}")
        self._sparse = SparseBytes(size)
        if size and facts.accepts_ranges:
            ends = [ByteRange(0, min(max(head, 1), size))]
            if tail > 0:
                ends.append(ByteRange(max(0, size - tail), size))
            await self.fetch_all(ends)
        return facts, self._sparse

    async def fetch(self, byte_range: ByteRange) -> None:
        """See `Source.fetch`."""
        await self.fetch_all([byte_range])

    async def fetch_all(self, ranges: Sequence[ByteRange]) -> None:
        """See `Source.fetch_all`."""
        sparse = self._opened()
        for wanted in ranges:
            await self._read_missing(sparse, self._cut_to_size(wanted))

    async def stream(self) -> None:
        """See `Source.stream`."""
        if self._opened().size:
            await self.fetch(ByteRange(0, self._opened().size or 0))

    async def close(self) -> None:
        """See `Source.close`."""
        if self._sparse is not None and not self._sparse.complete:
            self._sparse.fail(SourceCutOff(f"closed before all of it was read: {self.name}"))

    async def _read_missing(self, sparse: SparseBytes, wanted: ByteRange) -> None:
        """Piece by piece, taking turns with whoever else reads, so that no byte is read twice."""
        self.requests += bool(sparse.missing(wanted))
        while True:
            async with self._turn:
                missing = sparse.missing(wanted)
                if not missing:
                    return
                if sparse.error is not None:
                    raise sparse.error
                start = missing[0].start
                piece = ByteRange(start, min(start + READ_BYTES, missing[0].stop))
                try:
                    if piece.stop > self._max_bytes:
                        raise SourceTooLarge(f"more than {self._max_bytes} bytes: {self.name}")
                    data = await self._read(piece)
                except SourceError as exc:
                    sparse.fail(exc)
                    raise
                self.bytes_fetched += len(data)
                sparse.write(start, data)

    def _opened(self) -> SparseBytes:
        if self._sparse is None:
            raise RuntimeError("open the source before fetching from it")
        return self._sparse

    def _cut_to_size(self, part: ByteRange) -> ByteRange:
        size = self._opened().size
        if size is None or part.stop <= size:
            return part
        if part.start >= size:
            raise ValueError(f"bytes {part.start}..{part.stop} lie outside a file of {size}")
        return ByteRange(part.start, size)

    def _look(self) -> Facts:
        raise NotImplementedError

    async def _read(self, piece: ByteRange) -> bytes:
        raise NotImplementedError


class FileSource(_LocalSource):
    """A regular file, read in a thread. Raises SourceChanged when it is replaced or cut while it is read."""

    def __init__(self, path: str | Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__(str(path), max_bytes=max_bytes)
        self._path = Path(path)
        self._fd: int | None = None
        self._stamp = (0, 0)

    async def close(self) -> None:
        """See `Source.close`."""
        await super().close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _look(self) -> Facts:
        try:
            # O_NONBLOCK: opening a pipe must not wait for its writer; a regular file does not mind.
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise SourceNotFound(f"no such file: {self.name}") from exc
        except (OSError, ValueError) as exc:
            hint = "check the permissions of the file"
            raise SourceRefused(f"the file cannot be read ({exc}): {self.name}", hint=hint) from exc
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._fd)
            self._fd = None
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise UnsupportedScheme(f"{kind}: {self.name}", hint="give the path of one video file")
        self._stamp = (found.st_size, found.st_mtime_ns)
        etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        return Facts(self._path.absolute().as_uri(), found.st_size, True, etag, None, 0.0, True)

    async def _read(self, piece: ByteRange) -> bytes:
        if self._fd is None:
            raise SourceRefused(f"read after close: {self.name}")
        data, found = await asyncio.shield(asyncio.to_thread(_pread, os.dup(self._fd), piece))
        if len(data) < len(piece) or (found.st_size, found.st_mtime_ns) != self._stamp:
            raise SourceChanged(f"the file was written to while it was read: {self.name}")
        return data


class MemorySource(_LocalSource):
    """Bytes at hand, as a source: the shipped fake of the contract.

    `accepts_ranges=False` plays an origin that only streams: nothing is there until `stream` or a `fetch` reads
    up to it, and the length is known only at the end.
    """

    def __init__(
        self,
        data: bytes,
        *,
        name: str = "memory",
        accepts_ranges: bool = True,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        super().__init__(name, max_bytes=max_bytes)
        self._data = data
        self._accepts_ranges = accepts_ranges

    async def fetch_all(self, ranges: Sequence[ByteRange]) -> None:
        """See `Source.fetch_all`."""
        if self._accepts_ranges:
            return await super().fetch_all(ranges)
        for wanted in ranges:
            await self._stream_up_to(wanted.stop)

    async def stream(self) -> None:
        """See `Source.stream`."""
        if self._accepts_ranges:
            return await super().stream()
        await self._stream_up_to(len(self._data) + 1)

    async def _stream_up_to(self, stop: int) -> None:
        sparse = self._opened()
        reachable = min(stop, len(self._data))
        if reachable > 0:
            await self._read_missing(sparse, ByteRange(0, reachable))
        if stop > len(self._data):
            sparse.finish(len(self._data))

    def _look(self) -> Facts:
        size = len(self._data) if self._accepts_ranges else None
        return Facts(f"memory:{self.name}", size, self._accepts_ranges, None, None, 0.0, True)

    async def _read(self, piece: ByteRange) -> bytes:
        await asyncio.sleep(0)  # a turn of the loop, as a real source takes
        return self._data[piece.start : piece.stop]


def _pread(fd: int, piece: ByteRange) -> tuple[bytes, os.stat_result]:
    """Read and close: a descriptor of its own, so that `close` never pulls it away from under a read."""
    try:
        return os.pread(fd, len(piece), piece.start), os.fstat(fd)
    finally:
        os.close(fd)
