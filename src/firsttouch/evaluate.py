"""How well a detector sees labelled pictures: AP per class and size, key-point error, homographies, time.

A group is one folder of labels. Its pictures lie in `images` beside `labels` (YOLO's form: five fields a box,
5 + 96 a pitch), or are frames of clips, for labels named CLIP_FRAME.txt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsttouch.clock import Stopwatch
from firsttouch.detect import CLASS_NAMES, KEYPOINT_COUNT, Detections, Detector
from firsttouch.detect.planes import planes_of_picture, read_picture, unstretched
from firsttouch.errors import SettingsError
from firsttouch.labels import Labels
from firsttouch.measure import AveragePrecision, average_precision, mean_of_known
from firsttouch.pitch import POINTS, fit
from firsttouch.score import clip_pictures

RIGHT_HOMOGRAPHY = 0.015
"""Largest mean reprojection error of the labelled points, as a share of the width."""
CLOSE_POINT = 0.01
LEAST_SCORE = 0.01
"""Lower class scores are not ranked."""

TIMED_FRAMES = 24
Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A picture with what a human saw: `boxes` (B, 5) class and xyxy, or None; `keypoints` (32, 3) or None.

    `picture` is BGR, 16:9 again where the file was stretched; labels are in its pixels.
    """

    picture: Picture
    boxes: Floats | None
    keypoints: Floats | None


@dataclass(frozen=True, slots=True)
class Group:
    """One folder of labels and where its pictures come from: an `images` folder, or clips."""

    name: str
    labels: tuple[Path, ...]
    images: Path | None
    clips: Path | None


@dataclass(slots=True)
class KeypointFigures:
    """Errors are shares of the picture's width, one for each labelled point that was found."""

    errors: list[float] = field(default_factory=list)
    labelled: int = 0
    frames: int = 0
    right_homographies: int = 0

    def merge(self, other: KeypointFigures) -> None:
        self.errors += other.errors
        self.labelled += other.labelled
        self.frames += other.frames
        self.right_homographies += other.right_homographies

    def as_dict(self) -> dict[str, Any]:
        known = np.array(self.errors)
        return {
            "keypoint_error_share_of_width": float(known.mean()) if len(known) else None,
            "keypoints_within_1_percent": float((known < CLOSE_POINT).mean()) if len(known) else None,
            "keypoint_recall": len(known) / self.labelled if self.labelled else None,
            "homography_found": self.right_homographies / self.frames if self.frames else None,
            "pitch_frames": self.frames,
        }


def evaluate(
    detector: Detector, data: Path, *, split: str = "val", clips: Path | None = None, progress: Any = None
) -> dict[str, Any]:
    """All figures as one JSON-able object, over all groups and for each. Raises SettingsError for no labels."""
    groups = find_groups(data, split, clips)
    rows: dict[str, Any] = {}
    boxes: list[tuple[Detections, Floats]] = []
    points = KeypointFigures()
    inputs: list[NDArray[np.uint8]] = []
    for group in groups:
        group_boxes, group_points = _look(detector, group, inputs, progress)
        rows[group.name] = _box_figures(group_boxes) | group_points.as_dict()
        boxes += group_boxes
        points.merge(group_points)
    return {
        "model": detector.name,
        "runtime": detector.runtime,
        "device": detector.device,
        "precision": detector.precision,
        **_box_figures(boxes),
        **points.as_dict(),
        **milliseconds_per_frame(detector, inputs),
        "groups": rows,
    }


def find_groups(data: Path, split: str = "val", clips: Path | None = None) -> list[Group]:
    """Every folder of YOLO labels under `data`; where train and val lie side by side, only `split`."""
    if not data.is_dir():
        raise SettingsError(f"{data} is no folder", hint="give a folder that holds images and labels")
    groups = []
    for folder in sorted({file.parent for file in data.rglob("*.txt")}):
        labels = tuple(file for file in sorted(folder.glob("*.txt")) if _is_label(file))
        images = folder.parent / "images" if folder.name == "labels" else folder
        has_images = images.is_dir() and any(_image_of(images, label) for label in labels)
        if labels and _wanted(folder, data, split):
            name = str(folder.relative_to(data).parent if folder.name == "labels" else folder.relative_to(data))
            groups.append(Group(name, labels, images if has_images else None, None if has_images else clips))
    if not groups:
        raise SettingsError(
            f"no labels of split {split!r} under {data}", hint="it must hold images/NAME.jpg and labels/NAME.txt"
        )
    return groups


