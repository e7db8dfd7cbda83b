"""Half-open byte ranges: cover, coalesce, gaps. Plain values, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

MEGABYTE = 1024 * 1024
"""The guide's, wherever a setting counts them (`max_bytes=4*1024*1024`); what is printed of files is 10**6."""


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes start..stop-1 of a file."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a byte range must have 0 <= start < stop, got {self.start}..{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def http(self) -> str:
        """The value of a Range header, whose end is inclusive (RFC 9110, 14.1.2)."""
        return f"bytes={self.start}-{self.stop - 1}"


def coalesce(ranges: Iterable[ByteRange], gap: int = 0) -> list[ByteRange]:
    """The ranges in file order, joined where they overlap or lie at most `gap` bytes apart."""
    joined: list[ByteRange] = []
    for part in sorted(ranges):
        if joined and part.start <= joined[-1].stop + gap:
            joined[-1] = ByteRange(joined[-1].start, max(joined[-1].stop, part.stop))
        else:
            joined.append(part)
    return joined


def gaps(wanted: ByteRange, have: Iterable[ByteRange]) -> list[ByteRange]:
    """The parts of `wanted` that none of `have` covers, in file order."""
    missing: list[ByteRange] = []
    at = wanted.start
    for part in coalesce(have):
        if part.start >= wanted.stop:
            break
        if part.start > at:
            missing.append(ByteRange(at, part.start))
        at = max(at, part.stop)
    if at < wanted.stop:
        missing.append(ByteRange(at, wanted.stop))
    return missing


def weave(runs: Sequence[Sequence[ByteRange]], piece: int) -> list[ByteRange]:
    """The ranges of several runs by turns, at most `piece` bytes of each at a time."""
    queues = [deque(cut for part in run for cut in _cut(part, piece)) for run in runs]
    woven: list[ByteRange] = []
    while any(queues):
        woven.extend(queue.popleft() for queue in queues if queue)
    return woven


def _cut(part: ByteRange, piece: int) -> Iterator[ByteRange]:
    for start in range(part.start, part.stop, piece):
        yield ByteRange(start, min(start + piece, part.stop))


def total(ranges: Iterable[ByteRange]) -> int:
    """Bytes covered by the ranges, each counted once."""
    return sum(len(part) for part in coalesce(ranges))
