"""The steps of a plan on worker threads: decode, look, follow. Knows frames and motion, neither network nor plan.

Three kinds of work come out of a step. Decoding is a chain: the next frame needs the one before. Looking (the detector)
and following (optical flow between two looked-at frames) are leaves that any thread can take at any time. So a thread
takes leaves first, which keeps memory low and answers early, unless one chain is so long that it would outlast all
the rest: then the chain goes first and the leaves fill the other threads.

One thread, one native call at a time: the decoder, OpenCV and the runtime are all told to use a single thread, since
two one-thread workers beat one two-thread call on every stage (see ARCHITECTURE.md, "Threads").
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .chain import GopChain, StreamChain
from .clock import Stopwatch
from .decode import Frame
from .detect import Detections, Detector
from .detect.session import OutOfDeviceMemory
from .errors import FirsttouchError
from .motion import Motion, follow, use_one_thread
from .plan import FLOW_STEP, Progress, Rates, Step

Grey = npt.NDArray[np.uint8]

LOOKING_AT_A_DEVICE = 2
"""Threads that hand frames to a device that takes many at once: it works for one while the other makes ready."""

BACKLOG_GREYS = 240
"""Grey planes kept before decoding pauses: 0.23 MB each."""


@dataclass(slots=True)
class Look:
    """A frame that the detector looks at, and the grey planes decoded after it until the next one."""

    frame_number: int
    width: int
    height: int
    grey: Grey | None
    inputs: Any
    """What `Detector.detect` takes, until it has been looked at."""
    detections: Detections | None = None
    after: list[tuple[int, Grey]] = field(default_factory=list)

    @property
    def newest(self) -> int:
        """The last frame whose grey plane is kept for the flow that begins here."""
        return self.after[-1][0] if self.after else self.frame_number


@dataclass(slots=True)
class Chain:
    """A decoding chain, the frames to look at, and the looks whose gap to the next one is still open."""

    decoding: GopChain | StreamChain
    targets: deque[int]
    every: int | None = None
    """Look again this many frames after a look: for streams, whose frames cannot be planned."""
    started: bool = False
    busy: bool = False
    done: bool = False
    opening: Look | None = None
    looks: list[Look] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    """Frames to look at so far, those included that nobody has come to yet."""
    last: Frame | None = None
    """The newest frame while a target is open: looked at when the chain ends before the target comes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is done so far, in the order of the clip."""

    detections: list[Detections]
    motions: list[Motion]
    pts: dict[int, int]
    """Ticks by frame number, of the frames decoded."""
    width: int
    height: int
    frames_decoded: int


class Work:
    """Runs chains on `workers` threads until all is done or it is stopped."""

    def __init__(
        self,
        detector: Detector,
        *,
        rates: Rates,
        stopwatch: Stopwatch,
        pitch: bool = True,
        motion: bool = True,
        first_batch: int = 1,
        prefetch_frames: int = 24,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.frames_decoded = 0
        self.detections: dict[int, Detections] = {}
        self.motions: dict[tuple[int, int], Motion] = {}
        self.frames_followed = 0
        self.hardware = False
        self.errors: list[FirsttouchError] = []
        self._detector = detector
        self._rates, self._watch = rates, stopwatch
        self._pitch, self._motion = pitch, motion
        self._batch, self._prefetch = first_batch, prefetch_frames
        # A device that joins frames gets them from few threads, or each would come with one.
        self._most_looking = rates.workers if detector.batch_size == 1 else LOOKING_AT_A_DEVICE
        self._looking = 0
        self._pts: dict[int, int] = {}
        self._size = (0, 0)
        self._on_change = on_change
        self._wake = threading.Condition()
        self._chains: list[Chain] = []
        self._to_detect: deque[Look] = deque()
        self._to_follow: deque[tuple[Look, Look]] = deque()
        self._greys = 0
        self._in_flight = 0
        self._stopped = False
        self._sealed = self._over = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"firsttouch-{n}", daemon=True) for n in range(rates.workers)
        ]
        self._alive = len(self._threads)
        use_one_thread()
        for thread in self._threads:
            thread.start()

    # --- what the pipeline tells us -------------------------------------------------------------------------------

    def add(self, decoding: GopChain | StreamChain, targets: Sequence[int], *, every: int | None = None) -> None:
        """Queue a chain; `targets` are the frame numbers to look at, rising; `every` adds one after each look."""
        with self._wake:
            self._chains.append(Chain(decoding, deque(targets), every))
            self._wake.notify_all()

    def replan(self, steps: Mapping[int, Step]) -> frozenset[int] | None:
        """Drop the chains nobody has begun, move end and targets of the others. Returns the rows those begin at.

        More may come until the next `seal`. None, and nothing changed: all was done already, and the threads end.
        """
        with self._wake:
            if self._over:
                return None
            self._sealed = False
            self._chains = [chain for chain in self._chains if chain.started]
            for chain in self._chains:
                step = steps.get(chain.decoding.rows.start)
                if chain.done or step is None:
                    continue
                chain.decoding.move_end(step.stop_row)
                newest = chain.looks[-1].frame_number if chain.looks else -1
                chain.targets = deque(number for number in step.look_at if number > newest)
            self._wake.notify_all()
            return frozenset(chain.decoding.rows.start for chain in self._chains)

    @property
    def progress(self) -> dict[int, Progress]:
        """How far each begun chain is, by its first row."""
        with self._wake:
            return {
                chain.decoding.rows.start: Progress(
                    chain.decoding.next_row - chain.decoding.rows.start,
                    len(chain.opened) - sum(look.detections is None for look in chain.looks),
                    tuple(chain.opened) if chain.done else None,
                )
                for chain in self._chains
                if chain.started
            }

    @property
    def samples_given(self) -> tuple[int, int]:
        """Key frames, and other samples, that were given to the decoders: what the time spent on decoding went into."""
        with self._wake:
            given = [chain.decoding.given for chain in self._chains]
        return sum(keys for keys, _ in given), sum(others for _, others in given)

    @property
    def rows_covered(self) -> int:
        """How many rows of the index the finished chains have decoded or left out as disposable."""
        with self._wake:
            return sum(len(chain.decoding.rows) for chain in self._chains if chain.done)

    def seal(self) -> None:
        """No more chains will come: the threads may end when all is done."""
        with self._wake:
            self._sealed = True
            self._wake.notify_all()

    def bytes_came(self) -> None:
        """New bytes arrived: a waiting chain may go on. Called from the thread that wrote them."""
        with self._wake:
            self._wake.notify_all()

    def stop(self) -> None:
        """No new work is begun; what runs ends within one quantum."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    def join(self, timeout: float | None = None) -> None:
        for thread in self._threads:
            thread.join(timeout)

    @property
    def finished(self) -> bool:
        return self._alive == 0

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing can be begun with the bytes that are here."""
        with self._wake:
            waiting = self._to_detect or self._to_follow or self._decodable() is not None
            return self._in_flight == 0 and not waiting

    def snapshot(self) -> Snapshot:
        with self._wake:
            detections = [self.detections[number] for number in sorted(self.detections)]
            motions = [self.motions[pair] for pair in sorted(self.motions)]
            return Snapshot(detections, motions, dict(self._pts), *self._size, self.frames_decoded)

    @property
    def failure(self) -> BaseException | None:
        """What ended a thread that should not have ended."""
        return self._failure

    # --- the threads ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (task := self._next()) is not None:
                try:
                    task()
                finally:
                    with self._wake:
                        self._in_flight -= 1
                        self._wake.notify_all()
                self._on_change()
        except BaseException as error:
            self._failure = error
            self.stop()
        finally:
            with self._wake:
                self._alive -= 1
                last = self._alive == 0
            if last:
                for chain in self._chains:
                    chain.decoding.close()
            self._on_change()

    def _next(self) -> Callable[[], None] | None:
        """The next thing to do; waits while there may be one; None when all is done or stopped."""
        with self._wake:
            while True:
                if self._stopped:
                    return None
                task = self._choose()
                if task is not None:
                    self._in_flight += 1
                    return task
                idle = self._in_flight == 0 and not self._to_detect and not self._to_follow
                if self._sealed and idle and all(chain.done for chain in self._chains):
                    self._over = True
                    return None
                self._wake.wait()

    def _choose(self) -> Callable[[], None] | None:
        chain = self._decodable()
        may_look = bool(self._to_detect) and self._looking < self._most_looking
        leaf = bool(self._to_follow) or may_look
        if not leaf and len(self._to_detect) >= self._prefetch:
            return None  # the device is behind
        if chain is not None and (not leaf or (self.detections and self._chain_first(chain))):
            chain.busy = chain.started = True
            return lambda: self._decode(chain)
        if self._to_follow:
            first, last = self._to_follow.popleft()
            return lambda: self._follow(first, last)
        if may_look:
            self._looking += 1
            looks = [self._to_detect.popleft() for _ in range(min(self._batch, len(self._to_detect)))]
            self._batch = min(self._batch * 2, self._detector.batch_size)
            return lambda: self._look(looks)
        return None

    def _decodable(self) -> Chain | None:
        """The first chain in order that nobody holds and whose bytes are there."""
        for chain in self._chains:
            if not chain.busy and not chain.done and chain.decoding.ready():
                return chain
        return None

    def _chain_first(self, chain: Chain) -> bool:
        """Would this chain outlast everything else if the leaves went first?"""
        if len(self._to_detect) >= self._prefetch or self._greys >= BACKLOG_GREYS:
            return False
        left = [c.decoding.seconds_left for c in self._chains if not c.done]
        leaves = len(self._to_detect) * self._rates.detect_seconds
        leaves += sum(len(first.after) for first, _ in self._to_follow) * self._rates.flow_seconds
        return max(left) > 0.6 * (sum(left) + leaves) / self._rates.workers and chain.decoding.seconds_left == max(left)

    # --- the work -------------------------------------------------------------------------------------------------

    def _decode(self, chain: Chain) -> None:
        try:
            with self._watch.stage("decode"):
                for frame in chain.decoding.advance():
                    self._take(chain, frame)
                    if self._stopped:
                        break
                if chain.decoding.finished and chain.targets and chain.last is not None:
                    self._open_look(chain, chain.last)
        except FirsttouchError as error:
            self.errors.append(error)
            chain.done = True
        with self._wake:
            chain.busy = False
            if chain.decoding.finished or chain.done:
                chain.done, chain.last = True, None
                chain.decoding.close()
            self._queue_follows()

    def _take(self, chain: Chain, frame: Frame) -> None:
        """A decoded frame: looked at when it is the first at or after a target, otherwise kept for flow."""
        with self._wake:
            self.frames_decoded += 1
            self._pts[frame.frame_number] = frame.pts
        if chain.targets and frame.frame_number >= chain.targets[0]:
            self._open_look(chain, frame)
            return
        chain.last = frame if chain.targets else None
        if self._motion and chain.looks and frame.frame_number - chain.looks[-1].newest >= FLOW_STEP:
            grey = self._grey(frame)
            with self._wake:
                chain.looks[-1].after.append((frame.frame_number, grey))
                self._greys += 1

    def _open_look(self, chain: Chain, frame: Frame) -> None:
        while chain.targets and chain.targets[0] <= frame.frame_number:
            chain.targets.popleft()
        if chain.every is not None:
            chain.targets.append(frame.frame_number + chain.every)
        chain.last = None
        width, height = frame.size
        grey = self._grey(frame) if self._motion else None
        look = Look(frame.frame_number, width, height, grey, self._inputs(frame))
        with self._wake:
            self._size = (width, height)
            self.hardware = self.hardware or chain.decoding.hardware
            if chain.looks and chain.looks[-1].after and chain.looks[-1].after[-1][0] == look.frame_number:
                chain.looks[-1].after.pop()
                self._greys -= 1
            chain.opening = chain.opening or look
            chain.looks.append(look)
            chain.opened.append(look.frame_number)
            self._to_detect.append(look)
            self._wake.notify_all()

    def _grey(self, frame: Frame) -> Grey:
        if frame.on_device and self._detector.surfaces is not None:
            with suppress(OutOfDeviceMemory):
                return self._detector.surfaces.grey(frame.surfaces[0])
            frame = frame.copied()
        return frame.grey()

    def _inputs(self, frame: Frame) -> Any:
        if frame.on_device and self._detector.surfaces is not None:
            with suppress(OutOfDeviceMemory):
                return self._detector.surfaces.inputs(*frame.surfaces)
            frame = frame.copied()
        return self._detector.prepare(frame.y, frame.u, frame.v)

    def _look(self, looks: list[Look]) -> None:
        try:
            self._see(looks)
        finally:
            with self._wake:
                self._looking -= 1

    def _see(self, looks: list[Look]) -> None:
        with self._watch.stage("detect"):
            inputs = [look.inputs for look in looks if look.inputs is not None]
            numbers = [look.frame_number for look in looks]
            found = self._detector.detect(inputs, numbers, looks[0].width, looks[0].height, pitch=self._pitch)
        self._watch.mark("first_frame")
        with self._wake:
            for look, detections in zip(looks, found, strict=True):
                look.detections, look.inputs = detections, None
                self.detections[look.frame_number] = detections
            self._queue_follows()

    def _queue_follows(self) -> None:
        """Queue every pair of neighbouring looks with all between them decoded. Holds the lock."""
        if not self._motion:
            return
        openings = {chain.decoding.rows.start: chain.opening for chain in self._chains}
        for chain in self._chains:
            looks = chain.looks
            while len(looks) >= 2 and looks[0].detections is not None and looks[1].detections is not None:
                self._to_follow.append((looks.pop(0), looks[0]))
            behind = openings.get(chain.decoding.rows.stop)
            if behind is None or behind.detections is None or not chain.done:
                continue
            if len(looks) == 1 and looks[0].detections is not None:
                self._to_follow.append((looks.pop(0), behind))

    def _follow(self, first: Look, last: Look) -> None:
        assert first.grey is not None
        assert last.grey is not None
        assert first.detections is not None
        assert last.detections is not None
        numbers = [first.frame_number, *(number for number, _ in first.after), last.frame_number]
        greys = [first.grey, *(grey for _, grey in first.after), last.grey]
        with self._watch.stage("carry"):
            motion = follow(greys, numbers, first.detections, last.detections, first.width / first.grey.shape[1])
        with self._wake:
            self.motions[first.frame_number, last.frame_number] = motion
            self.frames_followed += len(first.after) + 1
            self._greys -= len(first.after)
            first.after.clear()
