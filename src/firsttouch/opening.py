"""A source opened: head and tail in one round trip, then what the index still misses -> `Clip`."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from .clock import Deadline, Stopwatch
from .errors import IndexNotFound
from .index import Index, locate_index, read_index
from .options import Options
from .predict import Fetch
from .ranges import MEGABYTE, ByteRange
from .source import Source
from .sparse import SparseBytes

log = logging.getLogger(__name__)

HEAD_BYTES = 128 * 1024
"""First request of the first round trip: the index of a faststart file and the start of its first GOP.

The 375 kB that a link of 100 Mbit/s brings in a round trip of 30 ms would hold the first key frame as well, but on a
slow link they take the time of the other GOPs."""

TAIL_BYTES = 64 * 1024
"""Second request of the first round trip: moov is last in 145 of 245 files found in the wild, and mostly smaller."""


@dataclass(slots=True)
class Clip:
    """What is known of the clip. Without an index it is read from the start, or where the decoder asks."""

    sparse: SparseBytes
    fetch: Fetch
    index: Index | None = None
    ends: tuple[ByteRange, ...] = ()
    """Head and tail, which were asked for in the first round trip, of a clip with an index."""
    warnings: list[str] = field(default_factory=list)


async def open_clip(source: Source, options: Options, watch: Stopwatch, deadline: Deadline) -> Clip:
    """Head, tail and index; where the origin or the container has no such thing, `fetch` becomes "stream"."""
    mode = options.fetch
    head = int(options.fetch_mb * MEGABYTE) if mode == "head" else HEAD_BYTES
    if mode == "head":
        log.info("Downloading first %g MB", options.fetch_mb)
    with watch.stage("connect"):
        tail = 0 if mode in ("stream", "direct") else TAIL_BYTES
        facts, sparse = await source.open(head=head, tail=tail, deadline=deadline)
    clip = Clip(sparse, mode)
    if mode == "stream" or (mode == "direct" and facts.accepts_ranges):
        return clip
    if not facts.accepts_ranges:
        clip.warnings.append("the origin does not serve ranges: read from the start")
        clip.fetch = "stream"
        return clip
    with watch.stage("index"):
        try:
            clip.index = await fetch_index(source, sparse)
            size = clip.index.size_bytes
            clip.ends = ByteRange(0, min(head, size)), ByteRange(max(0, size - TAIL_BYTES), size)
        except IndexNotFound as error:
            clip.warnings.append(f"{error}: read from the start")
            clip.fetch = "stream"
    return clip


async def fetch_index(source: Source, sparse: SparseBytes) -> Index:
    """The index of an opened source, fetching what it still misses. Raises IndexNotFound, IndexInvalid, NotAVideo.

    It is read as soon as its last byte is there: on a slow link the rest of what was asked for is not waited for.
    """
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(arrived.set)

    unsubscribe = sparse.subscribe(tell)
    try:
        while (missing := locate_index(sparse)) is not None:
            fetching = asyncio.ensure_future(source.fetch(missing))
            try:
                while not fetching.done() and locate_index(sparse) == missing:
                    arrived.clear()
                    news = asyncio.ensure_future(arrived.wait())
                    try:
                        await asyncio.wait({fetching, news}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        news.cancel()  # also when the deadline comes meanwhile: nobody else would end it
                if fetching.done():
                    fetching.result()
            finally:
                fetching.cancel()
    finally:
        unsubscribe()
    return await asyncio.to_thread(read_index, sparse)
