"""Every path of a GPU, checked against the CPU's answer and only then timed: one table, one plot, one line of JSON.

Detector: each runtime at each batch size, boxes against ONNX Runtime fp32 on the CPU; also with its input on the GPU.
NVDEC: frame numbers and luma against software, copied from the GPU and kept there. The whole: P1 (complete) and P6
(every frame), from an origin on this machine. Streams: three models one after the other and side by side. Take-over:
TensorRT that is built while CUDA serves. A path that answers otherwise is not timed, and the exit code is 1; a path
that cannot run here is a row with the reason. Without a GPU nothing is measured, and that is all it says.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bench.match import CACHE, the_match
from bench.origin import Origin
from bench.reference import every_frame, labels_of
from bench.report import console, print_report, spread, verdict
from firsttouch.commands.engine import build_engines
from firsttouch.decode import GopDecoder
from firsttouch.detect import BUNDLED_MODEL, Detections, Detector, Surfaces
from firsttouch.detect.load import TAKES_TENSORS
from firsttouch.detect.native import ALL_OUTPUTS, NativeDetector, NativeLayout, native_canvas
from firsttouch.detect.ort import OrtCpu, OrtCuda, OrtTensorRt, OrtTensorRtRtx, gpu_facts
from firsttouch.detect.planes import Canvas
from firsttouch.detect.pytorch import Torch
from firsttouch.detect.session import ModelFile, OpenSession, Runtime, Values
from firsttouch.detect.surfaces import TorchSurfaces, surfaces_problem
from firsttouch.detect.upgrade import EngineRuntime, EngineWhenBuilt, UpgradingSession
from firsttouch.errors import FirsttouchError
from firsttouch.evaluate import labels_of as boxes_of
from firsttouch.index import Index, read_index
from firsttouch.measure import agreement, match
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.plan import Rates
from firsttouch.ranges import ByteRange
from firsttouch.settings import load
from firsttouch.sparse import SparseBytes

BATCHES = (1, 8, 32)
LOOKS = 64
"""Frames that the detectors are compared and timed on."""
LEAST_F1 = {"fp32": 0.995, "fp16": 0.97, "bf16": 0.95}
MOST_PIXELS = {"fp32": 0.5, "fp16": 1.5, "bf16": 3.0}
"""Median distance of a box's furthest edge; half precision moves boxes by fractions of a pixel."""
MOST_LUMA = 2.0
"""Mean difference of luma, of 255: decoders of H.264 agree to the bit, so this finds a wrong frame."""


@dataclass(frozen=True, slots=True)
class Way:
    """A runtime, at a precision, of a file of the bundled model."""

    name: str
    runtime: Runtime
    precision: str
    suffix: str = ".onnx"


@dataclass(slots=True)
class Report:
    """Rows for people and figures for programs, as they come."""

    rows: list[list[object]] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, work: str, path: str, figure: object, unit: str, mark: str = "") -> None:
        self.rows.append([work, path, figure, unit, mark])

    def refuse(self, work: str, path: str, reason: str) -> None:
        """The path answers otherwise than the CPU."""
        self.wrong.append(f"{work}, {path}: {reason}")
        self.add(work, path, "wrong", "", reason)