def _wanted(folder: Path, data: Path, split: str) -> bool:
    """Whether a folder belongs to the split: one that lies in no train or val folder always does."""
    splits = {"train", "val", "valid", "test"}.intersection(folder.relative_to(data).parts)
    return split == "all" or not splits or split in splits or (split == "val" and "valid" in splits)


def _is_label(file: Path) -> bool:
    """An empty file says "nothing here"; other text (a README) begins with no class number."""
    first = file.read_text(errors="replace").split(maxsplit=1)
    return not first or first[0].isdigit()


def examples(group: Group) -> Iterator[Example]:
    """The pictures of a group with their labels; a label without a picture is passed over."""
    for label, picture in _pictures(group):
        boxes, keypoints = read_label(label, picture.shape[1], picture.shape[0])
        yield Example(picture, boxes, keypoints)


def _pictures(group: Group) -> Iterator[tuple[Path, Picture]]:
    if group.images is None:
        yield from _clip_frames(group)
        return
    for label in group.labels:
        image = _image_of(group.images, label)
        picture = read_picture(image) if image else None
        if picture is not None:
            yield label, unstretched(picture)


def _image_of(images: Path, label: Path) -> Path | None:
    return next((p for s in (".jpg", ".jpeg", ".png") if (p := images / (label.stem + s)).exists()), None)


def _clip_frames(group: Group) -> Iterator[tuple[Path, Picture]]:
    """Frames of clips for labels named CLIP_FRAME.txt, where CLIP is the clip's name or begins it."""
    if group.clips is None:
        raise SettingsError(f"{group.name} has no pictures", hint="--clips names the folder of the clips")
    by_clip: dict[str, list[tuple[int, Path]]] = {}
    for label in group.labels:
        clip, _, number = label.stem.rpartition("_")
        if number.isdigit():
            by_clip.setdefault(clip, []).append((int(number), label))
    for clip, rows in by_clip.items():
        file = next((f for f in sorted(group.clips.iterdir()) if f.stem == clip), None) or next(
            (f for f in sorted(group.clips.iterdir()) if f.stem.startswith(f"{clip}_")), None
        )
        if file is None:
            raise SettingsError(f"no clip {clip!r} in {group.clips}", hint="--clips names the folder of the clips")
        pictures = clip_pictures(str(file))
        for frame_number, label in sorted(rows):
            picture = pictures(frame_number)
            if picture is not None:
                yield label, picture


def read_label(file: Path, width: int, height: int) -> tuple[Floats | None, Floats | None]:
    """Boxes (B, 5) and key points (32, 3) of a YOLO label in pixels. A pitch label says nothing of people."""
    boxes, keypoints = [], None
    for line in file.read_text().splitlines():
        values = np.array(line.split(), np.float32)
        if len(values) == 5:
            kind, x, y, w, h = values
            boxes.append((kind, *_corners(x * width, y * height, w * width, h * height)))
        elif len(values) == 5 + 3 * KEYPOINT_COUNT:
            keypoints = values[5:].reshape(KEYPOINT_COUNT, 3) * np.array((width, height, 1), np.float32)
        elif len(values):
            raise SettingsError(
                f"{file.name} has a line of {len(values)} numbers", hint="boxes have 5, a pitch has 101"
            )
    if keypoints is not None and not boxes:
        return None, keypoints
    return np.array(boxes, np.float32).reshape(-1, 5), keypoints


