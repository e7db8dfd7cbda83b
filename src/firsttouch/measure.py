"""Plain measures of an answer against the truth: matches, F1, average precision, HOTA.

F1 is our own and vectorised: the bench calls it on two answers of 750 frames many times over. Average
precision is COCO's, by faster-coco-eval; HOTA is TrackEval's, where that is installed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsttouch.labels import Labels

CLASS_NAMES = ("ball", "goalkeeper", "player", "referee")
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's bands of box area, in pixels of the source picture."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
HOTA_HINT = (
    "pip install --no-deps trackeval (its declared opencv-python would displace opencv-python-headless; "
    "HOTA needs only numpy and scipy)"
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Boxes found, missed and too many at one IoU, and what follows.

    `f1` counts the frames that were answered; `covered_f1` all frames of the truth, so a frame that is
    missing from the answer counts as all missed.
    """

    true_positives: int
    false_positives: int
    missed_in_answered: int
    missed_in_all: int

    @property
    def precision(self) -> float:
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return _share(self.true_positives, self.true_positives + self.missed_in_answered)

    @property
    def f1(self) -> float:
        return _f1(self.true_positives, self.false_positives, self.missed_in_answered)

    @property
    def covered_f1(self) -> float:
        return _f1(self.true_positives, self.false_positives, self.missed_in_all)


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """COCO's averages, each class by name; None where the truth has no such box."""

    map50: dict[str, float | None]
    map50_95: dict[str, float | None]
    by_size: dict[str, dict[str, float | None]]


def agreement(answer: Labels, truth: Labels, *, iou: float = 0.5, class_aware: bool = True) -> Agreement:
    """How well `answer` finds the boxes of `truth`; each box is matched once, the best overlaps first."""
    pairs = match(answer, truth, iou=iou, class_aware=class_aware)
    found = len(pairs)
    answered = np.isin(truth.box_frame_numbers(), answer.frame_numbers)
    judged = np.isin(answer.box_frame_numbers(), truth.frame_numbers)
    return Agreement(found, int(judged.sum()) - found, int(answered.sum()) - found, len(truth.row) - found)


def match(answer: Labels, truth: Labels, *, iou: float = 0.5, class_aware: bool = True) -> Ints:
    """(M, 2) indices of boxes of `answer` and `truth` that belong together.

    Rounds of "each is the other's best" until none is left, which is taking the pairs by falling IoU.
    """
    left, right, overlap = overlapping_pairs(answer, truth, iou)
    if class_aware:
        same = answer.class_ids[left] == truth.class_ids[right]
        left, right, overlap = left[same], right[same], overlap[same]
    chosen: list[Ints] = []
    while len(left):
        # A tiny preference by position makes equal overlaps comparable, so that every round chooses some.
        order = np.lexsort((right, left, -overlap))
        left, right, overlap = left[order], right[order], overlap[order]
        first = _is_first(left) & _is_first(right)
        chosen.append(np.stack([left[first], right[first]], axis=1))
        free = ~(np.isin(left, left[first]) | np.isin(right, right[first]))
        left, right, overlap = left[free], right[free], overlap[free]
    return np.concatenate(chosen) if chosen else np.zeros((0, 2), np.int64)


def overlapping_pairs(answer: Labels, truth: Labels, iou: float) -> tuple[Ints, Ints, Floats]:
    """Every pair of boxes of the same frame that overlap by at least `iou`: two index columns and the IoU."""
    mine, theirs = answer.box_frame_numbers(), truth.box_frame_numbers()
    start = np.searchsorted(theirs, mine, "left")
    counts = np.searchsorted(theirs, mine, "right") - start
    left = np.repeat(np.arange(len(mine)), counts)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
    right = np.repeat(start, counts) + offset
    overlap = _iou(answer.xyxy[left].astype(np.float64), truth.xyxy[right].astype(np.float64))
    enough = overlap >= iou
    return left[enough], right[enough], overlap[enough]