def gpu_ways(cache_dir: Path) -> list[Way]:
    return [
        Way("CUDA fp32", OrtCuda(), "fp32"),
        Way("CUDA fp16", OrtCuda(), "fp16", ".fp16.onnx"),
        Way("TensorRT fp16", OrtTensorRt(cache_dir, build=True), "fp16"),
        Way("TensorRT-RTX fp32", OrtTensorRtRtx(cache_dir), "fp32"),
        Way("TensorRT-RTX fp16", OrtTensorRtRtx(cache_dir), "fp16", ".fp16.onnx"),
        Way("PyTorch fp16, plain", Torch("cuda", cuda_graph=False), "fp16"),
        Way("PyTorch fp16, CUDA graph", Torch("cuda"), "fp16"),
        Way("PyTorch bf16, CUDA graph", Torch("cuda"), "bf16"),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gop", type=int, default=50, help="frames from key frame to key frame in the clip")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--plot", type=Path, default=CACHE / "gpu.png", help="where the plot goes")
    asked = parser.parse_args(arguments)
    paths = gpu_ways(Path("~/.cache/firsttouch").expanduser())
    reason = missing(paths)
    if reason is not None:
        print(f"bench gpu measures nothing here: {reason}")
        print(orjson.dumps({"bench": "gpu", "skipped": reason}).decode(), flush=True)
        return 0
    report, before = Report(), used_megabytes()
    clip = the_match(asked.gop)
    working = detectors(report, paths, clip, asked.batches, asked.runs)
    surfaces = TorchSurfaces(Canvas.of_size(640)) if surfaces_problem() is None else None
    nvdec(report, clip, asked.runs, surfaces=surfaces)
    if working:
        fastest = working[0][0]
        stages: dict[str, Callable[[], None]] = {
            "three models": lambda: streams(report, fastest, asked.runs),
            "take-over": lambda: take_over(report, clip, OrtCuda()),
            "whole": lambda: whole(report, clip, asked.runs, fastest, max(asked.batches)),
        }
        for work, measure in stages.items():
            try:
                measure()
            except FirsttouchError as exc:
                report.add(work, fastest.name, "-", "", f"not run: {exc}")
    if before is not None and (most := report.body.get("most_megabytes")) is not None:
        used = round(most - before, 1)
        report.body["gpu_megabytes"] = used
        report.add("memory", "of the GPU, most after a stage", used, "MB", f"<= 2000: {verdict(used, 2000)}")
    draw(report.body.get("detector", {}), asked.plot)
    facts = gpu_facts() | {"clip": clip.name, "plot": str(asked.plot), "wrong": report.wrong}
    print_report("gpu", ["work", "path", "measured", "", "goal"], report.rows, {**facts, **report.body})
    return 1 if report.wrong else 0


def missing(paths: Sequence[Way]) -> str | None:
    """Why nothing can be measured here; None where at least one path can."""
    if not gpu_facts()["gpu"]:
        return "no NVIDIA driver answers (nvidia-smi): there is no GPU, or no driver"
    problems = [path.runtime.problem(path.precision) for path in paths]
    if all(problems):
        return "; ".join(dict.fromkeys(f"{p.reason}: {p.remedy}" for p in problems if p is not None))
    return None


def detectors(
    report: Report, paths: Sequence[Way], clip: Path, batches: Sequence[int], runs: int
) -> list[tuple[Way, float]]:
    """Frames a second of every path at every batch size; the paths that answered rightly, and their best."""
    reference = NativeDetector(ModelFile.read(BUNDLED_MODEL), _opener(Way("CPU", OrtCpu(), "fp32")))
    inputs, width, height = _inputs(clip, reference)
    expected = reference.detect(inputs, range(len(inputs)), width, height, pitch=True)
    figures: dict[str, dict[str, Any]] = report.body.setdefault("detector", {})
    best: dict[str, tuple[Way, float]] = {}
    for path in paths:
        for batch in batches:
            work = f"detector, batch {batch}"
            try:
                detector = _detector(path, batch)
                found = detector.detect(inputs, range(len(inputs)), width, height, pitch=True)
            except FirsttouchError as exc:
                report.add(work, path.name, "-", "", f"not run: {exc}")
                continue
            if detector.batch_size != batch:
                report.add(work, path.name, "-", "", f"not run: memory for {detector.batch_size} frames only")
                continue
            reason = difference(found, expected, path.precision)
            if reason is not None:
                report.refuse(work, path.name, reason)
                continue
            seconds = _timed(lambda: detector.detect(inputs, range(len(inputs)), width, height, pitch=True), runs)  # noqa: B023
            speed = {key: value if key == "runs" else len(inputs) / value for key, value in seconds.items()}
            figures.setdefault(path.name, {})[str(batch)] = speed
            rate = round(speed["p50"], 1)
            report.add(work, path.name, rate, "frames/s", _speed_goal(path, batch, rate))
            best[path.name] = (path, max(rate, best.get(path.name, (path, 0.0))[1]))
            kept_inputs(report, path, detector, inputs, found, runs, width, height)
            _note_memory(report)
    return sorted(best.values(), key=lambda each: -each[1])


def kept_inputs(
    report: Report,
    path: Way,
    detector: NativeDetector,
    inputs: Sequence[NDArray[np.uint8]],
    expected: Sequence[Detections],
    runs: int,
    width: int,
    height: int,
) -> None:
    """The same with inputs that lie on the GPU, as NVDEC leaves them: what copying them there costs."""
    work = f"detector, batch {detector.batch_size}, input on the GPU"
    if detector.surfaces is None:
        report.add(
            work, path.name, "-", "", "not run: needs PyTorch that sees the GPU, and a runtime that takes tensors"
        )
        return
    lying = [detector.surfaces.stacked([planes], 1)[0] for planes in inputs]

    def look() -> list[Detections]:
        return detector.detect(lying, range(len(lying)), width, height, pitch=True)

    reason = difference(look(), expected, path.precision)
    if reason is not None:
        report.refuse(work, path.name, reason)
        return
    seconds = _timed(look, runs)
    kept = report.body.setdefault("detector_input_on_gpu", {}).setdefault(path.name, {})
    rate = round(len(lying) / seconds["p50"], 1)
    kept[str(detector.batch_size)] = rate
    report.add(work, path.name, rate, "frames/s", _speed_goal(path, detector.batch_size, rate))


