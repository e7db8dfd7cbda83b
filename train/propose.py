"""Pseudo-labels: what a trained network is sure of becomes a label where nobody drew one.

Where it doubts, nothing is said.

Boxes for the pitch frames and key points for the detection frames. A key-point proposal must hold as one homography.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.pitch import POINTS
from train import data, measure, pitch
from train.data import HEIGHT, WIDTH, Frame

SURE, DOUBT = 0.45, 0.15  # at these scores precision on `detection/val` is about 0.97 and recall about 0.97
IGNORE = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--extra", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=Path("runs/pseudo"))


def main(args: argparse.Namespace) -> None:
    from train.fit import answering, load_network, load_training_frames

    network, _ = load_network(args.checkpoint)
    frames = [
        f for f in load_training_frames(args.data, args.cache, args.extra) if f.boxes is None or f.keypoints is None
    ]
    found = measure.answers(frames, answering(network))
    boxed = pointed = 0
    for frame, answer in zip(frames, found, strict=True):
        lines = []
        if frame.boxes is None:
            lines += propose_boxes(answer)
            boxed += 1
        if frame.keypoints is None:
            line = propose_keypoints(answer[2])
            lines += [line] if line else []
            pointed += bool(line)
        path = args.out / frame.source / f"{frame.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(frames)} frames: boxes for {boxed}, key points for {pointed}")


def propose_boxes(answer: measure.Answer) -> list[str]:
    """Label lines; class -1 marks a place to say nothing about."""
    lines = []
    for box, scores in zip(answer[0], answer[1], strict=True):
        best = float(scores.max())
        total = float(scores.sum())
        if max(best, total) < DOUBT:
            continue
        sure = best > SURE and (best > 0.6 * total)
        kind = int(scores.argmax()) if sure else IGNORE
        x0, y0, x1, y1 = box / (WIDTH, HEIGHT, WIDTH, HEIGHT)
        lines.append(f"{kind} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}")
    return lines


def propose_keypoints(points: NDArray[np.float32]) -> str | None:
    """A pose line of all points inside the picture, or None when the sure ones do not agree."""
    sure = points[:, 2] > 0.4
    if sure.sum() < 6:
        return None
    found, inliers = cv2.findHomography(POINTS[sure], points[sure, :2].astype(np.float64), cv2.RANSAC, 8.0)
    if found is None or inliers.sum() < max(6, 0.85 * sure.sum()):
        return None
    xy = pitch.project(found, POINTS)
    inside = pitch.inside(xy)
    if not points[inside, 2].mean() > 0.45:  # points that the fit puts in the picture but the network does not see
        return None
    row = np.column_stack((xy / (WIDTH, HEIGHT), 2 * inside))
    row[~inside] = 0
    return "0 0.5 0.5 1 1 " + " ".join(f"{v:.6f}" for v in row.ravel())


def complete(frames: list[Frame], folder: Path) -> list[Frame]:
    """The frames with proposed labels in the place of missing ones."""
    out = []
    for frame in frames:
        path = folder / frame.source / f"{frame.name}.txt"
        if path.exists():
            boxes, points = data.read_labels(path)
            if frame.boxes is None and len(boxes):
                frame = replace(frame, boxes=boxes[boxes[:, 0] != IGNORE], ignore=boxes[boxes[:, 0] == IGNORE, 1:])
            if frame.keypoints is None and points is not None:
                frame = replace(frame, keypoints=points)
        out.append(frame)
    return out
