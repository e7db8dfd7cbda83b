"""What every source of bytes is: the facts of a file and the contract of reading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from firsttouch.clock import Deadline
from firsttouch.ranges import ByteRange
from firsttouch.sparse import SparseBytes

HEAD_BYTES = TAIL_BYTES = 65536
"""The index lies within the first or last 64 KiB of 94 % of real files (design: ARCHITECTURE, measurements)."""

DEFAULT_MAX_BYTES = 2 * 1024**3
"""Larger files are refused, and a stream of unknown length ends here."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the first answer says about a file.

    `url` is the one that answered, after redirects. `size_bytes` is None for a stream of unknown length.
    `connect_seconds` is the time until the connection could carry a request; `warm`: it was already open.
    """

    url: str
    size_bytes: int | None
    accepts_ranges: bool
    etag: str | None
    content_type: str | None
    connect_seconds: float
    warm: bool


class Source(Protocol):
    """Bytes of one file, by range. Used from one event loop; the SparseBytes may be read from any thread.

    Whatever is fetched lands in the SparseBytes that `open` returned. Bytes that are there, or on their way, are
    not asked for again. Errors are SourceErrors; the SparseBytes fails with the same one, and its waiters wake.
    """

    @property
    def name(self) -> str:
        """The URL or path, fit to be shown: without user and password."""

    @property
    def bytes_fetched(self) -> int:
        """Body bytes that arrived, wanted or not."""

    @property
    def requests(self) -> int:
        """Requests sent, failed ones included."""

    @property
    def bytes_per_second(self) -> float | None:
        """What the link has given lately while bytes flowed; None before that is known."""

    @property
    def round_trip_seconds(self) -> float | None:
        """The shortest wait seen between a request and its answer's first byte; None before the first answer."""

    async def open(
        self, *, head: int = HEAD_BYTES, tail: int = TAIL_BYTES, deadline: Deadline
    ) -> tuple[Facts, SparseBytes]:
        """Ask for head and tail in one round trip; return when the facts are known, with both still flowing.

        `fetch` a part of them to wait for it. Where the origin does not do ranges, the body flows from byte 0
        until `close`; no second request is made. Raises a SourceError; SourceTimeout at the deadline.
        """

    async def fetch(self, byte_range: ByteRange) -> None:
        """Return when all of the range (cut to the file's size) is there. Cancelling stops what only this wanted."""

    async def fetch_all(self, ranges: Sequence[ByteRange]) -> None:
        """`fetch` of many, most wanted first; neighbours share a request and the link is kept full."""

    async def stream(self) -> None:
        """Fetch the whole file from the start on, in order."""

    async def close(self) -> None:
        """Stop everything, and wake who waits for the SparseBytes; idempotent. What has come can still be read."""