def _speed_goal(path: Way, batch: int, rate: float) -> str:
    """Boxes, points and roles, on one thread."""
    wanted = batch == 32 and path.precision == "fp16"
    return f">= 3000: {verdict(rate, 3000, at_most=False)}" if wanted else ""


def _detector(path: Way, batch: int) -> NativeDetector:
    """Raises ModelNotFound, ModelMismatch, RuntimeUnavailable: what cannot run here."""
    problem = path.runtime.problem(path.precision)
    if problem is not None:
        raise FirsttouchError(problem.reason, hint=problem.remedy)
    model = ModelFile.read(BUNDLED_MODEL.with_suffix(path.suffix))
    on_device = path.runtime.device == "cuda" and path.runtime.name in TAKES_TENSORS
    return NativeDetector(model, _opener(path), batch_size=batch, on_device=on_device)


def _opener(path: Way) -> OpenSession:
    return lambda model, outputs, shape: path.runtime.open(model, outputs, shape, path.precision)


def _inputs(clip: Path, detector: Detector) -> tuple[list[NDArray[np.uint8]], int, int]:
    """Model inputs of `LOOKS` frames spread over the clip's first GOPs, and the size of a picture."""
    index, read = _opened(clip)
    made: list[NDArray[np.uint8]] = []
    for key in index.key_rows:
        for frame in GopDecoder(index, read, index.gop_rows(int(key))).frames():
            if frame.frame_number % 5 == 0 and len(made) < LOOKS:
                made.append(detector.prepare(frame.y, frame.u, frame.v))
        if len(made) == LOOKS:
            break
    return made, index.width, index.height


def difference(found: Sequence[Detections], expected: Sequence[Detections], precision: str) -> str | None:
    """How the boxes differ by more than the precision may; None when they do not."""
    mine, truth = (boxes_of([(d.class_id, d.xyxy, d.confidence) for d in looks]) for looks in (found, expected))
    if [d.frame_number for d in found] != [d.frame_number for d in expected]:
        return "other frame numbers"
    f1 = agreement(mine, truth).f1
    if f1 < LEAST_F1[precision]:
        return f"F1 {f1:.3f} of the CPU's boxes, at least {LEAST_F1[precision]} wanted"
    pairs = match(mine, truth)
    distance = np.abs(mine.xyxy[pairs[:, 0]] - truth.xyxy[pairs[:, 1]]).max(axis=1, initial=0)
    pixels = float(np.median(distance)) if len(distance) else 0.0
    if pixels > MOST_PIXELS[precision]:
        return f"boxes lie {pixels:.2f} px apart, at most {MOST_PIXELS[precision]} wanted"
    return None


def nvdec(report: Report, clip: Path, runs: int, device: str = "cuda", surfaces: Surfaces | None = None) -> None:
    """Every frame of the clip and its grey plane, GOPs side by side over four threads: by software, by the chip, and
    with `surfaces` by the chip with the pictures kept on the GPU."""
    index, read = _opened(clip)
    truth, _ = _decoded(index, read, "cpu")
    figures: dict[str, Any] = {}
    ways: dict[str, tuple[str, Surfaces | None]] = {"software": ("cpu", None), "NVDEC": (device, None)}
    if surfaces is not None and surfaces.takes(index.width, index.height):
        ways["NVDEC, kept on the GPU"] = (device, surfaces)
    for name, (where, kept) in ways.items():
        found, hardware = _decoded(index, read, where, kept)
        if where != "cpu" and not hardware:
            report.add("decode", name, "-", "", "not run: software decoded instead (its warning says why)")
            continue
        reason = _other_pictures(found, truth)
        if reason is not None:
            report.refuse("decode", name, reason)
            continue
        figures[name] = _timed(lambda: _decoded(index, read, where, kept), runs)  # noqa: B023
        report.add("decode", name, round(len(truth) / figures[name]["p50"], 1), "frames/s")
    if len(figures) > 1:  # software alone is no figure of a GPU
        report.body["decode"] = figures
    _note_memory(report)


