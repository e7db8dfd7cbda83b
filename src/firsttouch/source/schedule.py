"""What to ask next, and how much of it at a time: plain functions of what is wanted, there, and on its way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from firsttouch.ranges import ByteRange, gaps

PARALLEL_REQUESTS = 8
"""At most so many on HTTP/1.1, each on a connection of its own."""
PARALLEL_STREAMS = 24
"""At most so many on HTTP/2, where one costs a few hundred bytes; servers allow 100 and more."""
FLIGHT_ROUND_TRIPS, FLIGHT_SLACK_SECONDS = 2.0, 0.1
"""How much is asked for ahead, in seconds of the link: the next request's travel, and both ends' late wake-ups."""
FLIGHT_BYTES_UNKNOWN, FLIGHT_BYTES_LEAST = 1024 * 1024, 192 * 1024
PIECE_SECONDS = 0.08
"""The longest request in seconds of the link: a more urgent range need not wait longer behind it."""
PIECE_BYTES_LEAST, PIECE_BYTES_MOST = 64 * 1024, 512 * 1024
JOIN_GAP_LEAST, JOIN_GAP_MOST = 4096, 64 * 1024
"""Wanted ranges this near share a request where the bytes between cost less time than one more request would."""
NEIGHBOURS = 24
"""So many wants ahead may join a request: what is wanted much later does not delay what is wanted now."""

Missing = Callable[[ByteRange], list[ByteRange]]
"""The parts of a range that are not there yet."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What the link can do, as far as is known: bytes/s, seconds, and requests side by side."""

    bytes_per_second: float | None
    round_trip_seconds: float | None
    most_requests: int

    @property
    def flight_bytes(self) -> float:
        """How much to have on its way: enough to keep the link full, no more, so that urgent bytes come soon.

        Where the rate is held down by too little in flight, twice the round trips let it grow until the link binds.
        """
        if self.bytes_per_second is None or self.round_trip_seconds is None:
            return FLIGHT_BYTES_UNKNOWN
        seconds = FLIGHT_ROUND_TRIPS * self.round_trip_seconds + FLIGHT_SLACK_SECONDS
        return max(FLIGHT_BYTES_LEAST, self.bytes_per_second * seconds)

    @property
    def piece_bytes(self) -> int:
        """The longest single request."""
        if self.bytes_per_second is None:
            return PIECE_BYTES_MOST
        return min(max(int(self.bytes_per_second * PIECE_SECONDS), PIECE_BYTES_LEAST), PIECE_BYTES_MOST)

    @property
    def join_gap(self) -> int:
        """One request of many side by side costs its share of a round trip: half of that in bytes, to be frugal."""
        share = (self.bytes_per_second or 0.0) * (self.round_trip_seconds or 0.0) / self.most_requests
        return min(max(int(share / 2), JOIN_GAP_LEAST), JOIN_GAP_MOST)


def next_piece(
    wanted: Sequence[ByteRange], missing: Missing, coming: Sequence[ByteRange], pace: Pace
) -> ByteRange | None:
    """The next request: the first part of the most wanted range that is neither there nor coming.

    A long part is cut; a short one takes along what is wanted soon after it and lies right behind it. None: all of
    `wanted` is there or coming.
    """
    for i, part in enumerate(wanted):
        parts = _open_parts(part, missing, coming)
        if parts:
            return _grown(parts[0], wanted[i + 1 : i + 1 + NEIGHBOURS], missing, coming, pace)
    return None


def _open_parts(part: ByteRange, missing: Missing, coming: Sequence[ByteRange]) -> list[ByteRange]:
    near = [other for other in coming if touch(other, part)]
    lacking = missing(part)
    return [gap for piece in lacking for gap in gaps(piece, near)] if near else lacking


def _grown(
    piece: ByteRange, others: Sequence[ByteRange], missing: Missing, coming: Sequence[ByteRange], pace: Pace
) -> ByteRange:
    most = pace.piece_bytes
    longest = piece.start + most
    if piece.stop >= longest:
        # A remainder too short to be worth a request of its own comes along.
        return piece if piece.stop - longest < most // 4 else ByteRange(piece.start, longest)
    gap = pace.join_gap
    reach = ByteRange(piece.start, longest + gap)
    near = (gap_part for other in others if touch(other, reach) for gap_part in _open_parts(other, missing, coming))
    stop = piece.stop
    for part in sorted(other for other in near if other.start >= piece.start):
        if part.start > stop + gap or part.stop > longest:
            break
        # Never across bytes that are there or coming: those would be fetched twice.
        if part.stop > stop and _open_parts(longer := ByteRange(stop, part.stop), missing, coming) == [longer]:
            stop = part.stop
    return ByteRange(piece.start, stop)


def touch(a: ByteRange, b: ByteRange) -> bool:
    """The two have a byte in common."""
    return a.start < b.stop and b.start < a.stop
