"""Our own network: six uint8 planes in; boxes, class scores and key points out of one backbone pass.

Who is goalkeeper, player or referee is then said with the whole picture in view (`roles`)."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firsttouch.detect.detections import CLASS_NAMES, KEYPOINT_COUNT, Array, Detections, Plane
from firsttouch.detect.planes import Canvas, fill
from firsttouch.detect.roles import METADATA_KEY, Kept, Roles
from firsttouch.detect.session import ModelFile, OpenSession, OutOfDeviceMemory, Session, Values
from firsttouch.errors import ModelMismatch

if TYPE_CHECKING:
    from firsttouch.detect.surfaces import TorchSurfaces

log = logging.getLogger(__name__)

LAYOUT_KEY = "firsttouch"
LAYOUT = 2
BOX_OUTPUTS = ("boxes", "scores")
ALL_OUTPUTS = ("boxes", "scores", "keypoints")

POINT_BOX = 16
KEYPOINT_CONFIDENCE = 0.3
"""Below it a pitch point counts as not seen."""


def is_native(model: ModelFile) -> bool:
    return LAYOUT_KEY in model.facts.metadata


@dataclass(frozen=True, slots=True)
class NativeLayout:
    """What the self-test asks for: everything, of one picture."""

    img_size: int | None

    def __call__(self, model: ModelFile) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return ALL_OUTPUTS, (1, *native_canvas(model, self.img_size).shape)

    def boxes(self, model: ModelFile, outputs: Sequence[Values], confidence: float) -> list[Array]:
        """For each picture the boxes (N, 4) at least this sure; a key point counts as one of `POINT_BOX` pixels."""
        found = [boxes[scores.max(axis=1) >= confidence] for boxes, scores in zip(*outputs[:2], strict=True)]
        if len(outputs) == len(BOX_OUTPUTS):
            return found
        points = [picture[picture[:, 2] >= confidence][:, :2] for picture in outputs[2]]
        half = POINT_BOX / 2
        return [np.concatenate([b, np.hstack([p - half, p + half])]) for b, p in zip(found, points, strict=True)]


class NativeDetector:
    """Runs a model of the native layout; boxes alone and boxes with key points are two sessions.

    The session for boxes alone is opened when it is first needed: opening costs tens of milliseconds. `on_device`: its
    sessions take tensors of the GPU, so pictures that are decoded there need not leave it.
    """

    def __init__(
        self,
        model: ModelFile,
        open_session: OpenSession,
        *,
        img_size: int | None = None,
        batch_size: int = 1,
        confidence: float = 0.25,
        max_detections: int = 100,
        on_device: bool = False,
    ) -> None:
        self.canvas = native_canvas(model, img_size)
        self.surfaces = _surfaces(self.canvas) if on_device else None
        self.batch_size = batch_size
        self.name = model.path.stem
        self._model = model
        self._roles = native_roles(model)
        self._open = open_session
        self._confidence = confidence
        self._max_detections = max_detections
        self._lock = threading.Lock()
        self._sessions: dict[bool, Session] = {}
        self._with_pitch, _ = self.opened(pitch=True)

    @property
    def device(self) -> str:
        return self._with_pitch.device

    @property
    def runtime(self) -> str:
        return self._with_pitch.runtime

    @property
    def precision(self) -> str:
        return self._with_pitch.precision

    def opened(self, pitch: bool) -> tuple[Session, int]:
        """What runs with or without the key-point head, and its batch; opened on the first call for it."""
        with self._lock:
            while pitch not in self._sessions:
                outputs = ALL_OUTPUTS if pitch else BOX_OUTPUTS
                try:
                    self._sessions[pitch] = self._open(self._model, outputs, (self.batch_size, *self.canvas.shape))
                except OutOfDeviceMemory:
                    self._halve(self.batch_size)
            return self._sessions[pitch], self.batch_size

    def prepare(self, y: Plane, u: Plane, v: Plane, out: Plane | None = None) -> Plane:
        return fill(self.canvas, y, u, v, out)

    def detect(
        self, inputs: Sequence[Plane], frame_numbers: Sequence[int], width: int, height: int, *, pitch: bool
    ) -> list[Detections]:
        found: list[Detections] = []
        while len(found) < len(inputs):
            start = len(found)
            outputs, planes, count = self._run(inputs[start:], pitch)
            boxes, scores, *points = (output[:count] for output in outputs)
            shirts = None
            if self._roles is not None:
                scores, shirts = self._roles.refined(planes, boxes, scores, points[0] if pitch else None)
            for row in range(count):
                found.append(
                    self._to_source(
                        frame_numbers[start + row],
                        boxes[row],
                        scores[row],
                        points[0][row] if pitch else None,
                        None if shirts is None else shirts[row],
                        width,
                        height,
                    )
                )
        return found

    def _run(self, inputs: Sequence[Any], pitch: bool) -> tuple[list[Values], Plane | Kept, int]:
        """The outputs of as many of the inputs as one batch takes, and these as one. Out of memory, the batch is halved
        for good."""
        while True:
            session, size = self.opened(pitch)
            batch = inputs[:size]
            try:
                values = self._stacked(batch, size)
                outputs, planes = session.run(values), values[: len(batch)]
                kept = planes if self.surfaces is None or isinstance(planes, np.ndarray) else self.surfaces.kept(planes)
                return outputs, kept, len(batch)
            except OutOfDeviceMemory:
                with self._lock:
                    self._halve(size)

    def _halve(self, size: int) -> None:
        """With the lock held; nothing where another thread has done so."""
        if self.batch_size == size:
            if size == 1:
                raise OutOfDeviceMemory("the device has not enough memory for one frame")
            self.batch_size = size // 2
            self._sessions.clear()
            log.warning("out of memory with %d frames in a batch: going on with %d", size, size // 2)

    def _stacked(self, batch: Sequence[Any], size: int) -> Any:
        """Inputs as one array of the fixed batch size; a short last batch is filled up with zeros."""
        if size == 1:
            return batch[0][None]
        if self.surfaces is not None and not all(isinstance(planes, np.ndarray) for planes in batch):
            return self.surfaces.stacked(batch, size)
        stacked = np.zeros((size, *self.canvas.shape), np.uint8)
        for row, planes in enumerate(batch):
            stacked[row] = planes
        return stacked

    def _to_source(
        self,
        number: int,
        boxes: Array,
        scores: Array,
        keypoints: Array | None,
        shirts: Array | None,
        width: int,
        height: int,
    ) -> Detections:
        factors = self.canvas.to_source(width, height)
        keep = np.flatnonzero(scores.max(axis=1) >= self._confidence)[: self._max_detections]
        xyxy, kept = clipped(boxes[keep] * np.array(factors * 2, np.float32), width, height)
        points = np.zeros((KEYPOINT_COUNT, 3), np.float32)
        if keypoints is not None:
            points = seen_points(keypoints * np.array((*factors, 1), np.float32), width, height)
        keep = keep[kept]
        worn = None if shirts is None else shirts[keep]
        return Detections(number, xyxy[kept], scores[keep].astype(np.float32), points, worn)


def _surfaces(canvas: Canvas) -> TorchSurfaces | None:
    """PyTorch is imported only where pictures can stay on the device, and takes a second."""
    from firsttouch.detect.surfaces import TorchSurfaces, surfaces_problem

    problem = surfaces_problem()
    if problem is None:
        return TorchSurfaces(canvas)
    log.info("decoded pictures are copied from the GPU: %s. To keep them there: %s", problem.reason, problem.remedy)
    return None


def clipped(xyxy: Array, width: int, height: int) -> tuple[Array, NDArray[np.bool_]]:
    """Boxes cut at the picture's edge, and which of them still have an area of at least one pixel."""
    inside = np.clip(xyxy, 0, np.array((width, height, width, height), np.float32)).astype(np.float32)
    sizes = inside[:, 2:] - inside[:, :2]
    return inside, np.all(sizes >= 1, axis=1)


