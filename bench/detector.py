"""Milliseconds per frame of the bundled detector on this machine: precision by precision, one thread and two workers.

The baseline is an ultralytics YOLOv8n at 640 where its ONNX file is given (`--baseline`); it is AGPL and not shipped.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime

from bench.report import print_report, spread, verdict
from firsttouch.detect import Detector, load_detector

FRAMES = 60


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench detector", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--baseline", type=Path, help="an ONNX file to time beside ours, e.g. YOLOv8n at 640")
    asked = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    y = rng.integers(16, 235, (720, 1280), dtype=np.uint8)
    u, v = (rng.integers(16, 240, (360, 640), dtype=np.uint8) for _ in range(2))
    rows: list[list[object]] = []
    body: dict[str, object] = {}
    for precision in ("fp32", "int8"):
        for pitch in (True, False):
            detector = load_detector(precision=precision)
            inputs = detector.prepare(y, u, v)
            one = spread([_one_thread(detector, inputs, pitch) for _ in range(asked.runs)])
            two = spread([_two_workers(detector, inputs, pitch) for _ in range(asked.runs)])
            heads = "boxes and key points" if pitch else "boxes only"
            mark = f"<= 6: {verdict(two['p50'], 6.0)}" if pitch and precision == "int8" else ""
            rows.append([precision, heads, one["p50"], two["p50"], mark])
            body[f"{precision}, {heads}"] = {"one_thread_ms": one, "two_workers_ms": two}
    if asked.baseline:
        figure = spread([_baseline(asked.baseline) for _ in range(asked.runs)])
        rows.append([asked.baseline.name, "baseline", "", figure["p50"], ""])
        body["baseline"] = {"two_threads_ms": figure}
    print_report("detector", ["precision", "heads", "ms, one thread", "ms a frame, 2 cores", ""], rows, body)
    return 0


def _one_thread(detector: Detector, inputs: np.typing.NDArray[np.uint8], pitch: bool) -> float:
    began = time.perf_counter()
    for _ in range(FRAMES // 4):
        detector.detect([inputs], [0], 1280, 720, pitch=pitch)
    return (time.perf_counter() - began) * 1000 / (FRAMES // 4)


def _two_workers(detector: Detector, inputs: np.typing.NDArray[np.uint8], pitch: bool) -> float:
    """Wall milliseconds a frame when two threads detect at the same time, as the pipeline does."""

    def work() -> None:
        for _ in range(FRAMES // 2):
            detector.detect([inputs], [0], 1280, 720, pitch=pitch)

    threads = [threading.Thread(target=work) for _ in range(2)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) * 1000 / FRAMES


def _baseline(path: Path) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else fill for side, fill in zip(entry.shape, (1, 3, 640, 640), strict=True)]
    inputs = np.random.default_rng(0).random(shape, dtype=np.float32)
    session.run(None, {entry.name: inputs})
    began = time.perf_counter()
    for _ in range(FRAMES // 4):
        session.run(None, {entry.name: inputs})
    return (time.perf_counter() - began) * 1000 / (FRAMES // 4)


if __name__ == "__main__":
    sys.exit(main())
