"""An operator's own ONNX models: YOLOv8, v11 and v26 (as ultralytics exports them) and YOLOX.

The layout is read off the outputs' shapes and the file's metadata (`names`, `task`, `kpt_shape`, `imgsz`):

    [B, 4 + classes (+ key points), A]   v8, v11: centre boxes in input pixels, scores; NMS is ours
    [B, N, 6 (+ key points)]             v26, and v8/v11 exported with NMS: corner boxes, score, class
    [B, A, 5 + classes]                  YOLOX: boxes relative to their cell, objectness, scores; NMS is ours

with A the number of cells of strides 8, 16 and 32. Only facts of these formats are used, no code of theirs.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.detect.detections import KEYPOINT_COUNT, Array, Detections, Detector, Plane
from firsttouch.detect.native import clipped, seen_points
from firsttouch.detect.session import ModelFile, OpenSession, Session, Values
from firsttouch.errors import ModelMismatch

Role = Literal["player", "ball", "pitch"]
Kind = Literal["anchors", "final", "yolox"]
BALL = 0
GREY = 114
NMS_IOU = 0.6
STRIDES = (8, 16, 32)
DEFAULT_SIZE = 640
CANDIDATES = 1000
"""Best boxes that NMS looks at."""

_WORDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (1, ("goalkeeper", "goal keeper", "keeper", "goalie", "gk")),
    (3, ("referee", "ref", "umpire", "linesman", "assistant")),
    (0, ("ball", "football", "soccer ball", "sports ball")),
    (2, ("player", "person", "footballer", "football player", "soccer player", "field player", "outfield player")),
)
_COCO = {0: "person", 32: "sports ball"}


@dataclass(frozen=True, slots=True)
class Form:
    """How to read a model: what its input wants, what its output holds, and our class for each of its own."""

    kind: Kind
    width: int
    height: int
    classes: dict[int, int]
    class_count: int
    keypoint_values: int
    """Numbers per key point (2 or 3), 0 without a pose head."""


def class_of_name(name: str) -> int | None:
    """Our class for a model's class name; None for what we do not look for."""
    plain = name.strip().lower().replace("_", " ").replace("-", " ")
    for class_id, words in _WORDS:
        if plain in words or plain.rstrip("s") in words:
            return class_id
    return None


def read_form(model: ModelFile, role: Role, img_size: int | None = None) -> Form:
    """Recognise a model. Raises ModelMismatch with what was found when it is of none of the known forms."""
    width, height = _input_size(model, img_size)
    shape = model.facts.outputs[0].shape
    names = _names(model)
    points, keypoint_values = _keypoint_values(model, role)
    extra = points * keypoint_values
    kind, channels = _kind(model, shape, width, height, extra)
    head = {"anchors": 4, "final": 6, "yolox": 5}[kind]
    count = len(names) if names else 0 if kind == "final" else channels - head - extra
    if kind != "final" and names and channels < head + count + extra:
        raise ModelMismatch(
            f"{model.path.name}: {channels} values a box, but {count} classes and {extra} key-point values",
            hint="the file's metadata does not belong to its graph: export it again",
        )
    return Form(kind, width, height, _classes(model, role, names, count), count, keypoint_values)