def seen_points(points: Array, width: int, height: int, confidence: float = KEYPOINT_CONFIDENCE) -> Array:
    """(32, 3) with every point that is unsure or outside the picture set to zero."""
    x, y = points[:, 0], points[:, 1]
    seen = (points[:, 2] >= confidence) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(seen[:, None], points, 0).astype(np.float32)


def native_canvas(model: ModelFile, img_size: int | None) -> Canvas:
    """The canvas of the model's own size, or of another."""
    return Canvas.of_size(img_size or int(native_facts(model)["img_size"]))


def native_roles(model: ModelFile) -> Roles | None:
    """What was fitted to this model's scores; None where nothing was. Raises ModelMismatch."""
    text = model.facts.metadata.get(METADATA_KEY)
    try:
        return Roles.from_text(text) if text else None
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelMismatch(f"{model.path.name} has no readable '{METADATA_KEY}' metadata") from exc


def native_facts(model: ModelFile) -> dict[str, Any]:
    """The model's own JSON. Raises ModelMismatch when the layout is not one this version can read."""
    try:
        facts = json.loads(model.facts.metadata[LAYOUT_KEY])
        layout, classes = facts["layout"], tuple(facts["classes"])
        int(facts["img_size"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelMismatch(f"{model.path.name} has no readable '{LAYOUT_KEY}' metadata") from exc
    outputs = {t.name for t in model.facts.outputs}
    if layout != LAYOUT or classes != CLASS_NAMES or not outputs >= set(ALL_OUTPUTS):
        raise ModelMismatch(
            f"{model.path.name}: layout {layout}, classes {classes}, outputs {sorted(outputs)}",
            hint=f"this version reads layout {LAYOUT}, classes {CLASS_NAMES}, outputs {ALL_OUTPUTS}",
        )
    if model.facts.inputs[0].element_type != "uint8":
        raise ModelMismatch(f"{model.path.name}: input {model.facts.inputs[0]}, expected uint8 planes")
    return dict(facts)
