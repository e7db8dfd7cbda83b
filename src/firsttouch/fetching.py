"""What is asked of the source beside the work: the first key frame, then the plan, or where the decoder reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .clock import Stopwatch
from .errors import FirsttouchError, SourceError
from .opening import Clip
from .plan import Plan, Rates
from .ranges import ByteRange, gaps
from .source import Source

SEND_SECONDS = 0.001
"""What the event loop needs to put a request on the wire, before a plan of 3 ms is made in it."""

LOOK_AGAIN_SECONDS = 0.02
"""How often the link's pace is looked at while the first key frame has it to itself."""

DIRECT_BYTES = 1024 * 1024
"""What `direct` asks for at a place where the decoder reads and nothing is there."""


class Fetching:
    """The fetching tasks of one call. An error ends the fetching, not what is already here."""

    def __init__(self, source: Source, clip: Clip, watch: Stopwatch, on_change: Callable[[], None]) -> None:
        self.error: SourceError | None = None
        self._source, self._clip, self._watch, self._on_change = source, clip, watch, on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._plan: asyncio.Task[None] | None = None
        self._key: asyncio.Task[None] | None = None
        self._key_asked, self._key_bytes = 0.0, 0
        """When the first key frame was asked for, seconds after the start, and how much was to come before its end."""
        self._asked: list[ByteRange] = []
        """What the decoder's reads have asked for."""

    @property
    def plan_is_here(self) -> bool:
        """All bytes of the latest plan have come."""
        return self._plan is not None and self._plan.done()

    async def first_key(self) -> None:
        """Ask for the first key frame before anything is planned: every plan begins with it."""
        key = self._first_key()
        if not self._clip.sparse.has(key):
            self._key_asked, self._key_bytes = self._watch.elapsed, self._before_key()
            self._key = self._spawn(lambda: self._source.fetch(key))
            await asyncio.sleep(SEND_SECONDS)

    def plan(self, plan: Plan, rates: Callable[[], Rates]) -> None:
        """The plan's bytes, instead of those of the plan before; `rates` tells how the link is doing."""
        before, self._plan = self._plan, self._spawn(lambda: self._fetch_plan(plan, rates))
        if before is not None:
            before.cancel()

    def stream(self) -> None:
        """The file from the start on."""
        self._spawn(self._source.stream)

    def where_read(self) -> Callable[[int], None]:
        """What asks for the bytes where the decoder reads; called from its thread."""
        loop = asyncio.get_running_loop()
        size = self._clip.sparse.size or 0

        def fetch(part: ByteRange) -> None:
            self._spawn(lambda: self._source.fetch(part))

        def ask(position: int) -> None:
            wanted = ByteRange(position, min(size, position + DIRECT_BYTES))
            for part in gaps(wanted, self._asked):
                self._asked.append(part)
                loop.call_soon_threadsafe(fetch, part)

        return ask

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work()
            except FirsttouchError as error:
                self.error = error if isinstance(error, SourceError) else SourceError(str(error))
                self._clip.sparse.fail(self.error)
                self._on_change()

        task = asyncio.create_task(guarded())
        self._tasks.append(task)
        return task

    def _first_key(self) -> ByteRange:
        assert self._clip.index is not None
        return self._clip.index.byte_range(int(self._clip.index.key_rows[0]))

    def _before_key(self) -> int:
        """Bytes that come before the first key frame's end: those missing of it, and of the tail, asked for earlier."""
        parts = (self._first_key(), *self._clip.ends[1:])
        return sum(len(gap) for part in parts for gap in self._clip.sparse.missing(part))

    async def _fetch_plan(self, plan: Plan, rates: Callable[[], Rates]) -> None:
        """In the plan's order, or all; the source keeps the link full and asks for nothing twice."""
        begun = self._watch.elapsed
        try:
            if self._clip.fetch == "full":
                await self._source.stream()
            else:
                await self._after_first_key(rates)
                await self._source.fetch_all(plan.byte_ranges)
        finally:
            self._watch.add("fetch", self._watch.elapsed - begun)
            self._on_change()

    async def _after_first_key(self, rates: Callable[[], Rates]) -> None:
        """Until the first key frame's last byte is as near as a byte that is asked for now.

        Side by side they would share the link: the first look would wait for what is not wanted yet. A key frame that
        is late for the link's pace is not waited for.
        """
        in_head = any(self._first_key().stop <= end.stop for end in self._clip.ends[:1])
        while self._key is not None and not self._key.done():
            link = rates()
            travel, since = link.round_trip_seconds, self._watch.elapsed - self._key_asked
            begins = 0.0 if in_head else travel
            comes = max(begins - since, 0.0) + self._before_key() / link.bytes_per_second
            at_latest = begins + self._key_bytes / link.bytes_per_second - since
            left = min(comes, at_latest) - travel
            if left <= 0.0:
                return
            await asyncio.wait([self._key], timeout=min(left, LOOK_AGAIN_SECONDS))
