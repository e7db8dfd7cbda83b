"""Milliseconds per frame of the bundled detector on this machine: precision by precision, one thread and two workers.

Beside it, in the same run, our pruned network, in turns with the whole one, and the graph of YOLOv8n at 640
(`bench.yolov8n`), or another (`--baseline`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from bench import yolov8n
from bench.report import print_report, spread, verdict
from firsttouch.detect import BUNDLED_MODEL, Detector, load_detector
from firsttouch.detect.native import NativeDetector
from firsttouch.detect.planes import planes_of_picture
from firsttouch.detect.session import Session
from train.render import make_scene, render_frame

FRAMES = 60
LITE = BUNDLED_MODEL.with_name("firsttouch-lite.onnx")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench detector", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--baseline", type=Path, help="an ONNX file to time beside ours in YOLOv8n's place")
    parser.add_argument("--lite", type=Path, default=LITE, help="a smaller network, timed in turns with the whole")
    asked = parser.parse_args(arguments)
    picture, _ = render_frame(make_scene(seed=3, frames=1), 0)  # a match: who is who is asked of bodies, not of noise
    y, u, v = planes_of_picture(picture)
    rows: list[list[object]] = []
    body: dict[str, object] = {}
    ours = float("nan")
    for precision in ("fp32", "int8"):
        for pitch in (True, False):
            detector = load_detector(precision=precision)
            inputs = detector.prepare(y, u, v)
            one = spread([_one_thread(detector, inputs, pitch) for _ in range(asked.runs)])
            two = spread([_two_workers(detector, inputs, pitch) for _ in range(asked.runs)])
            heads = "boxes and key points" if pitch else "boxes only"
            mark = f"<= 6: {verdict(two['p50'], 6.0)}" if pitch and precision == "int8" else ""
            if mark:
                ours = two["p50"]
            rows.append([precision, heads, one["p50"], two["p50"], mark])
            body[f"{precision}, {heads}"] = {"one_thread_ms": one, "two_workers_ms": two}
    whole, lite = load_detector(precision="int8"), load_detector(model=asked.lite, precision="int8")
    assert isinstance(whole, NativeDetector)
    assert isinstance(lite, NativeDetector)
    inputs = whole.prepare(y, u, v)
    alone, together = (
        [(look(lite, inputs, True), look(whole, inputs, True)) for _ in range(asked.runs)]
        for look in (_one_thread, _two_workers)
    )
    saved = 1 - statistics.median(small / large for small, large in together)
    mark = f">= 20 % less: {verdict(saved, 0.2, at_most=False)}, {saved:.0%}"
    times = {"one_thread_ms": spread([t for t, _ in alone]), "two_workers_ms": spread([t for t, _ in together])}
    rows.append(["int8, lite", "boxes and key points", *(t["p50"] for t in times.values()), mark])
    share = _network_share(lite, whole, inputs)
    rows.append(["int8, lite", "the network alone", "", "", f"{share:.2f} of the whole one's time, one thread"])
    body["int8, lite, boxes and key points"] = times | {"saved": saved, "network_share": share}
    with tempfile.TemporaryDirectory() as folder:
        graph = asked.baseline or Path(folder) / "yolov8n.onnx"
        if not asked.baseline:
            yolov8n.write(graph)
        threads = spread([_baseline(graph, 2, 1) for _ in range(asked.runs)])
        workers = spread([_baseline(graph, 1, 2) for _ in range(asked.runs)])
    best = min(threads["p50"], workers["p50"])
    ratio = best / ours
    rows.append(
        [
            f"{graph.stem}, fp32",
            "baseline",
            "",
            best,
            f">= 5 times ours: {verdict(ratio, 5.0, at_most=False)}, {ratio:.1f}",
        ]
    )
    body["baseline"] = {"two_threads_ms": threads, "two_workers_ms": workers, "times_ours": ratio}
    print_report("detector", ["precision", "heads", "ms, one thread", "ms a frame, 2 cores", ""], rows, body)
    return 0


def _one_thread(detector: Detector, inputs: np.typing.NDArray[np.uint8], pitch: bool) -> float:
    began = time.perf_counter()
    for _ in range(FRAMES // 4):
        detector.detect([inputs], [0], 1280, 720, pitch=pitch)
    return (time.perf_counter() - began) * 1000 / (FRAMES // 4)


def _network_share(lite: NativeDetector, whole: NativeDetector, inputs: np.typing.NDArray[np.uint8]) -> float:
    """Median of `lite`'s time over `whole`'s, in turns, without roles and all else that Python does."""
    sessions = [detector.opened(pitch=True)[0] for detector in (lite, whole)]
    shares = []
    for _ in range(FRAMES):
        small, large = (_seconds(session, inputs[None]) for session in sessions)
        shares.append(small / large)
    return statistics.median(shares)


def _seconds(session: Session, planes: np.typing.NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    session.run(planes)
    return time.perf_counter() - began


def _two_workers(detector: Detector, inputs: np.typing.NDArray[np.uint8], pitch: bool) -> float:
    """Wall milliseconds a frame when two threads detect at the same time, as the pipeline does."""
    return _side_by_side(lambda: detector.detect([inputs], [0], 1280, 720, pitch=pitch), 2, FRAMES)


def _side_by_side(look: Callable[[], object], workers: int, frames: int) -> float:
    def work() -> None:
        for _ in range(frames // workers):
            look()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) * 1000 / frames


def _baseline(path: Path, threads: int, workers: int) -> float:
    """Wall milliseconds a frame; so many threads inside each of so many calls at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else fill for side, fill in zip(entry.shape, (1, 3, 640, 640), strict=True)]
    inputs = np.random.default_rng(0).random(shape, dtype=np.float32)
    session.run(None, {entry.name: inputs})
    return _side_by_side(lambda: session.run(None, {entry.name: inputs}), workers, FRAMES // 4 * workers)


if __name__ == "__main__":
    sys.exit(main())