def _corners(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def _look(
    detector: Detector, group: Group, inputs: list[NDArray[np.uint8]], progress: Any
) -> tuple[list[tuple[Detections, Floats]], KeypointFigures]:
    boxes: list[tuple[Detections, Floats]] = []
    points = KeypointFigures()
    for number, example in enumerate(examples(group)):
        height, width = example.picture.shape[:2]
        made = detector.prepare(*planes_of_picture(example.picture))
        if len(inputs) < TIMED_FRAMES:
            inputs.append(made.copy())
        # the pitch always: it is what the product runs, and where people stand says who they are
        found = detector.detect([made], [number], width, height, pitch=True)[0]
        if example.boxes is not None:
            boxes.append((found, example.boxes))
        if example.keypoints is not None:
            points.merge(keypoint_figures(found.keypoints, example.keypoints, width, height))
        if progress is not None:
            progress(group.name)
    return boxes, points


def keypoint_figures(found: Floats, labelled: Floats, width: int, height: int) -> KeypointFigures:
    """Of one picture: the error of each labelled point that was found, and whether the homography is right."""
    seen = labelled[:, 2] > 0
    both = seen & (found[:, 2] > 0)
    errors = np.linalg.norm(found[both, :2] - labelled[both, :2], axis=1) / width
    figures = KeypointFigures(errors.tolist(), int(seen.sum()))
    if seen.sum() >= 4:
        view = fit(found, width, height)
        figures.frames = 1
        if view is not None:
            world = np.column_stack([POINTS[seen], np.ones(seen.sum())]) @ view.homography.T
            missed = np.linalg.norm(world[:, :2] / world[:, 2:] - labelled[seen, :2], axis=1)
            figures.right_homographies = int(missed.mean() < RIGHT_HOMOGRAPHY * width)
    return figures


def _box_figures(looks: Sequence[tuple[Detections, Floats]]) -> dict[str, Any]:
    if not looks:
        nothing = AveragePrecision(dict.fromkeys(CLASS_NAMES), dict.fromkeys(CLASS_NAMES), {})
        return _as_dict(nothing) | {"box_frames": 0}
    truth = labels_of([(boxes[:, 0], boxes[:, 1:], np.ones(len(boxes))) for _, boxes in looks])
    answer = labels_of([_class_by_class(found) for found, _ in looks])
    return _as_dict(average_precision(answer, truth)) | {"box_frames": len(looks)}


def _class_by_class(found: Detections) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Classes, xyxy, confidence: AP is asked class by class, so a row is ranked in each class by its score for it.

    This is how COCO figures of detectors with independent class scores are made; an answer of the pipeline has the
    one class that the track's votes chose.
    """
    row, class_id = np.nonzero(found.class_scores >= LEAST_SCORE)
    return class_id, found.xyxy[row], found.class_scores[row, class_id]


def _as_dict(precision: AveragePrecision) -> dict[str, Any]:
    return {
        "map50": precision.map50,
        "map50_95": precision.map50_95,
        "map50_mean": mean_of_known(list(precision.map50.values())),
        "by_size": precision.by_size,
    }


def labels_of(rows: Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> Labels:
    """Each row one frame: classes, xyxy, confidence."""
    counts = [len(row[0]) for row in rows]
    frames = np.arange(len(rows), dtype=np.int64)
    return Labels(
        width=0,
        height=0,
        frame_count=len(rows),
        frame_numbers=frames,
        row=np.repeat(frames, counts),
        ids=np.full(sum(counts), -1, np.int64),
        class_ids=np.concatenate([row[0] for row in rows]).astype(np.int64),
        confidence=np.concatenate([row[2] for row in rows]).astype(np.float32),
        xyxy=np.concatenate([row[1] for row in rows]).astype(np.float32),
        keypoints=np.zeros((len(rows), KEYPOINT_COUNT, 3), np.float32),
        has_all_keypoints=np.ones(len(rows), bool),
    )


def milliseconds_per_frame(
    detector: Detector, inputs: Sequence[NDArray[np.uint8]], workers: int | None = None
) -> dict[str, Any]:
    """Time of boxes and key points for a prepared frame: one thread alone, and one thread on each core.

    The best of three rounds, as other work on the machine only ever makes it slower.
    """
    workers = workers or os.cpu_count() or 1
    inputs = list(inputs) * (1 + TIMED_FRAMES // max(1, len(inputs)))

    def run(planes: NDArray[np.uint8]) -> None:
        detector.detect([planes], [0], 1280, 720, pitch=True)

    def best(pool: ThreadPoolExecutor) -> float:
        list(pool.map(run, inputs[:workers]))
        rounds = []
        for _ in range(3):
            watch = Stopwatch()
            list(pool.map(run, inputs))
            rounds.append(watch.elapsed)
        return 1000 * min(rounds) / len(inputs)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(workers) as all_of_them:
        return {
            "milliseconds_per_frame": best(all_of_them),
            "milliseconds_per_frame_one_thread": best(one),
            "workers": workers,
        }