def _decoded(
    index: Index, read: Callable[[ByteRange], bytes], device: str, surfaces: Surfaces | None = None
) -> tuple[dict[int, NDArray[np.uint8]], bool]:
    """Grey planes by frame number, and whether the chip decoded all of them and left them where `surfaces` wants."""

    def gop(key: int) -> tuple[dict[int, NDArray[np.uint8]], bool]:
        decoder = GopDecoder(index, read, index.gop_rows(key), device=device, keep_on_device=surfaces is not None)
        greys, kept = {}, True
        for frame in decoder.frames():
            if surfaces is not None and frame.on_device:
                greys[frame.frame_number] = surfaces.grey(frame.surfaces[0])
            else:
                greys[frame.frame_number], kept = frame.grey(), surfaces is None
        return greys, decoder.hardware and kept

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(gop, map(int, index.key_rows)))
    return {number: grey for frames, _ in parts for number, grey in frames.items()}, all(hard for _, hard in parts)


def _other_pictures(found: dict[int, NDArray[np.uint8]], truth: dict[int, NDArray[np.uint8]]) -> str | None:
    if found.keys() != truth.keys():
        return f"{len(found.keys() ^ truth.keys())} frame numbers are not the same"
    apart = {n: float(np.abs(grey.astype(np.int16) - truth[n]).mean()) for n, grey in found.items()}
    worst = max(apart, key=apart.__getitem__)
    if apart[worst] > MOST_LUMA:
        return f"frame {worst} is another picture: {apart[worst]:.1f} of 255 apart"
    return None


def streams(report: Report, path: Way, runs: int, models: int = 3) -> None:
    """Three sessions of one frame each, one after the other and each on a thread and stream of its own."""
    model = ModelFile.read(BUNDLED_MODEL.with_suffix(path.suffix))
    shape = (1, *native_canvas(model, None).shape)
    sessions = [path.runtime.open(model, ALL_OUTPUTS, shape, path.precision) for _ in range(models)]
    values = np.random.default_rng(0).integers(16, 235, shape, np.uint8)
    with ThreadPoolExecutor(models) as pool:

        def one() -> list[list[Values]]:
            return [session.run(values) for session in sessions]

        def side() -> list[list[Values]]:
            return [job.result() for job in [pool.submit(session.run, values) for session in sessions]]

        for mine, expected in zip(side(), one(), strict=True):
            if not np.allclose(mine[1], expected[1], atol=1e-3):
                report.refuse("three models", path.name, "side by side they score otherwise")
                return
        alone, beside = _timed(one, runs, times=20), _timed(side, runs, times=20)
    ratio = round(alone["p50"] / beside["p50"], 2)
    report.body["streams"] = {"path": path.name, "one": alone, "three": beside, "ratio": ratio}
    report.add("three models", f"{path.name}, one stream", alone["p50"] * 1000, "ms")
    goal = f"{ratio} times, >= 1.3: {verdict(ratio, 1.3, at_most=False)}"
    report.add("three models", f"{path.name}, three streams", beside["p50"] * 1000, "ms", goal)
    _note_memory(report)


def take_over(report: Report, clip: Path, meanwhile: Runtime, engine: EngineRuntime | None = None) -> None:
    """TENSORRT=1 with nothing built: seconds until the engine serves, and the longest look until then."""
    with TemporaryDirectory() as folder:
        engine = engine or OrtTensorRt(Path(folder))
        problem = engine.problem("fp16")
        if problem is not None:
            raise FirsttouchError(problem.reason, hint=problem.remedy)
        model = ModelFile.read(BUNDLED_MODEL)
        reference = NativeDetector(model, _opener(Way("CPU", OrtCpu(), "fp32")))
        inputs, width, height = _inputs(clip, reference)
        expected = reference.detect(inputs, range(len(inputs)), width, height, pitch=True)
        upgrading = EngineWhenBuilt(engine, meanwhile, NativeLayout(None))
        detector = NativeDetector(model, lambda m, o, s: upgrading.open(m, o, s, "fp16"))
        session, _ = detector.opened(pitch=True)
        assert isinstance(session, UpgradingSession)
        before, worker, looks = session.runtime, session.begin(), []
        began = time.perf_counter()
        while worker is not None and worker.is_alive():
            started = time.perf_counter()
            detector.detect(inputs[:1], [0], width, height, pitch=True)
            looks.append(time.perf_counter() - started)
        seconds = time.perf_counter() - began
        found = detector.detect(inputs, range(len(inputs)), width, height, pitch=True)
    name = f"{engine.name} while {before} serves"
    if session.runtime == before:
        report.add("take-over", name, "-", "", "not taken: its warning says why")
    elif (reason := difference(found, expected, "fp16")) is not None:
        report.refuse("take-over", name, reason)
    else:
        report.body["take_over"] = {"seconds": seconds, "looks": len(looks), "longest_look": max(looks)}
        report.add("take-over", name, round(seconds, 1), "s", f"{len(looks)} looks, {max(looks) * 1000:.0f} ms at most")


