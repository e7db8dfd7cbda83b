"""The stages joined under one deadline: `analyze(source) -> Analysis`.

The event loop fetches and keeps the plan; worker threads decode, look and follow (`work`); at the end, or when the
deadline comes, what is done is linked, carried to every frame and answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .carry import FrameAnswer, carry
from .chain import AskingBytes, GopChain, StreamChain
from .clock import Deadline, Stopwatch
from .decode import StreamDecoder, Streamed
from .detect import Detector, Wish, load_detector
from .errors import DeadlineExceeded, DecodeFailed, FirsttouchError, IndexNotFound, SourceError
from .index import Index, locate_index, read_index
from .netpolicy import Policy
from .plan import DEFAULT_STRIDE, Plan, Rates, make_plan
from .predict import Choice
from .ranges import ByteRange, gaps
from .settings import Settings
from .source import Connections, Facts, Source, open_source
from .sparse import SparseBytes
from .track import link
from .tune import Machine, best_budget
from .work import Snapshot, Work

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]

MEGABYTE = 1024 * 1024

STAGES = ("connect", "index", "fetch", "decode", "detect", "carry", "answer", "first_frame", "total")
"""Keys of `stage_seconds`. `fetch` and `total` are wall time, `first_frame` is a moment; `decode`, `detect` and
`carry` are summed over threads."""

Fetch = Literal["sparse", "head", "stream", "direct", "full"]

HEAD_BYTES = 128 * 1024
"""First request of the first round trip: the index of a faststart file and the start of its first GOP."""

TAIL_BYTES = 64 * 1024
"""Second request of the first round trip: moov is last in 145 of 245 files found in the wild, and mostly smaller."""

ANSWER_RESERVE_SECONDS = 0.11
"""Kept before the deadline for the last quantum, linking, carrying and writing 750 frames."""

LINK_SECONDS_A_LOOK = 0.0004
"""Kept beside it for each frame looked at: linking 717 of them took 0.28 s."""

WEAKER = 0.1
"""Detections this much below the threshold still continue a track that a surer one began (ByteTrack's idea)."""

REPLAN_SECONDS = 0.06
"""How often the rates are looked at under a deadline."""

SLOW_LINK = 2.5e6
"""Bytes a second: a link seen to be slower is believed at once, before its bytes go to a plan it cannot carry."""

LINK_SECONDS = 0.3
"""The link is judged after this much fetching: requests and windows begin slowly."""

REPLAN_RATIO = 1.25
"""A rate this far from the one planned with makes a new plan."""

SEND_SECONDS = 0.001
"""What the event loop needs to put a request on the wire, before a plan of 3 ms is made in it."""

LOOK_AGAIN_SECONDS = 0.02
"""How often the link's pace is looked at while the first key frame has it to itself."""

DIRECT_BYTES = 1024 * 1024
"""What `direct` asks for at a place where the decoder reads and nothing is there."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose; the defaults are the `complete` profile."""

    stride: int | None = None
    """Frames between looked-at frames; None lets the plan choose."""
    every_frame: bool = False
    """Look at every frame and carry nothing: the reference of all comparisons."""
    fetch: Fetch = "sparse"
    fetch_mb: float = 4.0
    """Megabytes (1024 * 1024 bytes) of the start that `fetch="head"` takes."""
    tracking: bool = True
    confidence: float = 0.4
    """What a detection needs to begin a track; a little less continues one."""
    pitch: bool = True
    first_batch: int = 1
    workers: int = 2
    prefetch_frames: int = 24
    """Model inputs that may wait before decoding pauses: 1.4 MB each at the default size."""
    nvdec: bool = True
    """Decode on the GPU where the detector runs on one and the chip takes the clip."""
    max_bytes: int = 512 * 1024 * 1024
    start_budget_after_first_frame: bool = False
    """The guide's meaning of the deadline: it runs from the first looked-at frame."""
    auto_deadline: bool = False
    """Stop when another second costs more score than it brings, by `tune`'s model; the deadline is then the latest."""

    @classmethod
    def of(cls, settings: Settings, *, every_frame: bool = False) -> Options:
        """What these settings ask of the pipeline."""
        return cls(
            stride=settings.stride,
            every_frame=every_frame or settings.stride == 1,
            fetch=settings.fetch_mode,
            fetch_mb=settings.partial_download_mb,
            tracking=not settings.disable_tracking,
            confidence=settings.conf_threshold,
            pitch=not settings.skip_pitch,
            first_batch=settings.ramp_up_first_batch if settings.ramp_up else settings.batch_size,
            prefetch_frames=settings.prefetch_frames,
            nvdec=settings.use_nvdec,
            max_bytes=settings.max_clip_bytes,
            start_budget_after_first_frame=settings.start_budget_after_first_frame,
            auto_deadline=settings.deadline_is_auto,
        )

    @property
    def choice(self) -> Choice:
        """What `tune`'s model wants to know."""
        stride = 1 if self.every_frame else self.stride
        return Choice(self.fetch, self.fetch_mb * MEGABYTE / 1e6, stride, pitch=self.pitch)


def wish_for(settings: Settings) -> Wish:
    """On what these settings want the models run."""
    return Wish(settings.device, settings.runtime, settings.precision, settings.tensorrt, settings.cache_dir)


def detector_for(settings: Settings) -> Detector:
    """The detector these settings name, loaded and ready."""
    return load_detector(
        player=settings.model_player,
        ball=settings.model_ball,
        pitch=settings.model_pitch,
        wish=wish_for(settings),
        img_size=settings.input_width,
        batch_size=settings.batch_size,
        confidence=max(0.01, settings.conf_threshold - WEAKER),
        max_detections=settings.max_detections,
    )


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answer for a clip, and what it took. `frames` has one entry for each frame that is answered."""

    source: str
    size_bytes: int | None
    width: int
    height: int
    frame_count: int
    frames_per_second: float
    duration_seconds: float
    stopped_by: Literal["end", "deadline"]
    fetch: Fetch
    runtime: str
    hardware_decoding: bool
    bytes_fetched: int
    requests: int
    frames_decoded: int
    frames_detected: int
    stage_seconds: dict[str, float]
    frames: list[FrameAnswer]
    plan: Plan | None = None
    rates: Rates | None = None
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Clip:
    """What is known of the clip so far; filled from the index, or by counting when there is none."""

    facts: Facts
    sparse: SparseBytes
    index: Index | None = None
    fetch: Fetch = "sparse"
    plan: Plan | None = None
    warnings: list[str] = field(default_factory=list)


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
    """The same, as it grows: an answer after the first looked-at frame, more as they come, the last one final."""
    limit = deadline if isinstance(deadline, Deadline) else Deadline.after(deadline)
    options = options or Options()
    opened = (
        open_source(source, connections=connections, policy=policy, max_bytes=options.max_bytes)
        if isinstance(source, str | Path)
        else source
    )
    run = _Run(options, detector or load_detector(), limit, rates or Rates(), partial=partial)
    try:
        async for analysis in run.steps(opened):
            yield analysis
    finally:
        await run.stop()
        await opened.close()


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


class _Run:
    """One call of `analyze`: its plan, its threads and its fetching task."""

    def __init__(
        self, options: Options, detector: Detector, deadline: Deadline, rates: Rates, *, partial: bool = False
    ) -> None:
        self.options, self.detector, self.partial = options, detector, partial
        self.budget_seconds = deadline.remaining()
        late = options.start_budget_after_first_frame
        self.deadline = Deadline(math.inf, deadline.clock) if late else deadline
        self.rates = self.planned_rates = self.first_rates = replace(rates, workers=options.workers)
        self.watch = Stopwatch()
        self.changed = asyncio.Event()
        self.asked: list[ByteRange] = []
        self.fetching: asyncio.Task[None] | None = None
        self.fetching_key: asyncio.Task[None] | None = None
        self.key_asked = 0.0
        """When the first key frame was asked for, seconds after the start."""
        self.tasks: list[asyncio.Task[None]] = []
        # Its threads begin while head and tail are on their way.
        self.work = Work(
            detector,
            rates=self.rates,
            stopwatch=self.watch,
            pitch=options.pitch,
            motion=not options.every_frame,
            first_batch=options.first_batch,
            prefetch_frames=options.prefetch_frames,
            on_change=self._tell(asyncio.get_running_loop()),
        )
        self.stream: StreamChain | None = None
        self.topped_up = 0
        """The size of the plan that was last found to be fetched before its time."""
        self.planned_first = 0.0
        """When the first plan was made, seconds after the start."""
        self.fetch_error: SourceError | None = None
        self.ended = False
        """All that was planned is done."""

    # --- the way of the data --------------------------------------------------------------------------------------

    async def steps(self, source: Source) -> AsyncIterator[Analysis]:
        try:
            async with asyncio.timeout(_finite(self.deadline.remaining())):
                clip = await self._open(source)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the index of {source.name} did not come within {self.budget_seconds:g} s"
            ) from None
        await self._begin(source, clip)
        seen, said = 0, False
        while not await self._finished(source, clip):
            looked = len(self.work.detections)
            if looked and not said:
                said = True
                log.info("Processed %d frames in %.1fs", looked, self.watch.elapsed)
            if self.partial and looked and (seen == 0 or looked >= 2 * seen):
                seen = looked
                yield await asyncio.to_thread(self._answer, source, clip, None)
        self.ended = self.work.finished and not (self.stream is not None and self.stream.cut_short)
        await self.stop()
        self._raise_failures(clip)
        # A plan that leaves samples out has done so for the deadline, except where the guide's prefix was asked for.
        complete = self._whole(clip) or (self.ended and (clip.fetch == "head" or math.isinf(self.budget_seconds)))
        analysis = await asyncio.to_thread(self._answer, source, clip, "end" if complete else "deadline")
        if analysis.hardware_decoding:
            log.info("Using NVDEC")
        log.info("Completed processing %d frames in %.1fs", len(analysis.frames), self.watch.elapsed)
        yield analysis

    async def stop(self) -> None:
        """End the threads and the fetching; also when the caller goes away in the middle."""
        self.work.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        await asyncio.shield(asyncio.to_thread(self.work.join))

    async def _open(self, source: Source) -> _Clip:
        """Head and tail in one round trip, then what the index still misses."""
        mode = self.options.fetch
        head = int(self.options.fetch_mb * MEGABYTE) if mode == "head" else HEAD_BYTES
        if mode == "head":
            log.info("Downloading first %g MB", self.options.fetch_mb)
        with self.watch.stage("connect"):
            facts, sparse = await source.open(
                head=head, tail=0 if mode in ("stream", "direct") else TAIL_BYTES, deadline=self.deadline
            )
        clip = _Clip(facts, sparse, fetch=mode)
        if mode == "stream" or (mode == "direct" and facts.accepts_ranges):
            return clip
        if not facts.accepts_ranges:
            clip.warnings.append("the origin does not serve ranges: read from the start")
            clip.fetch = "stream"
            return clip
        with self.watch.stage("index"):
            try:
                clip.index = await fetch_index(source, sparse)
            except IndexNotFound as error:
                clip.warnings.append(f"{error}: read from the start")
                clip.fetch = "stream"
        return clip

    async def _begin(self, source: Source, clip: _Clip) -> None:
        clip.sparse.subscribe(self.work.bytes_came)
        if clip.index is None:
            self._begin_stream(source, clip)
            return
        await self._fetch_first_key(source, clip)
        self.rates = self._measured(source)
        self.planned_first = self.watch.elapsed
        if self.options.auto_deadline:
            self._choose_deadline(clip.index)
        self._plan(source, clip)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        def tell() -> None:
            # A worker that outlives the loop (the caller was killed in the middle) has nobody to tell.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self.changed.set)

        return tell

    def _begin_stream(self, source: Source, clip: _Clip) -> None:
        stride = 1 if self.options.every_frame else self.options.stride or DEFAULT_STRIDE
        streamed: Streamed = clip.sparse
        if clip.fetch == "direct":
            streamed = AskingBytes(clip.sparse, self._ask_direct(source, clip))
        else:
            self._spawn(source.stream, clip)
        self.stream = StreamChain(streamed, self.deadline.earlier(ANSWER_RESERVE_SECONDS), self.work.bytes_came)
        self.work.add(self.stream, [0], every=stride)
        self.work.seal()

    def _ask_direct(self, source: Source, clip: _Clip) -> Callable[[int], None]:
        """Fetch from where the decoder reads; called from its thread."""
        loop = asyncio.get_running_loop()
        size = clip.sparse.size or 0

        def fetch(part: ByteRange) -> None:
            self._spawn(lambda: source.fetch(part), clip)

        def ask(position: int) -> None:
            wanted = ByteRange(position, min(size, position + DIRECT_BYTES))
            for part in gaps(wanted, self.asked):
                self.asked.append(part)
                loop.call_soon_threadsafe(fetch, part)

        return ask

    async def _finished(self, source: Source, clip: _Clip) -> bool:
        """Wait until something changed; True when all is done, the deadline is near, or nothing more can come."""
        reserve = ANSWER_RESERVE_SECONDS + LINK_SECONDS_A_LOOK * len(self.work.detections)
        left = self.deadline.earlier(reserve).remaining()
        if self.work.finished or left <= 0.0 or (self.fetch_error and self.work.idle):
            return True
        tick = left if math.isinf(left) else min(left, REPLAN_SECONDS)
        # Not `wait_for`: on Python 3.11 it can swallow a cancellation that comes with the news.
        with suppress(TimeoutError):
            async with asyncio.timeout(_finite(tick)):
                await self.changed.wait()
        self.changed.clear()
        if math.isinf(self.deadline.moment) and not math.isinf(self.budget_seconds) and self.work.detections:
            self.deadline = Deadline.after(self.budget_seconds, self.deadline.clock)
        if clip.index is not None and not math.isinf(self.deadline.moment):
            self._replan(source, clip)
        return self.work.finished

    def _choose_deadline(self, index: Index) -> None:
        """TIME_BUDGET_S=auto, now that the clip and the link are known; never later than what was asked for."""
        best = best_budget(index, Machine(self.rates, self.watch.elapsed), self.options.choice)
        log.info("TIME_BUDGET_S=auto: %g s", best)
        self.budget_seconds = min(best, self.budget_seconds)
        if not math.isinf(self.deadline.moment) or not self.options.start_budget_after_first_frame:
            moment = self.deadline.clock() - self.watch.elapsed + best
            self.deadline = Deadline(min(moment, self.deadline.moment), self.deadline.clock)

    # --- planning -------------------------------------------------------------------------------------------------

    def _plan(self, source: Source, clip: _Clip, *, only_better: bool = False) -> None:
        """Choose the steps, move those that run, queue the others, and fetch for them.

        `only_better`: what is planned is nearly done; more is planned only where it should come well in time.
        """
        assert clip.index is not None
        options, budget = self.options, min(self.budget_seconds, self.deadline.remaining())
        spare = self.rates.round_trip_seconds if only_better else 0.0
        plan = make_plan(
            clip.index,
            self.rates,
            budget - ANSWER_RESERVE_SECONDS - spare,
            stride=options.stride,
            every_frame=options.every_frame,
            until_byte=int(options.fetch_mb * MEGABYTE) if clip.fetch == "head" else None,
            have=clip.sparse.have(),
            done=self.work.rows_done,
        )
        if only_better and clip.plan is not None and plan.expected_quality <= clip.plan.expected_quality:
            return
        begun = self.work.replan({step.first_row: step for step in plan.steps})
        if begun is None:
            return
        self.planned_rates, clip.plan = self.rates, plan
        every = 1 if options.every_frame else None
        device = "cuda" if options.nvdec and self.detector.device == "cuda" else "cpu"
        for step in plan.steps:
            if step.first_row not in begun:
                chain = GopChain(
                    clip.index,
                    clip.sparse,
                    step,
                    self.rates,
                    skip_disposable=plan.skip_disposable,
                    device=device,
                    key_at_once=self.partial and not begun and step is plan.steps[0],
                )
                self.work.add(chain, step.look_at[:1] if every else step.look_at, every=every)
        self.work.seal()
        fetching = self._spawn(lambda: self._fetch_plan(source, clip, plan), clip)
        if self.fetching is not None:
            self.fetching.cancel()
        self.fetching = fetching

    def _replan(self, source: Source, clip: _Clip) -> None:
        """Plan again when the rates turn out different from those planned with."""
        self.rates = self._measured(source)
        fixed = self.options.every_frame or self.options.stride is not None
        if fixed or clip.plan is None:
            return
        time_is_left = self._time_is_left(clip, clip.plan)
        if time_is_left or _differ(self.rates, self.planned_rates, clip.plan):
            log.debug("planning again with %s", self.rates)
            self._plan(source, clip, only_better=time_is_left)
            self.changed.set()

    def _time_is_left(self, clip: _Clip, plan: Plan) -> bool:
        """Whether all bytes of a plan for less than the whole clip are here already: said once of each such plan."""
        assert clip.index is not None
        if self.fetching is None or not self.fetching.done() or self.topped_up == plan.size_bytes:
            return False
        self.topped_up = plan.size_bytes
        return plan.size_bytes < int(clip.index.size.sum())

    def _measured(self, source: Source) -> Rates:
        """The rates as this run sees them; the earlier value where it has seen too little to tell."""
        work, seconds, rates = self.work, self.watch.cpu_seconds, self.first_rates
        decoded, looked, followed = work.frames_decoded, len(work.detections), len(work.motions)
        # Computing time, not wall time: what a thread waits for the other one is no property of the frame. Against what
        # the first rates foretold for just these frames: key frames cost more, and come first.
        if decoded >= 24:
            foretold = rates.decode_seconds(work.keys_decoded, decoded - work.keys_decoded)
            rates = rates.decoding_times(seconds.get("decode", 0.0) / foretold)
        if looked >= 6:
            rates = replace(rates, detect_seconds=seconds.get("detect", 0.0) / looked)
        if followed >= 6:
            foretold = rates.follow_seconds(followed, work.frames_followed)
            rates = rates.following_times(seconds.get("carry", 0.0) / foretold)
        link = source.bytes_per_second
        settled = self.planned_first > 0.0 and self.watch.elapsed - self.planned_first > LINK_SECONDS
        if link is not None and (settled or link < SLOW_LINK):
            rates = replace(rates, bytes_per_second=link)
        if source.round_trip_seconds is not None:
            rates = replace(rates, round_trip_seconds=source.round_trip_seconds)
        return rates

    # --- fetching -------------------------------------------------------------------------------------------------

    def _spawn(self, work: Callable[[], Awaitable[None]], clip: _Clip) -> asyncio.Task[None]:
        """Fetch beside the work; an error ends the fetching, not what is already here."""

        async def guarded() -> None:
            try:
                await work()
            except FirsttouchError as error:
                self.fetch_error = error if isinstance(error, SourceError) else SourceError(str(error))
                clip.sparse.fail(self.fetch_error)
                self.changed.set()

        task = asyncio.create_task(guarded())
        self.tasks.append(task)
        return task

    async def _fetch_first_key(self, source: Source, clip: _Clip) -> None:
        """Ask for the first key frame before anything is planned: every plan begins with it."""
        assert clip.index is not None
        key = clip.index.byte_range(int(clip.index.key_rows[0]))
        if clip.fetch != "head" and not clip.sparse.has(key):
            self.key_asked = self.watch.elapsed
            self.fetching_key = self._spawn(lambda: source.fetch(key), clip)
            await asyncio.sleep(SEND_SECONDS)

    async def _after_first_key(self, source: Source, clip: _Clip) -> None:
        """Until the first key frame's last byte is as near as a byte that is asked for now.

        Side by side they would share the link: the first look would wait for what is not wanted yet.
        """
        assert clip.index is not None
        key = clip.index.byte_range(int(clip.index.key_rows[0]))
        while self.fetching_key is not None and not self.fetching_key.done():
            rates = self._measured(source)
            missing = sum(map(len, clip.sparse.missing(key)))
            begins = max(0.0, self.key_asked + rates.round_trip_seconds - self.watch.elapsed)
            left = begins + missing / rates.bytes_per_second - rates.round_trip_seconds
            if left <= 0.0:
                return
            await asyncio.wait([self.fetching_key], timeout=min(left, LOOK_AGAIN_SECONDS))

    async def _fetch_plan(self, source: Source, clip: _Clip, plan: Plan) -> None:
        """The plan's bytes in the plan's order, or all; the source keeps the link full and asks for nothing twice."""
        begun = self.watch.elapsed
        try:
            if self.options.fetch == "full":
                await source.stream()
            else:
                await self._after_first_key(source, clip)
                await source.fetch_all(plan.byte_ranges)
        finally:
            self.watch.add("fetch", self.watch.elapsed - begun)
            self.changed.set()

    # --- the answer -----------------------------------------------------------------------------------------------

    def _raise_failures(self, clip: _Clip) -> None:
        """What leaves nothing to answer is an error; the rest is a warning beside the answer."""
        if self.work.failure is not None:
            raise self.work.failure
        if not self.work.detections:
            if self.fetch_error is not None:
                raise self.fetch_error
            if self.work.errors:
                raise self.work.errors[0]
            if not math.isinf(self.budget_seconds):
                raise DeadlineExceeded(f"no frame could be looked at within {self.budget_seconds:.3g} s")
            raise DecodeFailed("the decoder made no frame of this file")
        clip.warnings.extend(str(error) for error in self.work.errors[:3])
        if self.fetch_error is not None:
            clip.warnings.append(str(self.fetch_error))

    def _answer(self, source: Source, clip: _Clip, stopped_by: Literal["end", "deadline"] | None) -> Analysis:
        """Identities, then every frame between the looks; None: what is known half-way, and no frame beyond that."""
        work = self.work.snapshot()
        view = _view(clip, work, self.stream.decoder if self.stream else None)
        numbers = np.arange(view.frame_count, dtype=np.int32) if stopped_by else _known(work)
        with self.watch.stage("carry"):
            sure = max(0.01, self.options.confidence - WEAKER)
            tracks = link(work.detections, work.motions, tracking=self.options.tracking, sure=sure)
            frames = carry(
                tracks,
                work.detections,
                work.motions,
                numbers,
                view.pts_seconds[numbers],
                view.width,
                view.height,
            )
        self.watch.seconds["total"] = self.watch.elapsed
        if clip.fetch == "stream" or clip.fetch == "direct":
            self.watch.seconds["fetch"] = self.watch.elapsed - self.watch.seconds["connect"]
        seconds = {name: self.watch.seconds.get(name, 0.0) for name in STAGES}
        return Analysis(
            source.name,
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
            source.bytes_fetched,
            source.requests,
            work.frames_decoded,
            len(work.detections),
            seconds,
            frames if self._whole(clip) else _answered(frames, _known(work)),
            clip.plan,
            self._measured(source),
            tuple(clip.warnings),
        )

    def _whole(self, clip: _Clip) -> bool:
        """All that was planned is done, and that is the whole clip: then every frame is answered."""
        covered = clip.index is None or self.work.rows_covered == len(clip.index.offset)
        return self.ended and covered and not self.work.errors


@dataclass(frozen=True, slots=True)
class _View:
    """The clip as it is answered: from the index, or counted in a stream."""

    width: int
    height: int
    frame_count: int
    frames_per_second: float
    duration_seconds: float
    pts_seconds: FloatArray


def _view(clip: _Clip, work: Snapshot, stream: StreamDecoder | None) -> _View:
    index = clip.index
    if index is not None:
        return _View(
            index.width,
            index.height,
            index.frame_count,
            index.frames_per_second,
            index.duration_seconds,
            np.asarray(index.pts[index.row_of_frame] * float(index.time_base), np.float64),
        )
    assert stream is not None
    known = sorted(work.pts)
    ticks = np.interp(np.arange(known[-1] + 1), known, [work.pts[number] for number in known])
    times = np.asarray((ticks - ticks[0]) * float(stream.time_base), np.float64)
    length = float(times[-1]) + 1.0 / stream.frames_per_second
    return _View(work.width, work.height, len(times), stream.frames_per_second, length, times)


def _known(work: Snapshot) -> IntArray:
    """Frames looked at or between two looks that flow joins, rising, (N,) int32."""
    looked = [np.array([look.frame_number for look in work.detections], np.int32)]
    joined = [np.arange(motion.first, motion.last + 1, dtype=np.int32) for motion in work.motions]
    return np.unique(np.concatenate(looked + joined))


def _answered(frames: list[FrameAnswer], known: IntArray) -> list[FrameAnswer]:
    """The known frames, and those that something was carried to beyond them."""
    certain = set(known.tolist())
    return [frame for frame in frames if frame.frame_number in certain or frame.ids.size or frame.keypoints.any()]


def _finite(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


def _differ(measured: Rates, planned: Rates, plan: Plan) -> bool:
    """Whether a rate that binds is far from the one planned with: a plan made again late costs what it drops."""
    pairs = [(measured.bytes_per_second, planned.bytes_per_second)]
    work_seconds = sum(step.cost_seconds for step in plan.steps) / planned.workers
    if 2 * work_seconds > plan.size_bytes / measured.bytes_per_second:
        pairs += [
            (measured.decode_reference_seconds, planned.decode_reference_seconds),
            (measured.detect_seconds, planned.detect_seconds),
            (measured.flow_seconds, planned.flow_seconds),
        ]
    return any(max(a, b) > REPLAN_RATIO * min(a, b) for a, b in pairs)
