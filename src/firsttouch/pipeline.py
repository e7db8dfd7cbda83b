"""The stages joined under one deadline: `analyze(source) -> Analysis`.

The event loop fetches (`fetching`) and keeps the plan (`replan`); worker threads decode, look and follow (`work`); at
the end, or when the deadline comes, what is done is linked, carried to every frame and answered (`analysis`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from .analysis import STAGES, Analysis, fill, view_of
from .chain import AskingBytes, GopChain, StreamChain
from .clock import Deadline, Stopwatch
from .decode import Streamed
from .detect import Detector, load_detector
from .errors import DeadlineExceeded, DecodeFailed
from .fetching import Fetching
from .netpolicy import Policy
from .opening import Clip, open_clip
from .options import Options, detector_for
from .plan import DEFAULT_STRIDE, Rates
from .predict import LINK_SECONDS_A_LOOK
from .replan import Planner
from .source import Connections, Source, open_source
from .tune import Machine, best_budget
from .work import Work

__all__ = ["Analysis", "Options", "analyze", "analyze_steps", "analyze_sync", "detector_for"]

log = logging.getLogger(__name__)

ANSWER_RESERVE_SECONDS = 0.06
"""Kept before the deadline, by a thread that has a core to itself, for the last quantum, carrying and writing 750
frames; beside what each look takes."""

REPLAN_SECONDS = 0.06
"""How often the rates are looked at under a deadline."""


async def analyze(
    source: str | Path | Source,
    *,
    deadline: float | Deadline | None = None,
    options: Options | None = None,
    detector: Detector | None = None,
    connections: Connections | None = None,
    policy: Policy | None = None,
    rates: Rates | None = None,
) -> Analysis:
    """Answer every frame of the clip, or what can be had of it before the deadline.

    `source` is a URL, a path or an opened `Source`; `deadline` seconds from now, or a moment. `rates` are what an
    earlier call measured (`Analysis.rates`): with them the first plan is a good one. Raises the errors of `errors`;
    at the deadline it answers with what is done and raises `DeadlineExceeded` only when that is nothing.
    """
    steps = analyze_steps(
        source,
        deadline=deadline,
        options=options,
        detector=detector,
        connections=connections,
        policy=policy,
        rates=rates,
        partial=False,
    )
    async with aclosing(steps):
        async for analysis in steps:
            return analysis
    raise AssertionError("analyze_steps always ends with an answer or an error")


def analyze_sync(
    source: str | Path | Source,
    *,
    deadline: float | None = None,
    options: Options | None = None,
    detector: Detector | None = None,
    policy: Policy | None = None,
) -> Analysis:
    """`analyze` for callers without an event loop."""
    return asyncio.run(analyze(source, deadline=deadline, options=options, detector=detector, policy=policy))


async def analyze_steps(
    source: str | Path | Source,
    *,
    deadline: float | Deadline | None = None,
    options: Options | None = None,
    detector: Detector | None = None,
    connections: Connections | None = None,
    policy: Policy | None = None,
    rates: Rates | None = None,
    partial: bool = True,
) -> AsyncGenerator[Analysis, None]:
    """The same, as it grows: an answer after the first looked-at frame, more as they come, the last one final.

    All but the last hold what is known by then: frames looked at, and frames between two looks that flow joins.
    """
    limit = deadline if isinstance(deadline, Deadline) else Deadline.after(deadline)
    options, detector, watch = options or Options(), detector or load_detector(), Stopwatch()
    budget_seconds, rates = limit.remaining(), replace(rates or Rates(), workers=options.workers)
    if options.start_budget_after_first_frame:
        limit = Deadline(math.inf, limit.clock)
    opened = (
        open_source(source, connections=connections, policy=policy, max_bytes=options.max_bytes)
        if isinstance(source, str | Path)
        else source
    )
    try:
        try:
            async with asyncio.timeout(_finite(limit.remaining())):
                clip = await open_clip(opened, options, watch, limit)
        except TimeoutError:
            raise DeadlineExceeded(f"the index of {opened.name} did not come within {budget_seconds:g} s") from None
        run = _Run(opened, clip, options, detector, limit, budget_seconds, rates, watch)
        try:
            async for analysis in run.steps(partial):
                yield analysis
        finally:
            await run.stop()
    finally:
        await opened.close()


class _Run:
    """One call of `analyze`, from the opened clip on: its plan, its threads and its fetching."""

    def __init__(
        self,
        source: Source,
        clip: Clip,
        options: Options,
        detector: Detector,
        deadline: Deadline,
        budget_seconds: float,
        rates: Rates,
        watch: Stopwatch,
    ) -> None:
        self.source, self.clip, self.options, self.detector = source, clip, options, detector
        self.deadline, self.budget_seconds, self.watch = deadline, budget_seconds, watch
        self.changed = asyncio.Event()
        self.fetching = Fetching(source, clip, watch, self.changed.set)
        self.work = Work(
            detector,
            rates=rates,
            stopwatch=watch,
            pitch=options.pitch,
            motion=not options.every_frame,
            first_batch=options.first_batch,
            prefetch_frames=options.prefetch_frames,
            on_change=self._tell(asyncio.get_running_loop()),
        )
        self.planner = Planner(options, rates, source, self.work, watch)
        self.stream: StreamChain | None = None
        self.ended = False
        """All that was planned is done."""

    # --- the way of the data --------------------------------------------------------------------------------------

    async def steps(self, partial: bool) -> AsyncIterator[Analysis]:
        await self._begin(partial)
        seen, said = 0, False
        while not await self._finished():
            looked = len(self.work.detections)
            if looked and not said:
                said = True
                log.info("Processed %d frames in %.1fs", looked, self.watch.elapsed)
            if partial and looked and (seen == 0 or looked >= 2 * seen):
                seen = looked
                yield await asyncio.to_thread(self._answer, None)
        self.ended = self.work.finished and not (self.stream is not None and self.stream.cut_short)
        await self.stop()
        self._raise_failures()
        # A plan that leaves samples out has done so for the deadline, except where the guide's prefix was asked for.
        complete = self._whole() or (self.ended and (self.clip.fetch == "head" or math.isinf(self.budget_seconds)))
        analysis = await asyncio.to_thread(self._answer, "end" if complete else "deadline")
        if analysis.hardware_decoding:
            log.info("Using NVDEC")
        log.info("Completed processing %d frames in %.1fs", len(analysis.frames), self.watch.elapsed)
        yield analysis

    async def stop(self) -> None:
        """End the threads and the fetching; also when the caller goes away in the middle."""
        self.work.stop()
        await self.fetching.stop()
        await asyncio.shield(asyncio.to_thread(self.work.join))

    async def _begin(self, partial: bool) -> None:
        self.clip.sparse.subscribe(self.work.bytes_came)
        if self.clip.index is None:
            self._begin_stream()
            return
        if self.clip.fetch != "head":
            await self.fetching.first_key()
        self.planner.rates = self.planner.measured()
        if self.options.auto_deadline:
            self._choose_deadline()
        self._plan(key_at_once=partial)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        def tell() -> None:
            # A worker that outlives the loop (the caller was killed in the middle) has nobody to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self.changed.set)

        return tell

    def _begin_stream(self) -> None:
        stride = 1 if self.options.every_frame else self.options.stride or DEFAULT_STRIDE
        streamed: Streamed = self.clip.sparse
        if self.clip.fetch == "direct":
            streamed = AskingBytes(self.clip.sparse, self.fetching.where_read())
        else:
            self.fetching.stream()
        self.stream = StreamChain(streamed, self.deadline.earlier(self._reserve()), self.work.bytes_came)
        self.work.add(self.stream, [0], every=stride)
        self.work.seal()

    async def _finished(self) -> bool:
        """Wait until something changed; True when all is done, the deadline is near, or nothing more can come."""
        left = self.deadline.earlier(self._reserve(len(self.work.detections))).remaining()
        if self.work.finished or left <= 0.0 or (self.fetching.error and self.work.idle):
            return True
        tick = left if math.isinf(left) else min(left, REPLAN_SECONDS)
        # Not `wait_for`: on Python 3.11 it can swallow a cancellation that comes with the news.
        with suppress(TimeoutError):
            async with asyncio.timeout(_finite(tick)):
                await self.changed.wait()
        self.changed.clear()
        if math.isinf(self.deadline.moment) and not math.isinf(self.budget_seconds) and self.work.detections:
            self.deadline = Deadline.after(self.budget_seconds, self.deadline.clock)
        if self.clip.index is not None and not math.isinf(self.deadline.moment):
            self._replan()
        return self.work.finished

    def _reserve(self, looks: int = 0) -> float:
        """What is kept before the deadline, with so many looks, for a thread that has as much of a core as these."""
        return (ANSWER_RESERVE_SECONDS + LINK_SECONDS_A_LOOK * looks) / self.planner.rates.core_share

    def _choose_deadline(self) -> None:
        """TIME_BUDGET_S=auto, now that the clip and the link are known; never later than what was asked for."""
        assert self.clip.index is not None
        best = best_budget(self.clip.index, Machine(self.planner.rates, self.watch.elapsed), self.options.choice)
        log.info("TIME_BUDGET_S=auto: %g s", best)
        self.budget_seconds = min(best, self.budget_seconds)
        if not math.isinf(self.deadline.moment) or not self.options.start_budget_after_first_frame:
            moment = self.deadline.clock() - self.watch.elapsed + best
            self.deadline = Deadline(min(moment, self.deadline.moment), self.deadline.clock)

    # --- the plan at work -----------------------------------------------------------------------------------------

    def _plan(self, *, only_better: bool = False, key_at_once: bool = False) -> None:
        """Choose the steps, move those that run, queue the others, and fetch for them."""
        clip, options = self.clip, self.options
        assert clip.index is not None
        budget = min(self.budget_seconds, self.deadline.remaining()) - self._reserve()
        plan = self.planner.make(clip, budget, only_better=only_better)
        if plan is None:
            return
        begun = self.work.replan({step.first_row: step for step in plan.steps})
        if begun is None:
            return
        self.planner.use(plan)
        every = 1 if options.every_frame else None
        device = "cuda" if options.nvdec and self.detector.device == "cuda" else "cpu"
        for step in plan.steps:
            if step.first_row not in begun:
                chain = GopChain(
                    clip.index,
                    clip.sparse,
                    step,
                    self.planner.rates,
                    skip_disposable=plan.skip_disposable,
                    device=device,
                    surfaces=self.detector.surfaces,
                    key_at_once=key_at_once and step is plan.steps[0],
                )
                self.work.add(chain, step.look_at[:1] if every else step.look_at, every=every)
        self.work.seal()
        self.fetching.plan(plan, self.planner.measured)

    def _replan(self) -> None:
        """Plan again where the rates, or time that is left, ask for it."""
        why = self.planner.see(self.clip, fetched=self.fetching.plan_is_here)
        if why is not None:
            log.debug("%s: planning again with %s", why, self.planner.rates)
            self._plan(only_better=why == "time left")
            self.changed.set()

    # --- the answer -----------------------------------------------------------------------------------------------

    def _raise_failures(self) -> None:
        """What leaves nothing to answer is an error; the rest is a warning beside the answer."""
        if self.work.failure is not None:
            raise self.work.failure
        if not self.work.detections:
            if self.fetching.error is not None:
                raise self.fetching.error
            if self.work.errors:
                raise self.work.errors[0]
            if not math.isinf(self.budget_seconds):
                raise DeadlineExceeded(f"no frame could be looked at within {self.budget_seconds:.3g} s")
            raise DecodeFailed("the decoder made no frame of this file")
        self.clip.warnings.extend(str(error) for error in self.work.errors[:3])
        if self.fetching.error is not None:
            self.clip.warnings.append(str(self.fetching.error))

    def _answer(self, stopped_by: Literal["end", "deadline"] | None) -> Analysis:
        """What is done, as an answer; None: a partial one."""
        work, clip, whole, rates = self.work.snapshot(), self.clip, self._whole(), self.planner.measured()
        view = view_of(clip.index, work, self.stream.decoder if self.stream else None)
        with self.watch.stage("carry"):
            frames = fill(view, work, self.options, beyond=stopped_by is not None, whole=whole)
        self.watch.seconds["total"] = self.watch.elapsed
        if clip.fetch == "stream" or clip.fetch == "direct":
            self.watch.seconds["fetch"] = self.watch.elapsed - self.watch.seconds["connect"]
        return Analysis(
            self.source.name,
            clip.sparse.size,
            view.width,
            view.height,
            view.frame_count,
            view.frames_per_second,
            view.duration_seconds,
            stopped_by or "end",
            clip.fetch,
            f"{self.detector.runtime} {self.detector.precision} on {self.detector.device}",
            self.work.hardware,
            self.source.bytes_fetched,
            self.source.requests,
            work.frames_decoded,
            len(work.detections),
            {name: self.watch.seconds.get(name, 0.0) for name in STAGES},
            frames,
            self.planner.plan,
            rates,
            tuple(clip.warnings),
        )

    def _whole(self) -> bool:
        """All that was planned is done, and that is the whole clip: then every frame is answered."""
        index = self.clip.index
        covered = index is None or self.work.rows_covered == len(index.offset)
        return self.ended and covered and not self.work.errors


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds
