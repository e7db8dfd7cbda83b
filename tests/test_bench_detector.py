"""The baseline that our detector's speed is compared with is the network it says it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from bench import yolov8n


def test_the_baseline_has_the_parameters_and_the_output_of_yolov8n(tmp_path: Path) -> None:
    # ultralytics' own count, fused: 3,151,904, of which 16 are the constants 0..15 of its box decoding
    assert yolov8n.write(tmp_path / "y.onnx", size=64) == 3_151_904 - 16
    session = onnxruntime.InferenceSession(str(tmp_path / "y.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": np.zeros((1, 3, 64, 64), np.float32)})
    assert answer.shape == (1, 84, 8 * 8 + 4 * 4 + 2 * 2)
    assert np.isfinite(answer).all()
