"""TensorRT that is not built yet: CUDA serves at once, the engine is built beside it, and takes over when it agrees.

Not verified on hardware: what is built, when it is taken and what is said are tested with fakes.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from firsttouch.detect.detections import Array
from firsttouch.detect.session import ModelFile, OutOfDeviceMemory, Problem, Runtime, Session, Values
from firsttouch.errors import FirsttouchError

log = logging.getLogger(__name__)

BEGIN_SECONDS = 10.0
"""A build keeps GPU and CPU busy for minutes: it begins when a command that answers one clip is long over."""
SURE, LEAST_SURE = 0.4, 0.3
"""A box as sure as the first must have its like among those as sure as the second: half precision moves scores."""
LEAST_IOU = 0.5
LEAST_SHARE = 0.95
"""Of the boxes, that have their like: one in twenty may lie on the edge of what is found."""

Make = Callable[[], Session]
Boxes = Callable[[Sequence[Values], float], list[Array]]
"""Outputs and a confidence -> for each picture the boxes (N, 4) at least that sure."""
_one_build = threading.Lock()


class Layout(Protocol):
    """How a model is asked (outputs, and the input's shape), and where its answer holds boxes."""

    def __call__(self, model: ModelFile) -> tuple[tuple[str, ...], tuple[int, ...]]: ...

    def boxes(self, model: ModelFile, outputs: Sequence[Values], confidence: float) -> list[Array]: ...


class EngineRuntime(Runtime, Protocol):
    """A runtime whose models are compiled for minutes before they are fast, once for each shape."""

    def has_engine(
        self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str
    ) -> bool: ...

    def build_apart(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> None:
        """Build in a process of its own. Raises RuntimeUnavailable with the reason."""


@dataclass(frozen=True, slots=True)
class EngineWhenBuilt:
    """`engine` where one is built; otherwise `meanwhile`, which hands over once it is."""

    engine: EngineRuntime
    meanwhile: Runtime
    layout: Layout

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def device(self) -> str:
        return self.engine.device

    def problem(self, precision: str) -> Problem | None:
        return self.engine.problem(precision)

    def open(self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str) -> Session:
        """Raises as `meanwhile` does; an engine that does not open is one warning."""
        if self.engine.has_engine(model, outputs, shape, precision):
            try:
                return self.engine.open(model, outputs, shape, precision)
            except OutOfDeviceMemory:
                raise
            except FirsttouchError as exc:
                log.warning("%s does not run, %s does: %s", self.name, self.meanwhile.name, exc)
                return self._open_meanwhile(model, outputs, shape, precision)

        def make() -> Session:
            self.engine.build_apart(model, outputs, shape, precision)
            return self.engine.open(model, outputs, shape, precision)

        now = self._open_meanwhile(model, outputs, shape, precision)
        return UpgradingSession(now, make, lambda found, least: self.layout.boxes(model, found, least))

    def _open_meanwhile(
        self, model: ModelFile, outputs: tuple[str, ...], shape: tuple[int, ...], precision: str
    ) -> Session:
        """The engine is made of the fp32 file; what serves meanwhile runs the file of its precision, where it is."""
        half = model.path.with_suffix(f".{precision}.onnx")
        if half.exists():
            return self.meanwhile.open(ModelFile.read(half), outputs, shape, precision)
        return self.meanwhile.open(model, outputs, shape, "fp32")


class UpgradingSession:
    """Each run is wholly on `now` or on what `make` made.

    After `begin` a thread waits `delay` seconds, makes, waits for a run that found something, and lets the new session
    answer it too: where both find the same boxes, the next run is on the new one. The thread is a daemon, and ends with
    the session: nobody waits for it. Anything that goes wrong is one warning, and `now` goes on.
    """

    def __init__(self, now: Session, make: Make, boxes: Boxes, delay: float = BEGIN_SECONDS) -> None:
        self._session = now
        self._boxes = boxes
        self._delay = delay
        self._make: Make | None = make
        self._lock = threading.Lock()
        self._seen: tuple[Values, list[Values]] | None = None
        self._wakes = threading.Event()
        self._waiting = False

    @property
    def runtime(self) -> str:
        return self._session.runtime

    @property
    def device(self) -> str:
        return self._session.device

    @property
    def precision(self) -> str:
        return self._session.precision

    @property
    def on_calling_thread(self) -> bool:
        return self._session.on_calling_thread

    def run(self, values: Values) -> list[Values]:
        outputs = self._session.run(values)
        if self._waiting and any(len(each) for each in self._boxes(outputs, SURE)):
            self._seen, self._waiting = (values, outputs), False
            self._wakes.set()
        return outputs

    def begin(self) -> threading.Thread | None:
        """Start making; only the first call does, and gives the thread."""
        with self._lock:
            make, self._make = self._make, None
        if make is None:
            return None
        ended = threading.Event()
        weakref.finalize(self, _wake, ended, self._wakes).atexit = False
        arguments = (weakref.ref(self), self.runtime, make, self._wakes, ended, self._delay)
        thread = threading.Thread(target=_upgrade, args=arguments, name="firsttouch-engine", daemon=True)
        thread.start()
        return thread

    def expect(self) -> None:
        """Keep the next run that finds something, for the comparison."""
        self._waiting = True

    def take(self, better: Session) -> str | None:
        """Go on with `better` if it finds the boxes of the run that was kept; why not, otherwise."""
        assert self._seen is not None
        values, expected = self._seen
        self._seen = None
        reason = difference(self._boxes, expected, better.run(values))
        if reason is None:
            self._session = better
        return reason


def _wake(*events: threading.Event) -> None:
    for event in events:
        event.set()


def _upgrade(
    session: weakref.ref[UpgradingSession],
    before: str,
    make: Make,
    seen: threading.Event,
    ended: threading.Event,
    delay: float,
) -> None:
    """The thread: holds the session only while it has something to do with it."""
    if ended.wait(delay):
        return
    try:
        with _one_build:
            if ended.is_set():
                return
            log.info("building an engine beside what runs; it takes over when it finds the same")
            better = make()
        if (waiting := session()) is not None:
            waiting.expect()
        del waiting
        seen.wait()
        if (waiting := session()) is None:
            return
        reason = waiting.take(better)
    except Exception as exc:  # whatever it is: this thread is nobody's, and the clips are answered without it
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    if reason is None:
        log.info("%s %s runs from now on", better.runtime, better.precision)
    else:
        log.warning("no engine takes over, %s goes on: %s", before, reason)


def difference(boxes: Boxes, expected: Sequence[Values], found: Sequence[Values]) -> str | None:
    """How the boxes of two answers differ by more than half precision may; None when they do not."""
    count = alike = 0
    for mine, other in ((expected, found), (found, expected)):
        for sure, partners in zip(boxes(mine, SURE), boxes(other, LEAST_SURE), strict=True):
            count += len(sure)
            alike += int((_iou(sure, partners).max(axis=1, initial=0.0) >= LEAST_IOU).sum())
    if alike >= LEAST_SHARE * count:
        return None
    return f"only {alike} of {count} boxes are the same"


def _iou(one: Array, other: Array) -> Array:
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (one, other)]
    return np.asarray(inside / np.maximum(areas[0][:, None] + areas[1][None] - inside, 1e-9), np.float32)
