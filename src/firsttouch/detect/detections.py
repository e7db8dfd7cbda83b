"""What a detector gives back, and what every detector promises, whatever runtime is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("ball", "goalkeeper", "player", "referee")
"""Index is `class_id`, as the judge of the subnet numbers them."""

KEYPOINT_COUNT = 32

Array = NDArray[np.float32]
Plane = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was seen in one looked-at frame, in pixels of the source picture, best first.

    `xyxy` (N, 4) and `class_scores` (N, 4) are float32; a row is one body, with a score for each of
    `CLASS_NAMES`. `keypoints` (32, 3) float32 holds x, y and confidence; all zero means not seen.
    `shirts` (N, 2, 3) float32: mean Y, U, V of shirt and shorts, NaN where not known; None: the detector does not say.
    """

    frame_number: int
    xyxy: Array
    class_scores: Array
    keypoints: Array
    shirts: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.xyxy)
        if self.xyxy.shape != (count, 4):
            raise ValueError(f"xyxy must have shape (N, 4), got {self.xyxy.shape}")
        if self.class_scores.shape != (count, 4):
            raise ValueError(f"class_scores must have shape ({count}, 4), got {self.class_scores.shape}")
        if self.keypoints.shape != (KEYPOINT_COUNT, 3):
            raise ValueError(f"keypoints must have shape (32, 3), got {self.keypoints.shape}")
        if self.shirts is not None and self.shirts.shape != (count, 2, 3):
            raise ValueError(f"shirts must have shape ({count}, 2, 3), got {self.shirts.shape}")

    def __len__(self) -> int:
        return len(self.xyxy)

    @property
    def confidence(self) -> Array:
        """(N,) float32: the score of the likeliest class."""
        return self.class_scores.max(axis=1) if len(self) else np.zeros(0, np.float32)

    @property
    def class_id(self) -> NDArray[np.uint8]:
        """(N,) uint8: the likeliest class of this one glance (the track votes over many)."""
        return np.asarray(self.class_scores.argmax(axis=1), np.uint8)

    @classmethod
    def none(cls, frame_number: int) -> Detections:
        """Looked, and saw nothing."""
        return cls(
            frame_number,
            np.zeros((0, 4), np.float32),
            np.zeros((0, 4), np.float32),
            np.zeros((KEYPOINT_COUNT, 3), np.float32),
        )


class Surfaces(Protocol):
    """Makes what a detector and flow want of pictures in the device's memory, there: the same as from planes."""

    def takes(self, width: int, height: int) -> bool:
        """Whether it does so for pictures of this size."""

    def inputs(self, luma: object, chroma: object) -> Any:
        """What `Detector.prepare` gives, on the device; of DLPack capsules of Y (H, W) and UV (H / 2, W / 2, 2)."""

    def grey(self, luma: object) -> Plane:
        """What `Frame.grey` gives, in the CPU's memory."""


class Detector(Protocol):
    """Frames in, `Detections` out. Two threads may call `detect` at the same time.

    On the CPU each call runs on the calling thread alone: two one-thread workers beat one two-thread
    session. `batch_size` is how many frames of one call the runtime really joins (1 on the CPU).
    """

    @property
    def name(self) -> str:
        """What the model is called, for logs and answers."""

    @property
    def device(self) -> str:
        """Where it really runs: "cpu", "cuda" ..."""

    @property
    def runtime(self) -> str:
        """What really runs it: "onnxruntime", "openvino" ..."""

    @property
    def precision(self) -> str:
        """ "fp32", "int8", "bf16" or "fp16"."""

    @property
    def batch_size(self) -> int:
        """Frames that are best given to one `detect` call."""

    @property
    def surfaces(self) -> Surfaces | None:
        """What takes pictures that stay on the device; None where there is no such way."""

    def prepare(self, y: Plane, u: Plane, v: Plane, out: Plane | None = None) -> Plane:
        """Model input made from the planes of one 4:2:0 picture: y (H, W), u and v (H/2, W/2).

        Always a copy: the planes may be gone when it returns. `out` is an earlier answer of this method
        that is no longer needed, and is then written over.
        """

    def detect(
        self, inputs: Sequence[Plane], frame_numbers: Sequence[int], width: int, height: int, *, pitch: bool
    ) -> list[Detections]:
        """One `Detections` per input, made by `prepare` or `surfaces`. `width` and `height` are the source picture's.

        `pitch=False` does not run what finds key points.
        """
