"""The desk between requests and the engine: shares, queues, refuses, and knows every deadline.

One computation at a time per engine. Requests for the same clip that come together share one; the others wait in a
short queue, or are told at once when they would be served too late. A computation that nobody waits for any more
is stopped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from firsttouch.engine import EngineStats, Job
from firsttouch.errors import Busy, EngineFailed, FirsttouchError
from firsttouch.pipeline import Analysis

MIN_WORK_SECONDS = 0.35
"""Less time than this before the deadline answers next to nothing: better to refuse at once."""

TYPICAL_SECONDS = 2.0
TYPICAL_WEIGHT = 0.2

Key = tuple[object, ...]

log = logging.getLogger(__name__)


class Cage(Protocol):
    """What the desk and the service want of an engine; tests have one without processes."""

    size: int
    stats: EngineStats
    problem: str | None

    @property
    def ready(self) -> bool: ...
    @property
    def idle(self) -> int: ...
    def start(self) -> None: ...
    def run(self, job: Job) -> AsyncGenerator[Analysis]: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class _Shared:
    """One computation, and those who wait for it."""

    job: Job
    latest: Analysis | None = None
    version: int = 0
    done: bool = False
    error: BaseException | None = None
    waiting: int = 0
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake all who wait, in one turn of the event loop: a lock would let out one a turn, and sixty may wait."""
        self.changed.set()
        self.changed = asyncio.Event()


class Desk:
    """Jobs in, answers out."""

    def __init__(self, engine: Cage, *, queue_length: int) -> None:
        self._engine = engine
        self._queue_length = queue_length
        self._queue: deque[tuple[_Shared, asyncio.Future[None]]] = deque()
        self._running: dict[int, _Shared] = {}
        self._begun: dict[int, float] = {}
        self._shared: dict[Key, _Shared] = {}
        self.typical_seconds = TYPICAL_SECONDS
        self.computed = self.joined = 0
        self.on_done: Callable[[Analysis], None] = lambda analysis: None
        """Told of each finished computation, once however many share it."""

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def available(self) -> bool:
        """Would a challenge that comes now be begun at once?"""
        return self._engine.ready and not self._queue and len(self._running) < self._engine.size

    @property
    def wait_seconds(self) -> float:
        """When a computation that comes now would begin, as far as deadlines and the usual duration tell."""
        free = sorted(self._left(shared) for shared in self._running.values())
        slots = [0.0] * max(0, self._engine.size - len(free)) + free
        for _ in self._queue:
            slots.sort()
            slots[0] += self.typical_seconds
        return min(slots)

    async def answers(self, key: Key, job: Job) -> AsyncGenerator[Analysis]:
        """The answers to a job as they grow, the last one final; with others when the same key is being computed.

        Raises Busy when its deadline cannot be met, and the errors of the engine.
        """
        shared = self._shared.get(key)
        if shared is not None and not shared.done:
            self.joined += 1
        else:
            shared = self._begin(key, job)
        shared.waiting += 1
        seen = 0
        try:
            while True:
                while shared.version == seen and not shared.done:
                    await shared.changed.wait()
                if shared.version > seen and shared.latest is not None:
                    seen = shared.version
                    yield shared.latest
                if shared.done and shared.version == seen:
                    if shared.error is not None:
                        raise shared.error
                    return
        finally:
            shared.waiting -= 1
            if shared.waiting == 0 and shared.task is not None:
                shared.task.cancel()
                if self._shared.get(key) is shared:
                    del self._shared[key]  # who asks from now on must not join what is being stopped

    def _begin(self, key: Key, job: Job) -> _Shared:
        """Admit a new computation, or refuse it at once."""
        late = not self._free and self.wait_seconds + MIN_WORK_SECONDS > job.deadline.remaining()
        full = not self._free and len(self._queue) >= self._queue_length
        if late or full or not self._engine.ready:
            why = "the queue is full" if full else "its turn would come too late" if late else "no engine is warm"
            raise Busy(f"no engine can meet the deadline: {why}")
        shared = _Shared(job)
        self._shared[key] = shared
        # The place is taken here and given back by the task's end, not inside it: requests that come in the same
        # turn of the event loop must see it, and a task that is cancelled before it began runs nothing.
        if self._free:
            self._running[id(shared)] = shared
            turn = None
        else:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append((shared, turn))
        shared.task = asyncio.create_task(self._compute(shared, turn))
        shared.task.add_done_callback(lambda _: self._leave(key, shared))
        return shared

    @property
    def _free(self) -> bool:
        return not self._queue and len(self._running) < self._engine.size

    async def _compute(self, shared: _Shared, turn: asyncio.Future[None] | None) -> None:
        try:
            if turn is not None:
                await self._turn(shared, turn)
            await self._work(shared)
        except FirsttouchError as error:
            shared.error = error
        except asyncio.CancelledError:
            shared.error = Busy("the computation was stopped")
            raise
        except Exception as error:
            log.exception("a computation failed")
            shared.error = EngineFailed(f"the computation failed: {type(error).__name__}")
        finally:
            shared.done = True
            shared.tell()

    async def _turn(self, shared: _Shared, turn: asyncio.Future[None]) -> None:
        """Wait for a free engine. Raises Busy when the deadline comes too near."""
        left = shared.job.deadline.remaining() - MIN_WORK_SECONDS
        try:
            async with asyncio.timeout(None if math.isinf(left) else left):
                await turn
        except TimeoutError as exc:
            raise Busy("no engine became free in time") from exc

    async def _work(self, shared: _Shared) -> None:
        begun = self._begun[id(shared)] = shared.job.deadline.clock()
        async with aclosing(self._engine.run(shared.job)) as answers:
            async for analysis in answers:
                shared.latest = analysis
                shared.version += 1
                shared.tell()
        self.computed += 1
        took = shared.job.deadline.clock() - begun
        self.typical_seconds += TYPICAL_WEIGHT * (took - self.typical_seconds)
        if shared.latest is not None:
            self.on_done(shared.latest)

    def _leave(self, key: Key, shared: _Shared) -> None:
        """Give the place back, and the engine to the next in the queue."""
        if self._shared.get(key) is shared:
            del self._shared[key]
        shared.done = True
        self._running.pop(id(shared), None)
        self._begun.pop(id(shared), None)
        self._queue = deque(place for place in self._queue if place[0] is not shared)
        while self._queue and len(self._running) < self._engine.size:
            following, turn = self._queue.popleft()
            if not turn.done():
                self._running[id(following)] = following
                turn.set_result(None)

    def _left(self, shared: _Shared) -> float:
        """How long a running computation will still take: what is usual, but not beyond its deadline."""
        if shared.waiting == 0:
            return 0.0  # nobody waits for it any more: it is being stopped
        begun = self._begun.get(id(shared), shared.job.deadline.clock())
        usual = self.typical_seconds - (shared.job.deadline.clock() - begun)
        return max(0.0, min(shared.job.deadline.remaining(), usual))
