"""The pool of children: starts them, keeps a spare warm, gives out jobs, watches memory and time, replaces the dead.

All of it runs in the server's event loop and never waits for a child without a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from firsttouch.clock import Deadline
from firsttouch.engine import wire
from firsttouch.errors import DeadlineExceeded, EngineFailed
from firsttouch.pipeline import Analysis
from firsttouch.settings import Settings

log = logging.getLogger(__name__)

MAX_SECONDS = 230.0
"""A caller waits 240 s at most; no job lives longer than this."""

FIRST_FRAME_SECONDS = 30.0
"""When the budget begins at the first frame, that frame must come by then."""

CANCEL_SECONDS = 3.0
"""A child that does not stop its job in this time is killed. The pipeline promises 50 ms, but a new child costs seconds
of both cores: on a machine that is merely busy, killing early makes all later answers worse (measured)."""

KEPT_SECONDS = 0.02
"""How long after its deadline the best so far becomes a job's answer: the pipeline has a reserve before it."""

LATE_SECONDS = 0.07
"""How long after its deadline a job that has answered nothing yet may still do so: a first answer is soon written, and
the service promises its callers 50 ms after theirs, which is at least another 50 ms later."""

UNREAD_MESSAGES = 8
"""More than these wait in the socket, so that a child that talks without end fills no memory of ours."""

GROWN_SHARE = 0.7
"""A child that holds more of its memory cap than this after a job is replaced while nobody waits for it, as long as
another one is warm: allocators give little back, and the cap would else cost somebody's request in the end."""

WATCH_SECONDS = 0.05
START_SECONDS = 120.0
BACKOFF_SECONDS = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Ending = Literal["overstayed", "ate too much memory", "died", "grew too large"]


@dataclass(frozen=True, slots=True)
class Job:
    """One clip, or some pictures, to be answered by `deadline`."""

    url: str
    deadline: Deadline
    partial: bool = False
    every_frame: bool = False
    challenge_id: str | None = None
    pictures: Sequence[tuple[int, str | None, bytes]] = ()
    """(frame_id, URL, or the picture's bytes) of each; then `url` is not used."""
    budget_seconds: float | None = None
    """What its caller asked for; None: what the settings say."""
    reserve_seconds: float = 0.0
    """How much sooner than the caller's deadline this one is, for what is done with the answer."""


@dataclass(slots=True)
class EngineStats:
    """Counts since the start, for /metrics."""

    started: int = 0
    restarts: dict[str, int] = field(default_factory=dict)
    jobs: int = 0


