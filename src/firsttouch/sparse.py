"""The bytes of one file that have arrived, in any order; wakes who waits for them.

One writer (the source, in the event loop) and many readers (decoding threads). Memory is taken page by page
as bytes come, so a plan that fetches 3 MB of a 2 GB file costs 3 MB.
"""

from __future__ import annotations

import io
import mmap
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import BinaryIO, cast

from firsttouch.clock import Deadline
from firsttouch.errors import DeadlineExceeded, SourceCutOff, SourceError
from firsttouch.ranges import ByteRange, gaps

Listener = Callable[[], None]


class SparseBytes:
    """Bytes 0..size-1 of a file, some of them there.

    With `size=None` the length is not known: the file grows with what is written, until `finish(size)`.
    All methods may be called from any thread.
    """

    def __init__(self, size: int | None) -> None:
        if size is not None and size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        # Anonymous pages are zero until written and cost nothing until then; an empty mapping is not allowed.
        self._memory: mmap.mmap | bytearray = mmap.mmap(-1, size) if size else bytearray()
        self._size = size
        self._starts: list[int] = []  # the runs that are there: sorted, apart by at least one byte
        self._stops: list[int] = []
        self._changed = threading.Condition()
        self._version = 0
        self._error: BaseException | None = None
        self._listeners: tuple[Listener, ...] = ()

    @property
    def size(self) -> int | None:
        """The file's length in bytes, None while it is not known."""
        return self._size

    @property
    def version(self) -> int:
        """How many writes there were: who saw this number has seen everything up to it."""
        return self._version

    @property
    def error(self) -> BaseException | None:
        """Why no more bytes will come, when that is so before all are there."""
        return self._error

    @property
    def complete(self) -> bool:
        """Every byte of the file is there."""
        with self._changed:
            return self._size is not None and (self._size == 0 or self._covered(0) >= self._size)

    @property
    def closed(self) -> bool:
        """No byte will come any more: failed, or complete."""
        return self._error is not None or self.complete

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`, and wake who waits. Bytes beyond a known size are a ValueError."""
        if not data:
            return
        stop = offset + len(data)
        with self._changed:
            if self._size is not None and stop > self._size:
                raise ValueError(f"bytes {offset}..{stop} lie outside a file of {self._size}")
            if stop > len(self._memory):
                self._grow(stop)
            self._memory[offset:stop] = data
            self._add(offset, stop)
            self._version += 1
            self._changed.notify_all()
        self._tell()

    def finish(self, size: int) -> None:
        """The length is known now, because the stream has ended."""
        with self._changed:
            if self._stops and self._stops[-1] > size:
                raise ValueError(f"a file of {size} bytes, but byte {self._stops[-1] - 1} was written")
            if size > len(self._memory):
                self._grow(size)
            self._size = size
            self._changed.notify_all()
        self._tell()

    def fail(self, error: BaseException) -> None:
        """No more bytes will come, because of `error`, the first one. What is there can still be read."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
        self._tell()

    def has(self, wanted: ByteRange) -> bool:
        """All of `wanted` is there."""
        with self._changed:
            return self._covered(wanted.start) >= wanted.stop

    def have(self) -> list[ByteRange]:
        """What is there, in file order, joined."""
        with self._changed:
            return [ByteRange(start, stop) for start, stop in zip(self._starts, self._stops, strict=True)]

    def missing(self, wanted: ByteRange) -> list[ByteRange]:
        """The parts of `wanted` that are not there, in file order."""
        with self._changed:
            first = bisect_right(self._stops, wanted.start)
            last = bisect_left(self._starts, wanted.stop)
            near = [ByteRange(self._starts[i], self._stops[i]) for i in range(first, last)]
        return gaps(wanted, near)

    def read(self, wanted: ByteRange) -> bytes:
        """A copy of these bytes. Where some are missing: the error that stopped the file, or LookupError."""
        with self._changed:
            if self._covered(wanted.start) >= wanted.stop:
                return bytes(self._memory[wanted.start : wanted.stop])
            error = self._error
        if isinstance(error, SourceError):
            raise type(error)(str(error), hint=error.hint) from error
        raise LookupError(f"bytes {wanted.start}..{wanted.stop} are not all there") from error

    def wait(self, wanted: ByteRange, deadline: Deadline) -> bool:
        """Block this thread until `wanted` is there (True), or will not be before the deadline (False)."""
        with self._changed:
            while self._covered(wanted.start) < wanted.stop:
                if self._error is not None or (self._size is not None and wanted.stop > self._size):
                    return False
                left = deadline.remaining()
                if left <= 0.0 or not self._changed.wait(min(left, threading.TIMEOUT_MAX)):
                    return self._covered(wanted.start) >= wanted.stop
            return True

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener()` after each change, in the writing thread, so be quick. Returns what ends it."""
        with self._changed:
            self._listeners = (*self._listeners, listener)

        def unsubscribe() -> None:
            with self._changed:
                self._listeners = tuple(other for other in self._listeners if other is not listener)

        return unsubscribe

    def file(self, deadline: Deadline | None = None) -> BinaryIO:
        """A seekable, read-only file of these bytes.

        Without a deadline nothing waits, and what is missing reads as zeros (what the index reader wants).
        With one, a read blocks its thread until bytes come; it raises the error that stopped the file, or
        DeadlineExceeded.
        """
        return cast(BinaryIO, _SparseFile(self) if deadline is None else _WaitingFile(self, deadline))

    def _covered(self, start: int) -> int:
        """Where the run that holds byte `start` ends; `start` itself when that byte is not there."""
        i = bisect_right(self._starts, start) - 1
        return max(start, self._stops[i]) if i >= 0 else start

    def _add(self, start: int, stop: int) -> None:
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start, stop = min(start, self._starts[first]), max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def _grow(self, size: int) -> None:
        """Only a file of unknown length grows; its memory is a bytearray, which over-allocates by itself."""
        assert isinstance(self._memory, bytearray)
        self._memory.extend(bytes(size - len(self._memory)))

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _peek(self, start: int, count: int) -> bytes:
        """Up to `count` bytes from `start`, zeros for what is missing, never past the end."""
        with self._changed:
            end = len(self._memory) if self._size is None else self._size
            return bytes(self._memory[start : min(start + count, end)])

    def _await_some(self, start: int, count: int, deadline: Deadline) -> bytes:
        """At least one byte at `start`, waiting for it, at most `count`; empty at the end of the file."""
        with self._changed:
            while (stop := self._covered(start)) == start:
                if self._size is not None and start >= self._size:
                    return b""
                if isinstance(self._error, SourceError):
                    raise type(self._error)(str(self._error), hint=self._error.hint) from self._error
                if self._error is not None:
                    raise SourceCutOff(f"no more bytes after {start}") from self._error
                left = deadline.remaining()
                if left <= 0.0:
                    raise DeadlineExceeded(f"the deadline came before byte {start} did")
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            return bytes(self._memory[start : min(start + count, stop)])


class _SparseFile(io.RawIOBase):
    """Reads at once; missing bytes are zeros."""

    def __init__(self, sparse: SparseBytes) -> None:
        super().__init__()
        self._sparse = sparse
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        at = offset + (self._end() if base is None and whence == io.SEEK_END else base or 0)
        if at < 0:
            raise ValueError(f"cannot seek to {at}")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        count = self._end() - self._at if size is None or size < 0 else size
        data = self._some(count) if count > 0 else b""
        self._at += len(data)
        return data

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _end(self) -> int:
        size = self._sparse.size
        if size is None:
            # A demuxer asks for the end only to guess a duration: better refused than waited for.
            raise io.UnsupportedOperation("the length of this stream is not known yet")
        return size

    def _some(self, count: int) -> bytes:
        return self._sparse._peek(self._at, count)


class _WaitingFile(_SparseFile):
    """Reads wait for bytes; like a pipe, they return what there is once there is something."""

    def __init__(self, sparse: SparseBytes, deadline: Deadline) -> None:
        super().__init__(sparse)
        self._deadline = deadline

    def _some(self, count: int) -> bytes:
        return self._sparse._await_some(self._at, count, self._deadline)
