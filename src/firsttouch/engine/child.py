"""The process that reads media: `python -m firsttouch.engine.child FD`. It trusts its parent, and nobody trusts it.

It loads the models, opens the warm connections, says `ready`, and then does one job at a time. When its parent
goes, it goes too. Its memory is capped by the kernel: an allocation beyond the cap fails, and if the library that
asked cannot bear that, only this process dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from firsttouch import logs
from firsttouch.clock import Deadline, Stopwatch
from firsttouch.engine import wire
from firsttouch.errors import EngineFailed, FirsttouchError
from firsttouch.netpolicy import Policy
from firsttouch.orphan import die_with_parent
from firsttouch.pipeline import Analysis, Options
from firsttouch.plan import Rates
from firsttouch.settings import Settings
from firsttouch.source import Connections

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8
_PAGE_BYTES = resource.getpagesize()
MAX_ORIGINS = 64
WARM_SECONDS = 10.0
JOBS_TO_TIDY = 16
"""After so many jobs, memory that is free but kept by the allocator is given back: it would grow by the hour (measured
over 94 short clips: 254 MB to 304 MB, and 235 MB after this). It takes tens of milliseconds, so not after each."""


class Child:
    """One child's state: the detector, the connections, the job that runs."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: Settings, pipeline: Any
    ) -> None:
        self._reader, self._writer = reader, writer
        self._settings, self._pipeline = settings, pipeline
        self._options: Options = pipeline.Options.of(settings)
        self._policy = policy_of(settings)
        self._connections: Connections | None = None
        self._detector: Any = None
        self._machine = Rates()
        self._links: dict[str, tuple[float, float]] = {}
        self._jobs = 0

    async def serve(self) -> None:
        """Warm up, say so, do jobs until the parent closes."""
        try:
            await self._warm()
        except FirsttouchError as error:
            await self._send(wire.pack_error(0, error))
            return
        cap_memory(self._settings.engine_memory_mb * 1_000_000)
        await self._send(wire.pack({"is": "ready", "runtime": self._runtime(), "rss": rss_bytes()}))
        job: asyncio.Task[None] | None = None
        while (message := await wire.read(self._reader)) is not None:
            header, payload = message
            if header["do"] == "cancel":
                if job is not None:
                    job.cancel()
                    await asyncio.wait([job])
                    if job.cancelled():
                        await self._send(wire.pack({"is": "cancelled", "job": header["job"]}))
                continue
            if job is not None:  # its end was sent, or there would be no next one: it is over in a moment
                await asyncio.wait([job])
            job = asyncio.create_task(self._do(header, payload))
        if job is not None:
            job.cancel()

    async def _warm(self) -> None:
        self._detector = await asyncio.to_thread(self._pipeline.detector_for, self._settings)
        await asyncio.to_thread(_look_once, self._detector, not self._settings.skip_pitch)
        self._connections = Connections(policy=self._policy)
        if self._settings.warm_origins:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WARM_SECONDS):
                    outcome = await self._connections.warm(self._settings.warm_origins)
                    for origin, error in outcome.items():
                        if error is not None:
                            log.warning("the origin %s is not warm: %s", origin, error)

    def _runtime(self) -> str:
        found = (getattr(self._detector, name, "?") for name in ("runtime", "precision", "device"))
        return "{} {} on {}".format(*found)

    async def _do(self, header: wire.Header, payload: memoryview) -> None:
        job = int(header["job"])
        logs.challenge.set(header.get("challenge_id"))
        try:
            if header["do"] == "pictures":
                await self._send(wire.pack_analysis(job, await self._look_at_pictures(header, payload)))
                await self._send(wire.pack({"is": "end", "job": job}))
            else:
                await self._analyze(job, header)
        except MemoryError:
            await self._send(wire.pack_error(job, EngineFailed("the clip needs more memory than the engine may use")))
        except FirsttouchError as error:
            await self._send(wire.pack_error(job, error))
        except Exception as error:
            log.exception("a job failed")
            await self._send(wire.pack_error(job, error))
        finally:
            self._jobs += 1
            if self._jobs % JOBS_TO_TIDY == 0:
                tidy()

    async def _analyze(self, job: int, header: wire.Header) -> None:
        url, partial = str(header["url"]), bool(header["partial"])
        origin = urlsplit(url).netloc
        async with aclosing(self._steps(url, header, partial, self._rates(origin))) as steps:
            async for analysis in steps:
                await self._send(wire.pack_analysis(job, analysis))
                self._learn(origin, analysis.rates)
        await self._send(wire.pack({"is": "end", "job": job}))

    def _steps(self, url: str, header: wire.Header, partial: bool, rates: Rates) -> AsyncGenerator[Analysis]:
        late = self._options.start_budget_after_first_frame
        moment = header["moment"]
        deadline = Deadline.after(header["budget_seconds"]) if late or moment is None else Deadline(float(moment))
        options = replace(self._options, every_frame=bool(header.get("every_frame")))
        steps: AsyncGenerator[Analysis] = self._pipeline.analyze_steps(
            url,
            deadline=deadline,
            options=options,
            detector=self._detector,
            connections=self._connections,
            policy=self._policy,
            rates=rates,
            partial=partial,
        )
        return steps

    def _rates(self, origin: str) -> Rates:
        """What this machine showed last, and what this origin's link showed last."""
        link = self._links.get(origin)
        if link is None:
            return self._machine
        return replace(self._machine, bytes_per_second=link[0], round_trip_seconds=link[1])

    def _learn(self, origin: str, rates: Rates | None) -> None:
        if rates is None:
            return
        nominal = Rates()
        self._machine = replace(
            rates,
            bytes_per_second=nominal.bytes_per_second,
            round_trip_seconds=nominal.round_trip_seconds,
        )
        if len(self._links) >= MAX_ORIGINS and origin not in self._links:
            self._links.pop(next(iter(self._links)))
        self._links[origin] = (rates.bytes_per_second, rates.round_trip_seconds)

    async def _look_at_pictures(self, header: wire.Header, payload: memoryview) -> Analysis:
        from firsttouch.engine.pictures import look_at

        watch = Stopwatch()
        fetched = await look_at(
            header["frames"],
            payload,
            detector=self._detector,
            pitch=self._options.pitch,
            connections=self._connections,
            policy=self._policy,
            deadline=Deadline(float(header["moment"])),
        )
        return replace(fetched, runtime=self._runtime(), stage_seconds={"total": watch.elapsed})

    async def _send(self, message: bytes) -> None:
        self._writer.write(message)
        await self._writer.drain()


