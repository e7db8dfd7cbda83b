"""F1 (IoU 0.5, class-aware) over all frames when only every k-th is looked at: by flow, by the ruler,
looked-at frames only.

Two judges. On a real clip the answer of looking at every frame with the same detector (which passes the same
tracker); on our
renderer's clip the exact labels, with exact labels as what is seen in the looked-at frames too, so that only
carrying is judged.
Only reference frames are decoded, as the pipeline does. CPU seconds are those of this thread.

The second table, of the real clip: F1 in holes of so many frames that nobody decoded, between runs of frames that were.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from bench.match import CACHE, REAL, SOURCE
from bench.report import print_report, print_table, verdict
from firsttouch.carry import FrameAnswer, carry
from firsttouch.decode import Frame, GopDecoder
from firsttouch.detect import BUNDLED_MODEL, Detections, Detector
from firsttouch.index import Index, read_index
from firsttouch.labels import Labels, from_frames
from firsttouch.measure import agreement
from firsttouch.motion import Motion, follow
from firsttouch.pipeline import detector_for
from firsttouch.settings import Settings
from firsttouch.sparse import SparseBytes
from firsttouch.track import link
from train.render import FrameLabels, write_clip

STRIDES = (5, 8, 12, 16, 25, 37)
HOLES = (3, 5, 8, 12, 16, 20, 25, 30, 38, 48, 58, 80)
RUNS = (6, 12, 36)
RUN_STRIDE = 12
FRAMES = 750
RENDERED_FRAMES = 300
LEAST_F1 = 0.93
MOST_LOOKS = 60
MOST_CPU = 0.8

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Seen:
    """A clip decoded and looked at in every frame: greys, detections, which frames others refer to, and the truth."""

    name: str
    width: int
    height: int
    pts_seconds: npt.NDArray[np.float64]
    greys: list[Grey]
    detections: list[Detections]
    reference: npt.NDArray[np.bool_]
    truth: Labels
    sure: float

    @property
    def frames(self) -> int:
        return len(self.greys)


@dataclass(frozen=True, slots=True)
class Row:
    """What one stride gives: F1 of each way, and CPU seconds."""

    stride: int
    looks: int
    flow: float
    linear: float
    looked: float
    ball: float
    flow_cpu_seconds: float
    carry_cpu_seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench carry", description=__doc__)
    parser.add_argument("--clip", type=Path, default=REAL / SOURCE)
    parser.add_argument("--strides", type=int, nargs="+", default=list(STRIDES))
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the real clip")
    parser.add_argument("--plot", type=Path, default=CACHE / "carry.png")
    asked = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    clips = [rendered_clip()]
    if asked.clip.exists():
        clips.append(real_clip(asked.clip, asked.frames))
    measured = {seen.name: [measure(seen, stride) for stride in asked.strides] for seen in clips}
    holes = {length: [in_holes(clips[-1], length, run) for run in RUNS] for length in HOLES} if len(clips) > 1 else {}
    _plot(measured, asked.plot)
    _print(measured, holes, asked.plot)
    return 0


def real_clip(path: Path, frames: int) -> Seen:
    """The clip looked at in every frame; detections are kept in the cache folder, by weights and clip."""
    settings = Settings()
    weights = b"".join(file.read_bytes() for file in sorted(BUNDLED_MODEL.parent.glob("*.onnx")))
    key = hashlib.sha256(path.read_bytes() + weights + str(frames).encode()).hexdigest()[:16]
    kept = CACHE / f"detections-{path.stem}-{key}.pickle"
    detector = None if kept.exists() else detector_for(settings)
    index, greys, found = _decoded(path, frames, detector)
    if detector is None:
        found = pickle.loads(kept.read_bytes())
    else:
        kept.write_bytes(pickle.dumps(found))
    height, width, pts = index.height, index.width, _pts(index, frames)
    whole = _answers(found, [], width, height, pts, settings.conf_threshold)
    truth = from_frames(whole, width=width, height=height)
    return Seen(path.stem, width, height, pts, greys, found, _reference(index, frames), truth, settings.conf_threshold)


def rendered_clip() -> Seen:
    """Our own clip, where what is seen is exactly what is there."""
    path, labelled = CACHE / "carry-rendered.mp4", CACHE / "carry-rendered.pickle"
    if not labelled.exists():
        labelled.write_bytes(pickle.dumps(write_clip(path, frames=RENDERED_FRAMES, seed=3)))
    labels: list[FrameLabels] = pickle.loads(labelled.read_bytes())
    index, greys, _ = _decoded(path, RENDERED_FRAMES, None)
    found = [_exactly(label) for label in labels]
    pts = _pts(index, RENDERED_FRAMES)
    answers = [_labelled(label) for label in labels]
    truth = from_frames(answers, width=index.width, height=index.height)
    return Seen("rendered", index.width, index.height, pts, greys, found, _reference(index, len(greys)), truth, 0.3)


def measure(seen: Seen, stride: int) -> Row:
    """Look at about every `stride`-th frame, carry, and compare."""
    looks = looked_at(seen.reference, stride)
    found = [seen.detections[number] for number in looks]
    began = time.thread_time()
    motions = [_followed(seen, a, b) for a, b in itertools.pairwise(looks)]
    middle = time.thread_time()
    flow = _answers(found, motions, seen.width, seen.height, seen.pts_seconds, seen.sure)
    end = time.thread_time()
    linear = _answers(found, [], seen.width, seen.height, seen.pts_seconds, seen.sure, "linear")
    looked = [answer for answer in flow if answer.how == "detected"]
    return Row(
        stride,
        len(looks),
        _f1(flow, seen),
        _f1(linear, seen),
        _f1(looked, seen),
        _f1(flow, seen, ball=True),
        middle - began,
        end - middle,
    )


def in_holes(seen: Seen, length: int, run: int) -> float:
    """F1 in holes of `length` frames or a few more, between runs of `run` frames that are decoded."""
    numbers = np.flatnonzero(seen.reference)
    looks: list[int] = []
    motions: list[Motion] = []
    hidden: list[int] = []
    first = 0
    while (decoded := numbers[(numbers >= first) & (numbers <= first + run)]).size:
        at = np.linspace(0, len(decoded) - 1, max(1, round(run / RUN_STRIDE)) + 1).round().astype(int)
        chosen = [int(number) for number in np.unique(decoded[at])]
        hidden += range(looks[-1] + 1 if looks else first, chosen[0])
        motions += [_followed(seen, a, b) for a, b in itertools.pairwise(chosen)]
        looks += chosen
        behind = numbers[numbers > looks[-1] + length]
        first = int(behind[0]) if behind.size else seen.frames
    found = [seen.detections[number] for number in looks]
    answers = _answers(found, motions, seen.width, seen.height, seen.pts_seconds, seen.sure)
    mine = from_frames(answers, width=seen.width, height=seen.height, frame_count=seen.frames)
    return agreement(mine.only(hidden), seen.truth.only(hidden)).covered_f1


def looked_at(reference: npt.NDArray[np.bool_], stride: int) -> list[int]:
    """Reference frames about `stride` apart, the first and the last among them."""
    numbers = np.flatnonzero(reference)
    wanted = np.arange(numbers[0], numbers[-1] + stride, stride)
    nearest = numbers[np.abs(numbers[None] - wanted[:, None]).argmin(1)]
    return [int(number) for number in np.unique(nearest)]


def _followed(seen: Seen, a: int, b: int) -> Motion:
    numbers = [n for n in range(a, b + 1) if seen.reference[n] or n in (a, b)]
    greys = [seen.greys[n] for n in numbers]
    scale = seen.width / greys[0].shape[1]
    return follow(greys, numbers, seen.detections[a], seen.detections[b], scale)


def _answers(
    found: Sequence[Detections],
    motions: Sequence[Motion],
    width: int,
    height: int,
    pts: npt.NDArray[np.float64],
    sure: float,
    mode: Any = "flow",
) -> list[FrameAnswer]:
    tracks = link(found, motions, sure=sure)
    return carry(tracks, found, motions, np.arange(len(pts), dtype=np.int32), pts, width, height, mode)


def _f1(answers: Sequence[FrameAnswer], seen: Seen, *, ball: bool = False) -> float:
    """All frames of the truth count, so frames that are not answered are missed."""
    mine, truth = from_frames(answers, width=seen.width, height=seen.height, frame_count=seen.frames), seen.truth
    if ball:
        mine, truth = _only_ball(mine), _only_ball(truth)
    return agreement(mine, truth).covered_f1


def _only_ball(labels: Labels) -> Labels:
    from dataclasses import replace

    chosen = labels.class_ids == 0
    columns = {name: getattr(labels, name)[chosen] for name in ("row", "ids", "class_ids", "confidence", "xyxy")}
    return replace(labels, **columns)


def _decoded(path: Path, frames: int, detector: Detector | None) -> tuple[Index, list[Grey], list[Detections]]:
    """Greys of the first frames and, with a detector, what it sees in each; two frames at a time."""
    data = path.read_bytes()
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    index = read_index(sparse)
    greys: dict[int, Grey] = {}
    found: dict[int, Detections] = {}
    with ThreadPoolExecutor(2) as workers:
        for key in index.key_rows:
            rows = index.gop_rows(int(key))
            if index.frame_number[rows].min() >= frames:
                break
            pending = []
            for frame in GopDecoder(index, sparse.read, rows).frames():
                greys[frame.frame_number] = frame.grey()
                if detector is not None and frame.frame_number not in found:
                    pending.append(workers.submit(_look, detector, frame, index))
            for done in pending:
                detections = done.result()
                found[detections.frame_number] = detections
    return index, [greys[n] for n in range(frames)], [found[n] for n in range(frames) if found]


def _look(detector: Detector, frame: Frame, index: Index) -> Detections:
    planes = detector.prepare(frame.y, frame.u, frame.v)
    return detector.detect([planes], [frame.frame_number], index.width, index.height, pitch=True)[0]


def _pts(index: Index, frames: int) -> npt.NDArray[np.float64]:
    return np.array([index.pts_seconds(number) for number in range(frames)])


def _reference(index: Index, frames: int) -> npt.NDArray[np.bool_]:
    return np.asarray(~index.is_disposable[index.row_of_frame[:frames]])


def _exactly(label: FrameLabels) -> Detections:
    scores = np.zeros((len(label.xyxy), 4), np.float32)
    scores[np.arange(len(label.xyxy)), label.class_id] = 0.9
    points = (label.keypoints * [1, 1, 0.9]).astype(np.float32)
    return Detections(label.frame_number, label.xyxy.astype(np.float32), scores, points)


def _labelled(label: FrameLabels) -> FrameAnswer:
    count = len(label.xyxy)
    ids, classes = label.identity.astype(np.int32), label.class_id.astype(np.uint8)
    boxes, points = label.xyxy.astype(np.float32), label.keypoints.astype(np.float32)
    ones = np.ones(count, np.float32)
    return FrameAnswer(label.frame_number, label.pts_seconds, "detected", ids, classes, ones, boxes, points)


def _plot(measured: dict[str, list[Row]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(measured), figsize=(6 * len(measured), 4), squeeze=False)
    for axis, (name, rows) in zip(axes[0], measured.items(), strict=True):
        strides = [row.stride for row in rows]
        for label in ("flow", "linear", "looked"):
            axis.plot(strides, [getattr(row, label) for row in rows], marker="o", label=label)
        axis.axhline(LEAST_F1, color="grey", linestyle=":")
        axis.set(title=name, xlabel="frames between looked-at frames", ylabel="F1 of all frames", ylim=(0, 1))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _print(measured: dict[str, list[Row]], holes: dict[int, list[float]], plot: Path) -> None:
    table: list[list[object]] = []
    body: dict[str, Any] = {"plot": str(plot)}
    for name, rows in measured.items():
        for row in rows:
            few = row.looks <= MOST_LOOKS and name != "rendered"
            mark = f">= {LEAST_F1}: {verdict(row.flow, LEAST_F1, at_most=False)}" if few else ""
            if few and row.flow_cpu_seconds > MOST_CPU:
                mark += f", flow over {MOST_CPU} s"
            figures = [row.flow, row.linear, row.looked, row.ball, row.flow_cpu_seconds, row.carry_cpu_seconds]
            table.append([name, row.stride, row.looks, *figures, mark])
        body[name] = [{field: getattr(row, field) for field in Row.__slots__} for row in rows]
    if holes:
        body["holes"] = {str(length): figures for length, figures in holes.items()}
        of_holes = ["frames in a hole", *(f"F1 in it, between runs of {run}" for run in RUNS)]
        print_table("holes", of_holes, [[length, *figures] for length, figures in holes.items()])
    columns = [
        "clip",
        "stride",
        "looks",
        "F1 flow",
        "F1 linear",
        "F1 looked-at only",
        "ball",
        "flow CPU s",
        "link+carry CPU s",
    ]
    print_report("carry", [*columns, ""], table, body)


if __name__ == "__main__":
    raise SystemExit(main())