class Engine:
    """`size` children that work and `spares` that wait. `async with Engine(...)`; then `async for ... in run(job)`."""

    def __init__(
        self,
        settings: Settings,
        *,
        size: int = 1,
        spares: int = 1,
        pipeline: str = "firsttouch.pipeline",
    ) -> None:
        """`pipeline` names the module whose `analyze_steps` is run; tests hand in their own."""
        self.settings, self.size, self.spares = settings, size, spares
        self.stats = EngineStats()
        self.problem: str | None = None
        """Why no child could be started, while that is so."""
        self._pipeline = pipeline
        self._idle: list[_Child] = []
        self._all: set[_Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closings: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._failures = 0
        self._closing = False
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Engine:
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to start the children; returns at once."""
        for _ in range(self.size + self.spares):
            self._spawn(self._run_child())

    @property
    def ready(self) -> bool:
        """At least one child is warm, idle or at work."""
        return any(child.warm for child in self._all)

    @property
    def idle(self) -> int:
        """Warm children without a job."""
        return len(self._idle)

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._all]

    async def wait_ready(self, deadline: Deadline) -> bool:
        """Wait until a child is warm."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_seconds(deadline)), self._changed:
                await self._changed.wait_for(lambda: self.ready)
        return self.ready

    async def run(self, job: Job) -> AsyncGenerator[Analysis]:
        """The answers to a job as they grow, the last one the best there is. Closing the iterator cancels the job.

        At the deadline, or when the child dies or eats too much memory, what had come is the answer (`stopped_by`
        deadline); only if nothing had come it is an error: DeadlineExceeded or EngineFailed. A child that then does
        not stop is killed, and every dead one is replaced.
        """
        child = await self._take(job.deadline)
        number = next(self._numbers)
        self.stats.jobs += 1
        try:
            async with aclosing(child.do(number, job, self.settings)) as answers:
                async for analysis in answers:
                    yield analysis
        finally:
            # Stopping may take a while, and whoever waits for the answer must not wait for it.
            self._spawn(self._release(child, number))

    async def _release(self, child: _Child, number: int) -> None:
        """Stop the job if it still runs; then the child is free again, or dead."""
        if child.at_work:
            await child.cancel(number)
        if child.ending is None and self._idle and child.grown:
            child.kill("grew too large")
        if child.ending is None and not self._closing:
            self._idle.append(child)
        await self._tell()

    async def close(self) -> None:
        """Kill all children and wait for their end."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in list(self._all)), *self._closings)
        self._all.clear()
        self._idle.clear()

    async def _take(self, deadline: Deadline) -> _Child:
        try:
            async with asyncio.timeout(_seconds(deadline)), self._changed:
                await self._changed.wait_for(lambda: bool(self._idle))
                return self._idle.pop()  # the last one used: its connections are the warmest
        except TimeoutError as exc:
            why = f": {self.problem}" if self.problem else ""
            raise EngineFailed(f"no engine was ready before the deadline{why}") from exc

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_child(self) -> None:
        """Start one child, with growing pauses while that fails."""
        while not self._closing:
            await asyncio.sleep(BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)])
            try:
                child = await _Child.start(self.settings, self._pipeline, self._ended)
            except (EngineFailed, OSError) as exc:
                self._failures += 1
                self.problem = str(exc)
                log.error("an engine could not be started: %s", exc)
                continue
            self._failures, self.problem = 0, None
            self.stats.started += 1
            self._all.add(child)
            self._idle.insert(0, child)
            await self._tell()
            return

    def _ended(self, child: _Child, ending: Ending) -> None:
        """A child is gone: never used again, and replaced."""
        self._all.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        closing = asyncio.create_task(child.close())
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)
        if self._closing:
            return
        self.stats.restarts[ending] = self.stats.restarts.get(ending, 0) + 1
        log.warning("the engine %s; a new one is being started", ending, extra={"engine_pid": child.pid})
        self._spawn(self._run_child())

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Child:
    """One child process and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cap_bytes: int,
        on_end: Callable[[_Child, Ending], None],
    ) -> None:
        self.process, self.pid = process, process.pid
        self.warm = False
        self.at_work = False
        self.ending: Ending | None = None
        self._reader, self._writer = reader, writer
        self._cap_bytes, self._on_end = cap_bytes, on_end
        self._messages: asyncio.Queue[wire.Message | None] = asyncio.Queue(UNREAD_MESSAGES)
        self._listener: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, settings: Settings, pipeline: str, on_end: Callable[[_Child, Ending], None]) -> _Child:
        """A child that is warm. Raises EngineFailed when it does not get there."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = (sys.executable, "-m", "firsttouch.engine.child", str(theirs.fileno()))
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL
            )
        try:
            reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        except BaseException:
            process.kill()
            ours.close()
            raise
        child = cls(process, reader, writer, settings.engine_memory_mb * 1_000_000, on_end)
        try:
            values = settings.model_dump(mode="json")
            writer.write(wire.pack({"settings": values, "pipeline": pipeline}))
            async with asyncio.timeout(START_SECONDS):
                message = await wire.read(reader)
        except BaseException as exc:
            await child.close()
            if isinstance(exc, TimeoutError):
                raise EngineFailed(f"an engine was not warm after {START_SECONDS:g} s") from exc
            raise
        if message is None or message[0].get("is") != "ready":
            await child.close()
            if message is not None and message[0].get("is") == "error":
                raise EngineFailed(str(wire.read_error(message[0])))
            raise EngineFailed(f"an engine ended while it started (exit code {process.returncode})")
        log.info("an engine is warm", extra={"engine_pid": child.pid, "runtime": message[0].get("runtime")})
        child.warm = True
        child._listener = asyncio.create_task(child._listen())
        child._watcher = asyncio.create_task(child._watch())
        return child

    async def do(self, number: int, job: Job, settings: Settings) -> AsyncGenerator[Analysis]:
        """Send the job and yield its answers until its end or its limit."""
        limit = _Limit.of(job, settings)
        self.at_work = True
        self._writer.write(_pack_job(number, job, settings))
        latest: Analysis | None = None
        while True:
            # With something in hand the deadline is kept; with nothing, a late answer is better than none.
            grace = KEPT_SECONDS if latest is not None else LATE_SECONDS
            try:
                async with asyncio.timeout(_seconds(limit.deadline.earlier(-grace))):
                    message = await self._messages.get()
            except TimeoutError as exc:
                if latest is None:
                    raise DeadlineExceeded("the engine had nothing to answer at the deadline") from exc
                message = None
            if message is None:
                if latest is None:
                    raise self._died()
                yield _cut_short(latest)
                return
            header = message[0]
            if header.get("job") != number:
                continue  # what a cancelled job had still sent
            self.at_work = header.get("is") == "answer"
            if header.get("is") == "answer":
                latest = await asyncio.to_thread(wire.read_analysis, *message)
                limit.first_frame(settings)
                yield latest
            elif header.get("is") == "error":
                error = wire.read_error(header)
                if latest is None or not isinstance(error, EngineFailed):
                    raise error
                log.error("the engine failed after its first answers: %s", error)
                yield _cut_short(latest)
                return
            else:
                return

    @property
    def grown(self) -> bool:
        return _rss_bytes(self.pid) > GROWN_SHARE * self._cap_bytes

    async def cancel(self, number: int) -> None:
        """Stop the job; a child that does not is killed."""
        self._writer.write(wire.pack({"do": "cancel", "job": number}))
        deadline = Deadline.after(CANCEL_SECONDS)
        try:
            async with asyncio.timeout(_seconds(deadline)):
                while (message := await self._messages.get()) is not None:
                    if message[0].get("job") == number and message[0].get("is") != "answer":
                        self.at_work = False
                        return
        except TimeoutError:
            self.kill("overstayed")

    def kill(self, ending: Ending) -> None:
        """Kill it now; the first reason counts."""
        if self.ending is not None:
            return
        self.ending = ending
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        if self._messages.full():
            self._messages.get_nowait()
        self._messages.put_nowait(None)
        self._on_end(self, ending)

    async def close(self) -> None:
        """Kill it and take back everything it used."""
        if self.ending is None:
            self.ending = "died"
        for task in (self._listener, self._watcher):
            if task is not None:
                task.cancel()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self._writer.close()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.wait_closed()

    def _died(self) -> EngineFailed:
        hint = "the clip may be damaged or hostile" if self.ending == "ate too much memory" else None
        return EngineFailed(f"the engine {self.ending} while it read this clip", hint=hint)

    async def _listen(self) -> None:
        """Everything the child says, into the queue; its end is the end of the child."""
        try:
            while (message := await wire.read(self._reader)) is not None:
                await self._messages.put(message)
        except EngineFailed as exc:
            log.error("the engine spoke nonsense: %s", exc)
        self.kill("died")

    async def _watch(self) -> None:
        """Memory that the kernel's cap does not see (shared mappings) is seen here."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if _rss_bytes(self.pid) > self._cap_bytes:
                self.kill("ate too much memory")
                return