def policy_of(settings: Settings) -> Policy:
    """The net policy these settings ask for."""
    return Policy(allow_private=settings.allow_private_origins, allowed_hosts=settings.allowed_origins)


def _look_once(detector: Any, pitch: bool) -> None:
    """The first run plans memory and spins up the threads: not while somebody waits."""
    y, uv = np.full((720, 1280), 16, np.uint8), np.full((360, 640), 128, np.uint8)
    detector.detect([detector.prepare(y, uv, uv)], [0], 1280, 720, pitch=pitch)


def tidy() -> None:
    """Collect what is garbage, and hand free memory back to the system where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_arenas() -> None:
    """Two heaps for all threads, where the C library has one for each (glibc): after a thousand short jobs 217 MB stay
    resident instead of 247, and it no longer creeps up."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(_M_ARENA_MAX, 2)


def rss_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process, 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def cap_memory(cap_bytes: int) -> None:
    """Let private memory grow by what is left between what is resident now and the cap.

    RLIMIT_DATA counts private writable mappings, touched or not; RLIMIT_AS would also count the files and the
    address space that runtimes reserve without using it (measured: 3 GB for 300 MB resident).
    """
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[5]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return
    limit = mapped + max(0, cap_bytes - rss_bytes())
    # The soft limit is what allocations meet; a process begun from here to build an engine may leave it.
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _tie_to_parent() -> None:
    """Die with the parent, leave no core dump, let the parent decide when to stop."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for request in (signal.SIGINT, signal.SIGTERM):  # PM2 and systemd send these to the whole family
        signal.signal(request, signal.SIG_IGN)


async def _main(fd: int) -> None:
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    hello = await wire.read(reader)
    if hello is None:
        return
    settings = Settings(**hello[0]["settings"])
    logs.set_up(settings.log_level)
    child = Child(reader, writer, settings, importlib.import_module(hello[0]["pipeline"]))
    await child.serve()


if __name__ == "__main__":
    _tie_to_parent()
    share_arenas()
    try:
        asyncio.run(_main(int(sys.argv[1])))
    finally:
        os._exit(0)  # threads that are stuck in the decoder must not keep a child whose parent has gone