def whole(report: Report, clip: Path, runs: int, path: Way, batch: int) -> None:
    """P1 and P6 of the clip from an origin on this machine, with every frame's answer of the CPU as the truth."""
    truth = every_frame(clip, "fp32")  # no GPU path is int8
    wished = {"device": path.runtime.device, "runtime": path.runtime.name, "precision": path.precision}
    settings = load(
        {**wished, "batch_size": batch, "prefetch_frames": 2 * batch, "time_budget_s": "none"}, env_file=None
    )
    if isinstance(path.runtime, OrtTensorRt):
        build_engines(path.runtime, None, batch, None)  # boxes alone too: the pipeline asks for both
    detector = detector_for(settings)
    if (detector.device, detector.runtime) != (path.runtime.device, path.runtime.name):
        report.add("whole", "P1 and P6", "-", "", f"not run: {detector.runtime} runs on {detector.device}")
        return
    for name, limit, least, options in (
        ("P1, complete", 0.5, 0.97, Options.of(settings)),
        ("P6, every frame", 1.5, 0.97, Options.of(settings, every_frame=True)),
    ):
        with Origin({"clip.mp4": clip}) as origin:
            url = origin.url("clip.mp4")
            rates = _analysed(url, options, detector, None).rates  # of this machine: with them the plan is made
            again = partial(_analysed, url, options, detector, rates)
            analysis = again()
            reason, f1 = _other_answer(analysis, truth, least)
            if reason is not None:
                report.refuse("whole", name, reason)
                continue
            seconds = _timed(again, runs)
        report.body[name[:2]] = {
            "seconds": seconds,
            "f1": f1,
            "runtime": analysis.runtime,
            "stage_seconds": analysis.stage_seconds,
        }
        goal = f"<= {limit}: {verdict(seconds['p50'], limit)}; F1 {f1:.3f}; {analysis.runtime}"
        report.add("whole", name, seconds["p50"], "s", goal)
        _note_memory(report)


def _analysed(url: str, options: Options, detector: Detector, rates: Rates | None) -> Analysis:
    return asyncio.run(analyze(url, options=options, detector=detector, rates=rates))


def _other_answer(analysis: Analysis, truth: Any, least: float) -> tuple[str | None, float]:
    """Why the answer is not the CPU's, and its F1 against it."""
    numbers = [frame.frame_number for frame in analysis.frames]
    f1 = round(agreement(labels_of(analysis), truth).f1, 4)
    if numbers != list(range(analysis.frame_count)):
        return f"{len(numbers)} of {analysis.frame_count} frames are answered", f1
    if f1 < least:
        return f"F1 {f1:.3f} against every frame on the CPU, at least {least} wanted", f1
    return None, f1


def _opened(clip: Path) -> tuple[Index, Callable[[ByteRange], bytes]]:
    data = clip.read_bytes()
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    return read_index(sparse), sparse.read


def _timed(work: Callable[[], object], runs: int, times: int = 1) -> dict[str, float]:
    """Seconds of one call, after one that is not counted."""
    work()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        for _ in range(times):
            work()
        seconds.append((time.perf_counter() - began) / times)
    return spread(seconds)


def used_megabytes() -> float | None:
    """Memory in use on the first GPU, by everybody; None where nobody says."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _note_memory(report: Report) -> None:
    used = used_megabytes()
    if used is not None:
        report.body["most_megabytes"] = max(used, report.body.get("most_megabytes", 0.0))


def draw(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Frames a second over the batch size, one line for each path."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, by_batch in figures.items():
        axes.plot([int(batch) for batch in by_batch], [speed["p50"] for speed in by_batch.values()], "o-", label=name)
    axes.set(xlabel="frames in a batch", ylabel="frames/s", title=f"Detector on {gpu_facts()['gpu'] or 'this machine'}")
    axes.set_xscale("log", base=2)
    if figures:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    console.print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