@dataclass(slots=True)
class _Limit:
    """When a child overstays. With a budget that begins at the first frame, that is known only then."""

    deadline: Deadline
    waits_for_first_frame: bool

    @classmethod
    def of(cls, job: Job, settings: Settings) -> _Limit:
        if settings.start_budget_after_first_frame and not math.isinf(job.deadline.moment):
            return cls(Deadline.after(FIRST_FRAME_SECONDS), True)
        longest = Deadline.after(MAX_SECONDS)
        moment = min(longest.moment, job.deadline.moment)
        return cls(Deadline(moment), False)

    def first_frame(self, settings: Settings) -> None:
        if self.waits_for_first_frame:
            seconds = settings.deadline_seconds or MAX_SECONDS
            self.deadline, self.waits_for_first_frame = Deadline.after(seconds), False


def _pack_job(number: int, job: Job, settings: Settings) -> bytes:
    moment = None if math.isinf(job.deadline.moment) else job.deadline.moment
    header = {
        "do": "pictures" if job.pictures else "analyze",
        "job": number,
        "url": job.url,
        "moment": moment,  # the monotonic clock is one for all processes of a machine
        "budget_seconds": settings.deadline_seconds,
        "partial": job.partial,
        "every_frame": job.every_frame,
        "challenge_id": job.challenge_id,
        "frames": [(frame_id, url, len(data)) for frame_id, url, data in job.pictures],
    }
    return wire.pack(header, b"".join(data for _, _, data in job.pictures))


def _cut_short(analysis: Analysis) -> Analysis:
    return replace(analysis, stopped_by="deadline")


def _seconds(deadline: Deadline) -> float | None:
    left = deadline.remaining()
    return None if math.isinf(left) else left


def _rss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
