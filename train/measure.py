"""Average precision and key-point error of a network on labelled frames; the judge used while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.pitch import POINTS
from train import pitch
from train.augment import plain_view
from train.data import WIDTH, Frame
from train.network import CLASSES

Answer = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Answering = Callable[[NDArray[np.uint8]], Answer]  # planes [n, h, w, 6] -> boxes, scores, keypoints


def answers(frames: Sequence[Frame], run: Answering, batch: int = 4) -> list[Answer]:
    """One (boxes [100, 4], scores [100, 4], keypoints [32, 3]) for each frame."""
    out: list[Answer] = []
    for i in range(0, len(frames), batch):
        planes = np.stack([plain_view(f).planes for f in frames[i : i + batch]])
        out.extend(zip(*run(planes), strict=True))
    return out


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(-1), (b[:, 2:] - b[:, :2]).prod(-1)
    return np.asarray(inner / np.maximum(area_a[:, None] + area_b[None] - inner, 1e-9), np.float32)


def average_precision(frames: Sequence[Frame], found: Sequence[Answer], class_id: int, threshold: float = 0.5) -> float:
    """101-point interpolated AP of one class (COCO's), every row ranked by its score for this class."""
    hits, confidences, total = [], [], 0
    for frame, (boxes, scores, _) in zip(frames, found, strict=True):
        if frame.boxes is None:
            continue
        truth = frame.boxes[frame.boxes[:, 0] == class_id, 1:]
        total += len(truth)
        mine = scores[:, class_id] > 0.01
        confidence = scores[mine, class_id]
        overlap, free = iou_matrix(boxes[mine], truth), np.ones(len(truth), bool)
        for k in np.argsort(-confidence, kind="stable"):
            row = np.where(free, overlap[k], 0) if len(truth) else np.zeros(1)
            hit = bool(row.max() >= threshold)
            if hit:
                free[row.argmax()] = False
            hits.append(hit)
            confidences.append(confidence[k])
    if total == 0:
        return float("nan")
    order = np.argsort(-np.array(confidences), kind="stable")
    true = np.cumsum(np.array(hits)[order]) if len(hits) else np.zeros(0)
    precision, recall = true / np.arange(1, len(true) + 1), true / total
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[i] if i < len(precision) else 0.0 for i in at]))


def keypoint_figures(frames: Sequence[Frame], found: Sequence[Answer], confidence: float = 0.3) -> dict[str, float]:
    """Error of labelled points that were found (share of width), recall, and the share of right homographies."""
    errors, labelled, right, judged = [], 0, 0, 0
    for frame, (_, _, points) in zip(frames, found, strict=True):
        if frame.labelled is None:
            continue
        seen = frame.labelled[:, 2] > 0
        confident = points[:, 2] > confidence
        labelled += int(seen.sum())
        both = seen & confident
        errors.extend(np.linalg.norm(points[both, :2] - frame.labelled[both, :2], axis=1) / WIDTH)
        if seen.sum() < 4:
            continue
        judged += 1
        right += _homography_is_right(points, confident, frame.labelled)
    return {
        "kp_error": float(np.mean(errors)) if errors else float("nan"),
        "kp_within_1pc": float(np.mean(np.array(errors) < 0.01)) if errors else float("nan"),
        "kp_recall": len(errors) / max(labelled, 1),
        "homography": right / max(judged, 1),
        "judged": judged,
    }


def _homography_is_right(points: NDArray[np.float32], use: NDArray[np.bool_], labels: NDArray[np.float32]) -> bool:
    """The labels' own pitch positions, projected by our homography, lie within 1.5 % of the width on average."""
    if use.sum() < 4:
        return False
    found, _ = cv2.findHomography(POINTS[use], points[use, :2].astype(np.float64), cv2.RANSAC, 0.01 * WIDTH)
    if found is None:
        return False
    seen = labels[:, 2] > 0
    error = np.linalg.norm(pitch.project(found, POINTS[seen]) - labels[seen, :2], axis=1)
    return bool(np.mean(error) < 0.015 * WIDTH)


def report(splits: dict[str, list[Frame]], run: Answering) -> dict[str, float]:
    """One flat table of figures for named groups of frames."""
    table: dict[str, float] = {}
    for name, frames in splits.items():
        found = answers(frames, run)
        if any(f.boxes is not None for f in frames):
            for c, label in enumerate(CLASSES):
                table[f"{name}/ap50_{label}"] = average_precision(frames, found, c)
        if any(f.labelled is not None for f in frames):
            table |= {f"{name}/{k}": v for k, v in keypoint_figures(frames, found).items()}
    return table
