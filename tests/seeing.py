"""A detector that reads the number a test picture carries (`clips.picture`), and says by a box which picture it saw."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from firsttouch.detect import Detections
from tests.clips import number_in

Plane = npt.NDArray[np.uint8]
BOX_WIDTH = 12.0


class NumberReader:
    """One player whose left edge is at 3 times the number in the picture; `slow` seconds a frame, `saw` what it saw."""

    name, device, runtime, precision, batch_size = "number reader", "cpu", "none", "none", 1
    surfaces = None

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.saw: list[int] = []
        self.pitch_asked: set[bool] = set()
        self.batches: list[int] = []
        self._gate = gate

    def prepare(self, y: Plane, u: Plane, v: Plane, out: Plane | None = None) -> Plane:
        return y.copy()

    def detect(
        self, inputs: Sequence[Plane], frame_numbers: Sequence[int], width: int, height: int, *, pitch: bool
    ) -> list[Detections]:
        if self._gate is not None:
            self._gate.wait(30)
        self.pitch_asked.add(pitch)
        self.batches.append(len(inputs))
        return [self._one(y, number) for y, number in zip(inputs, frame_numbers, strict=True)]

    def _one(self, y: Plane, number: int) -> Detections:
        seen = number_in(y)
        self.saw.append(seen)
        left = 3.0 * seen
        box = np.array([[left, 60.0, left + BOX_WIDTH, 100.0]], np.float32)
        scores = np.array([[0.0, 0.02, 0.95, 0.03]], np.float32)
        return Detections(number, box, scores, np.zeros((32, 3), np.float32))


def number_answered(xyxy: npt.NDArray[np.float32]) -> float:
    """Which picture a looked-at frame's only box speaks of."""
    return float(xyxy[0, 0]) / 3.0