def average_precision(answer: Labels, truth: Labels) -> AveragePrecision:
    """COCO's AP per class at IoU 0.5 and averaged over 0.5..0.95, and AP50 per class and size."""
    from faster_coco_eval import COCO, COCOeval_faster

    ground, found = _coco_truth(truth), _coco_found(answer, truth)
    if not found:
        nothing = {name: 0.0 if (truth.class_ids == i).any() else None for i, name in enumerate(CLASS_NAMES)}
        return AveragePrecision(nothing, dict(nothing), {})
    judge = COCO(ground)
    evaluation = COCOeval_faster(judge, judge.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.params.areaRng = [[0.0, 1e10], *([low, high] for low, high in SIZES.values())]
    evaluation.params.areaRngLbl = ["all", *SIZES]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU, recall, class, area, max detections)
    return AveragePrecision(
        {name: _mean(precision[0, :, i, 0, -1]) for i, name in enumerate(CLASS_NAMES)},
        {name: _mean(precision[:, :, i, 0, -1]) for i, name in enumerate(CLASS_NAMES)},
        {
            size: {name: _mean(precision[0, :, i, band, -1]) for i, name in enumerate(CLASS_NAMES)}
            for band, size in enumerate(SIZES, start=1)
        },
    )


def hota(answer: Labels, truth: Labels) -> dict[str, float] | None:
    """HOTA, DetA and AssA (0..1) of people and ball together; None without identities or TrackEval."""
    try:
        # Its __init__ prints about data sets whose own dependencies are missing; stdout is ours.
        with contextlib.redirect_stdout(io.StringIO()):
            from trackeval.metrics.hota import HOTA  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    if not len(truth.ids) or (truth.ids < 0).any() or (answer.ids < 0).any():
        return None
    result = HOTA({}).eval_sequence(_hota_input(answer, truth)) if len(answer.ids) else None
    if result is None:
        return {"HOTA": 0.0, "DetA": 0.0, "AssA": 0.0}
    return {name: float(np.mean(result[name])) for name in ("HOTA", "DetA", "AssA")}


def _hota_input(answer: Labels, truth: Labels) -> dict[str, object]:
    """TrackEval's columns: identities as 0..n-1, and IoU matrices frame by frame."""
    mine, my_ids = np.unique(answer.ids, return_inverse=True)
    theirs, their_ids = np.unique(truth.ids, return_inverse=True)
    frames = truth.frame_numbers
    gt, tracked, similarity = [], [], []
    my_frames, their_frames = answer.box_frame_numbers(), truth.box_frame_numbers()
    for number in frames:
        a = slice(*np.searchsorted(my_frames, [number, number + 1]))
        t = slice(*np.searchsorted(their_frames, [number, number + 1]))
        gt.append(their_ids[t])
        tracked.append(my_ids[a])
        similarity.append(_iou(truth.xyxy[t][:, None].astype(float), answer.xyxy[a][None].astype(float)))
    return {
        "num_tracker_dets": sum(map(len, tracked)),
        "num_gt_dets": len(truth.ids),
        "num_tracker_ids": len(mine),
        "num_gt_ids": len(theirs),
        "num_timesteps": len(frames),
        "gt_ids": gt,
        "tracker_ids": tracked,
        "similarity_scores": similarity,
    }


def _coco_truth(truth: Labels) -> dict[str, object]:
    return {
        "info": {},
        "images": [
            {"id": number, "width": truth.width, "height": truth.height} for number in truth.frame_numbers.tolist()
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)],
        "annotations": [
            {"id": i + 1, "iscrowd": 0, "area": box["bbox"][2] * box["bbox"][3], **box}
            for i, box in enumerate(_coco_boxes(truth))
        ],
    }


def _coco_found(answer: Labels, truth: Labels) -> list[dict[str, object]]:
    judged = answer.only(truth.frame_numbers)
    scores = judged.confidence.tolist()
    return [{"score": score, **box} for box, score in zip(_coco_boxes(judged), scores, strict=True)]


def _coco_boxes(labels: Labels) -> list[dict[str, Any]]:
    sizes = labels.xyxy[:, 2:] - labels.xyxy[:, :2]
    boxes = np.concatenate([labels.xyxy[:, :2], sizes], axis=1).tolist()
    frames, classes = labels.box_frame_numbers().tolist(), labels.class_ids.tolist()
    return [
        {"image_id": frame, "category_id": kind + 1, "bbox": box}
        for frame, kind, box in zip(frames, classes, boxes, strict=True)
    ]


def _iou(a: Floats, b: Floats) -> Floats:
    """IoU of boxes whose leading dimensions broadcast."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inside
    return np.asarray(inside / np.maximum(union, 1e-9))


def _is_first(values: Ints) -> NDArray[np.bool_]:
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _mean(values: Floats) -> float | None:
    """COCO marks what has no truth with -1."""
    return float(values.mean()) if values.size and (values > -1).all() else None


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _f1(found: int, false: int, missed: int) -> float:
    return _share(2 * found, 2 * found + false + missed)


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is not None; None when nothing is."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
