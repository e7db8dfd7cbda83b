"""The subnet's public track: `Miner(path).predict_batch(...)`.

`firsttouch export DIR` makes the package's `miner.py` of this file and of the modules of ours that it imports, put
before it word for word, so that it stands alone (numpy, OpenCV, ONNX Runtime). It repeats the few lines of
`detect.planes` and `detect.native` that it needs; a test holds the two to the same answer. The judge's scan of
`miner.py` forbids calls of open, eval and exec, and imports of sockets, processes and ctypes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from firsttouch.detect.roles import METADATA_KEY, Roles

Picture = NDArray[np.uint8]

MODEL_FILE = "firsttouch.onnx"
CONFIDENCE = 0.25
MAX_DETECTIONS = 100
KEYPOINT_CONFIDENCE = 0.3
THREADS = 2  # the judge's machine has 2 vCPU
MAX_PIXELS = 7680 * 4320


class FrameResult(dict[str, Any]):
    """One frame's answer: a plain dict, which also answers `model_dump()` as the chute's pydantic model does."""

    def model_dump(self) -> dict[str, Any]:
        return dict(self)


class Miner:
    """Boxes and pitch key points for batches of pictures."""

    def __init__(self, path_hf_repo: Path) -> None:
        """`path_hf_repo`: the folder that holds the ONNX file."""
        folder = Path(path_hf_repo)
        model = folder / MODEL_FILE
        if not model.is_file():
            model = next(iter(sorted(folder.glob("*.onnx"))), model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        facts = json.loads(metadata["firsttouch"])
        self.roles = Roles.from_text(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
        self.width = int(facts["img_size"])
        self.height = (self.width * 9 // 16 + 15) // 16 * 16
        self.input = self.session.get_inputs()[0].name
        self.name = model.name

    def __repr__(self) -> str:
        return f"firsttouch {self.name}, input {self.width}x{self.height}, {self.session.get_providers()[0]}"

    def predict_batch(self, batch_images: list[Picture], offset: int, n_keypoints: int) -> list[FrameResult]:
        """One result for each BGR picture (H, W, 3) uint8, numbered from `offset`; pixels are the picture's own."""
        return [self._predict(picture, offset + number, n_keypoints) for number, picture in enumerate(batch_images)]

    def _predict(self, picture: Picture, frame_id: int, n_keypoints: int) -> FrameResult:
        planes, factors = self._input_of(picture)
        answer = self.session.run(["boxes", "scores", "keypoints"], {self.input: planes[None]})
        boxes, scores, keypoints = (output[0] for output in answer)
        if self.roles is not None:
            scores, _ = self.roles.refined(planes, boxes, scores, keypoints)
        height, width = picture.shape[:2]
        return FrameResult(
            frame_id=frame_id,
            boxes=_boxes(boxes * np.array(factors * 2, np.float32), scores, width, height),
            polygons=[],
            keypoints=_keypoints(keypoints * np.array((*factors, 1), np.float32), width, height, n_keypoints),
        )

    def _input_of(self, picture: Picture) -> tuple[Picture, tuple[float, float]]:
        """Six planes (four phases of luma, U, V), and the factors back to the picture's pixels."""
        y, u, v = planes_of(picture)
        rows, columns = y.shape
        scale = min(2 * self.width / columns, 2 * (self.width * 9 // 16) / rows)
        width, height = (max(2, 2 * round(side * scale / 2)) for side in (columns, rows))
        planes = np.full((self.height, self.width, 6), 16, np.uint8)
        planes[..., 4:] = 128
        luma = _scaled(y, width, height)
        for phase in range(4):
            planes[: height // 2, : width // 2, phase] = luma[phase // 2 :: 2, phase % 2 :: 2]
        planes[: height // 2, : width // 2, 4] = _scaled(u, width // 2, height // 2)
        planes[: height // 2, : width // 2, 5] = _scaled(v, width // 2, height // 2)
        return planes, (columns / width, rows / height)


def planes_of(picture: Picture) -> tuple[Picture, Picture, Picture]:
    """Y (H, W), U and V (H/2, W/2) of a BGR picture; an odd last row or column is repeated."""
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        height, width = picture.shape[:2]
    packed = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_BGR2YUV_I420)
    chroma = np.asarray(packed[height:], np.uint8).reshape(2, height // 2, width // 2)
    return np.asarray(packed[:height], np.uint8), chroma[0], chroma[1]


def decode_picture(data: bytes) -> Picture | None:
    """A JPEG or PNG as BGR (H, W, 3) uint8; None when it is no picture."""
    if not data:
        return None
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        return None
    return np.asarray(picture, np.uint8)


def _scaled(plane: Picture, width: int, height: int) -> Picture:
    if plane.shape == (height, width):
        return plane
    method = cv2.INTER_AREA if plane.shape[1] >= 2 * width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=method), np.uint8)


def _boxes(xyxy: NDArray[np.float32], scores: NDArray[np.float32], width: int, height: int) -> list[dict[str, Any]]:
    """Boxes in whole pixels, best first, cut at the picture's edge; those without an area are left out."""
    keep = np.flatnonzero(scores.max(axis=1) >= CONFIDENCE)[:MAX_DETECTIONS]
    corners = np.rint(np.clip(xyxy[keep], 0, (width, height, width, height))).astype(int)
    return [
        {
            "x1": x1,
            "y1": y1,
            "x2": x2,
            "y2": y2,
            "cls_id": int(row.argmax()),
            "conf": round(float(row.max()), 4),
        }
        for (x1, y1, x2, y2), row in zip(corners.tolist(), scores[keep], strict=True)
        if x2 > x1 and y2 > y1
    ]


def _keypoints(points: NDArray[np.float32], width: int, height: int, count: int) -> list[tuple[int, int]]:
    """`count` points in whole pixels; (0, 0) for one that is not seen, or that the model does not know."""
    x, y, sure = points.T
    seen = (sure >= KEYPOINT_CONFIDENCE) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    whole = np.where(seen[:, None], np.rint(points[:, :2]), 0).astype(int).tolist()
    return [(a, b) for a, b in whole[:count]] + [(0, 0)] * max(0, count - len(whole))