def _kind(model: ModelFile, shape: tuple[int | str, ...], width: int, height: int, extra: int) -> tuple[Kind, int]:
    """The form, and how many values it has a box."""
    cells = sum((width // s) * (height // s) for s in STRIDES)
    if len(shape) == 3:
        first, second = shape[1], shape[2]
        ultralytics = "names" in model.facts.metadata
        if second == cells and isinstance(first, int):
            return "anchors", first
        if first == cells and isinstance(second, int) and not ultralytics:
            return "yolox", second
        if second == 6 + extra and first != cells:
            return "final", 6 + extra
        if isinstance(first, int) and not isinstance(second, int) and ultralytics:
            return "anchors", first
        if isinstance(second, int) and not isinstance(first, int) and not ultralytics and second > 6:
            return "yolox", second
    raise ModelMismatch(
        f"{model.path.name}: output {model.facts.outputs[0].name} of shape {list(shape)} for an input of "
        f"{width}x{height} is of no form we know ({cells} cells)",
        hint="known are YOLOv8, v11, v26 (with or without NMS, detect or pose) and YOLOX, exported to ONNX",
    )


def _input_size(model: ModelFile, img_size: int | None) -> tuple[int, int]:
    """Width and height of the input: the file's where it is fixed, else IMG_SIZE wide and 16:9 high."""
    tensor = model.facts.inputs[0]
    if len(tensor.shape) != 4 or tensor.shape[1] not in (3, "") or tensor.element_type not in ("float32", "float16"):
        raise ModelMismatch(
            f"{model.path.name}: input {tensor.name} is {tensor.element_type} {list(tensor.shape)}",
            hint="a YOLO model takes float pictures [batch, 3, height, width]",
        )
    height, width = tensor.shape[2], tensor.shape[3]
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    wanted = _multiple_of_32(img_size or DEFAULT_SIZE)
    return wanted, _multiple_of_32(wanted * 9 // 16)


def _multiple_of_32(size: int) -> int:
    return max(32, (size + 31) // 32 * 32)


def _names(model: ModelFile) -> dict[int, str]:
    """Class names from ultralytics' metadata, a Python dict or list as text; empty when there are none."""
    text = model.facts.metadata.get("names")
    if not text:
        return {}
    try:
        value = ast.literal_eval(text)
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {int(key): str(name) for key, name in pairs}
    except (ValueError, SyntaxError, TypeError) as exc:
        raise ModelMismatch(f"{model.path.name}: unreadable class names {text[:80]!r}") from exc


def _keypoint_values(model: ModelFile, role: Role) -> tuple[int, int]:
    """How many key points a box has and how many numbers each; none without a pose head. The pitch needs our 32."""
    text = model.facts.metadata.get("kpt_shape")
    points, values = (0, 0) if text is None else _pose_shape(model, text)
    if role == "pitch" and points == 0:
        raise ModelMismatch(
            f"{model.path.name} has no key points (metadata {sorted(model.facts.metadata)})",
            hint=f"MODEL_PITCH wants a pose model with {KEYPOINT_COUNT} key points",
        )
    if role == "pitch" and (points != KEYPOINT_COUNT or values not in (2, 3)):
        raise ModelMismatch(
            f"{model.path.name} has {points} key points of {values} numbers",
            hint=f"MODEL_PITCH wants {KEYPOINT_COUNT} of 2 or 3, in the order of the pitch table",
        )
    return points, values


def _pose_shape(model: ModelFile, text: str) -> tuple[int, int]:
    try:
        points, values = ast.literal_eval(text)
        return int(points), int(values)
    except (ValueError, SyntaxError, TypeError) as exc:
        raise ModelMismatch(f"{model.path.name}: unreadable kpt_shape {text[:80]!r}") from exc


def _classes(model: ModelFile, role: Role, names: dict[int, str], count: int) -> dict[int, int]:
    """Our class for each of the model's that we look for in this role."""
    if role == "pitch":
        return {}
    if not names:
        names = _unnamed(model, role, count)
    mapped = {key: ours for key, name in names.items() if (ours := class_of_name(name)) is not None}
    if role == "ball":
        mapped = {key: ours for key, ours in mapped.items() if ours == BALL}
    if not mapped or (role == "player" and set(mapped.values()) == {BALL}):
        raise ModelMismatch(
            f"{model.path.name}: classes {list(names.values())[:12]} hold no {role}",
            hint="names we know: ball, football; goalkeeper; player, person; referee",
        )
    return mapped


def _unnamed(model: ModelFile, role: Role, count: int) -> dict[int, str]:
    """YOLOX files carry no names: 80 classes are COCO's, 4 are ours, and one is what the role says."""
    if count == 80:
        return _COCO
    if count == 4:
        return {0: "ball", 1: "goalkeeper", 2: "player", 3: "referee"}
    if count == 1:
        return {0: role}
    raise ModelMismatch(
        f"{model.path.name} has {count} classes without names",
        hint="put them into the file's metadata: names = {0: 'ball', 1: 'goalkeeper', 2: 'player', 3: 'referee'}",
    )


@dataclass(frozen=True, slots=True)
class Letterbox:
    """A picture scaled without distortion into an input: x_input = x_picture * scale + left."""

    scale: float
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int, form: Form) -> Letterbox:
        """In the middle, as ultralytics does; in the corner for YOLOX."""
        scale = min(form.width / width, form.height / height)
        if form.kind == "yolox":
            return cls(scale, 0, 0)
        spare = (form.width - round(width * scale), form.height - round(height * scale))
        return cls(scale, round(spare[0] / 2 - 0.1), round(spare[1] / 2 - 0.1))

    def to_picture(self, points: Array) -> Array:
        """(..., 2) input pixels as picture pixels."""
        return np.asarray((points - np.array((self.left, self.top))) / self.scale, np.float32)


class YoloModel:
    """One such model in one role; several threads may look at the same time."""

    def __init__(self, model: ModelFile, role: Role, open_session: OpenSession, img_size: int | None) -> None:
        self.form = read_form(model, role, img_size)
        self.role = role
        self.name = model.path.stem
        self._element_type = model.facts.inputs[0].element_type
        self.session: Session = open_session(model, *YoloLayout(role, img_size)(model))
        self._cells = _cells(self.form) if self.form.kind == "yolox" else None

    def look(self, picture: NDArray[np.uint8], confidence: float) -> tuple[Array, Array, Array]:
        """Boxes (N, 4) and class scores (N, 4), best first, and key points (32, 3), of a BGR picture."""
        box = Letterbox.fit(picture.shape[1], picture.shape[0], self.form)
        values = self._input(picture, box)
        rows = self.session.run(values)[0][0].astype(np.float32)
        if self.role == "pitch":
            return np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), self._keypoints(rows, box, confidence)
        boxes, scores = self._boxes(rows, confidence)
        corners = box.to_picture(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        return corners, scores, np.zeros((KEYPOINT_COUNT, 3), np.float32)

    def _input(self, picture: NDArray[np.uint8], box: Letterbox) -> Values:
        size = (round(picture.shape[1] * box.scale), round(picture.shape[0] * box.scale))
        canvas = np.full((self.form.height, self.form.width, 3), GREY, np.uint8)
        method = cv2.INTER_AREA if box.scale <= 0.5 else cv2.INTER_LINEAR
        inside = canvas[box.top : box.top + size[1], box.left : box.left + size[0]]
        inside[:] = cv2.resize(picture, size, interpolation=method)
        if self.form.kind == "yolox":
            return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], self._element_type)
        planes = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None], np.float32)
        return np.asarray(planes * np.float32(1 / 255), self._element_type)

    def _boxes(self, rows: Array, confidence: float) -> tuple[Array, Array]:
        boxes, scores = self._decoded(rows)
        best = scores.max(axis=1)
        kept = np.flatnonzero(best >= confidence)
        kept = kept[np.argsort(-best[kept], kind="stable")][:CANDIDATES]
        if self.form.kind != "final":
            kept = kept[_nms(boxes[kept], scores[kept])]
        return boxes[kept], scores[kept]

    def _decoded(self, rows: Array) -> tuple[Array, Array]:
        """Corner boxes in input pixels and our class scores, for every row of the output."""
        form = self.form
        boxes, raw = _corners(form, rows, self._cells)
        scores = np.zeros((len(boxes), 4), np.float32)
        for theirs, ours in form.classes.items():
            if form.kind == "final":
                mine = rows[:, 5].round().astype(int) == theirs
                scores[mine, ours] = rows[mine, 4]
            else:
                scores[:, ours] = np.maximum(scores[:, ours], raw[:, theirs])
        return boxes, scores

    def _keypoints(self, rows: Array, box: Letterbox, confidence: float) -> Array:
        """Those of the surest pitch."""
        form = self.form
        if form.kind == "anchors":
            rows = rows.T
            score = rows[:, 4 : 4 + form.class_count].max(axis=1)
            values = rows[:, 4 + form.class_count :]
        else:
            score, values = rows[:, 4], rows[:, 6:]
        best = int(score.argmax())
        if score[best] < confidence:
            return np.zeros((KEYPOINT_COUNT, 3), np.float32)
        points = values[best, : KEYPOINT_COUNT * form.keypoint_values].reshape(KEYPOINT_COUNT, -1)
        sure = points[:, 2:] if form.keypoint_values == 3 else np.full((KEYPOINT_COUNT, 1), score[best])
        return np.concatenate([box.to_picture(points[:, :2]), sure], axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class YoloLayout:
    """The first output is what we read; the input is one picture."""

    role: Role
    img_size: int | None

    def __call__(self, model: ModelFile) -> tuple[tuple[str, ...], tuple[int, ...]]:
        form = read_form(model, self.role, self.img_size)
        return (model.facts.outputs[0].name,), (1, 3, form.height, form.width)

    def boxes(self, model: ModelFile, outputs: Sequence[Values], confidence: float) -> list[Array]:
        """For each picture the boxes (N, 4) that any class is at least this sure of; many to a body without NMS."""
        form = read_form(model, self.role, self.img_size)
        decoded = [_corners(form, rows.astype(np.float32), None) for rows in outputs[0]]
        return [boxes[raw.max(axis=1) >= confidence] for boxes, raw in decoded]


def _corners(form: Form, rows: Array, cells: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """Corner boxes (A, 4) in input pixels and the model's own class scores (A, classes), whatever the kind."""
    if form.kind == "final":
        return rows[:, :4], rows[:, 4:5]
    if form.kind == "yolox":
        grid, stride = cells or _cells(form)
        centre, size = (rows[:, :2] + grid) * stride, np.exp(np.minimum(rows[:, 2:4], 20)) * stride
        raw = rows[:, 5 : 5 + form.class_count] * rows[:, 4:5]
    else:
        rows = rows.T
        centre, size = rows[:, :2], rows[:, 2:4]
        raw = rows[:, 4 : 4 + form.class_count]
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1), raw


def _cells(form: Form) -> tuple[Array, Array]:
    """Column and row (A, 2) and stride (A, 1) of every cell, row by row, finest stride first."""
    grids, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: form.height // stride, : form.width // stride]
        grids.append(np.stack([columns, rows], -1).reshape(-1, 2))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(grids).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _nms(boxes: Array, scores: Array) -> NDArray[np.int64]:
    """Rows to keep, best first: one box a body whatever its class (so that a keeper is never two), balls apart."""
    ball = scores.argmax(axis=1) == BALL
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    free = np.ones(len(boxes), bool)
    kept = []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        kept.append(i)
        low, high = np.maximum(boxes[i, :2], boxes[:, :2]), np.minimum(boxes[i, 2:], boxes[:, 2:])
        inside = np.clip(high - low, 0, None).prod(axis=1)
        same = inside > NMS_IOU * (areas[i] + areas - inside)
        free &= ~(same & (ball == ball[i]))
    return np.array(kept, np.int64)


class CombinedDetector:
    """An operator's models, and the bundled network for what they named none for.

    Without MODEL_PLAYER the boxes, and without MODEL_PITCH the key points, are the bundled network's. On a GPU
    the models run side by side, each session in a stream of its own.
    """

    batch_size = 1
    surfaces = None

    def __init__(
        self, models: Sequence[YoloModel], bundled: Detector | None, *, confidence: float, max_detections: int
    ) -> None:
        self._by_role = {model.role: model for model in models}
        self._bundled = bundled
        self._confidence = confidence
        self._max_detections = max_detections
        self.name = "+".join([*(m.name for m in models), *([bundled.name] if bundled else [])])
        self._first = models[0].session
        parallel = self.device == "cuda" and len(models) > 1
        self._pool = ThreadPoolExecutor(len(models), "model") if parallel else None

    @property
    def device(self) -> str:
        return self._first.device

    @property
    def runtime(self) -> str:
        return self._first.runtime

    @property
    def precision(self) -> str:
        return self._first.precision

    def prepare(self, y: Plane, u: Plane, v: Plane, out: Plane | None = None) -> Plane:
        """The planes below each other (H * 3 / 2, W), as OpenCV wants them; an odd edge is repeated."""
        height, width = (y.shape[0] + 1) // 2 * 2, (y.shape[1] + 1) // 2 * 2
        shape = (height * 3 // 2, width)
        packed = out if out is not None and out.shape == shape else np.empty(shape, np.uint8)
        luma = packed[:height]
        luma[: y.shape[0], : y.shape[1]] = y
        luma[y.shape[0] :] = luma[y.shape[0] - 1]
        luma[:, y.shape[1] :] = luma[:, y.shape[1] - 1 : y.shape[1]]
        flat, quarter = packed.reshape(-1), height * width // 4
        flat[height * width :][:quarter].reshape(u.shape)[:] = u
        flat[height * width + quarter :].reshape(v.shape)[:] = v
        return packed

    def detect(
        self, inputs: Sequence[Plane], frame_numbers: Sequence[int], width: int, height: int, *, pitch: bool
    ) -> list[Detections]:
        numbered = zip(frame_numbers, inputs, strict=True)
        return [self._one(number, packed, width, height, pitch) for number, packed in numbered]

    def _one(self, number: int, packed: Plane, width: int, height: int, pitch: bool) -> Detections:
        picture = np.asarray(cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_I420), np.uint8)[:height, :width]
        wanted = [model for role, model in self._by_role.items() if pitch or role != "pitch"]
        looks = dict(zip((m.role for m in wanted), self._look(wanted, picture), strict=True))
        base = self._bundled_look(number, packed, width, height, pitch)
        boxes, scores, points = base.xyxy, base.class_scores, base.keypoints
        if "player" in looks:
            boxes, scores, _ = looks["player"]
        if "ball" in looks:
            others = scores.argmax(axis=1) != BALL if len(scores) else np.zeros(0, bool)
            boxes = np.concatenate([boxes[others], looks["ball"][0]])
            scores = np.concatenate([scores[others], looks["ball"][1]])
        if "pitch" in looks:
            points = seen_points(looks["pitch"][2], width, height)
        order = np.argsort(-scores.max(axis=1), kind="stable")[: self._max_detections] if len(scores) else slice(0)
        inside, kept = clipped(boxes[order], width, height)
        return Detections(number, inside[kept], scores[order][kept].astype(np.float32), points)

    def _look(self, models: Sequence[YoloModel], picture: NDArray[np.uint8]) -> list[tuple[Array, Array, Array]]:
        if self._pool is None or len(models) < 2:
            return [model.look(picture, self._confidence) for model in models]
        jobs = [self._pool.submit(model.look, picture, self._confidence) for model in models]
        return [job.result() for job in jobs]

    def _bundled_look(self, number: int, packed: Plane, width: int, height: int, pitch: bool) -> Detections:
        """What the bundled network says, where nobody else is asked."""
        needs_points = pitch and "pitch" not in self._by_role
        if self._bundled is None or ("player" in self._by_role and not needs_points):
            return Detections.none(number)
        rows = packed.shape[0] * 2 // 3
        flat, quarter = packed.reshape(-1), rows * packed.shape[1] // 4
        chroma = (rows // 2, packed.shape[1] // 2)
        u = flat[rows * packed.shape[1] :][:quarter].reshape(chroma)
        v = flat[rows * packed.shape[1] + quarter :].reshape(chroma)
        made = self._bundled.prepare(packed[:height, :width], u, v)
        return self._bundled.detect([made], [number], width, height, pitch=needs_points)[0]
