"""The files that ship: every precision sees the same in a drawn picture, and together they are small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from firsttouch.detect import BUNDLED_MODEL
from firsttouch.detect.planes import Canvas, fill, planes_of_picture
from train.render import random_still

SURE = 0.5


@pytest.fixture(scope="module")
def planes() -> np.ndarray:
    picture, _ = random_still(np.random.default_rng(5))
    return fill(Canvas.of_size(640), *planes_of_picture(picture), None)[None]


def answer(path: Path, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes of the rows that are sure."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"planes": planes})
    sure = scores[0].max(axis=1) > SURE
    return boxes[0][sure], scores[0][sure].argmax(axis=1)


@pytest.mark.parametrize(("precision", "pixels", "share"), [("fp16", 1.0, 1.0), ("int8", 6.0, 0.9)])
def test_a_smaller_precision_finds_what_float32_finds(precision: str, pixels: float, share: float, planes) -> None:
    boxes, classes = answer(BUNDLED_MODEL, planes)
    found, kinds = answer(BUNDLED_MODEL.with_suffix(f".{precision}.onnx"), planes)
    assert len(boxes) >= 8
    distance = np.abs(boxes[:, None] - found[None]).max(-1)
    same = (distance.min(axis=1) < pixels) & (kinds[distance.argmin(axis=1)] == classes)
    assert same.mean() >= share - (0.1 if precision == "fp16" else 0.0), (
        "a row at the threshold may fall on its other side"
    )


def test_all_weights_together_are_at_most_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.parent.glob("*.onnx")) <= 10e6
