"""Detections and motions made by hand, exact, for the tests of what comes after flow."""

from __future__ import annotations

import numpy as np

from firsttouch.detect import Detections
from firsttouch.motion import Motion

NO_POINTS = np.zeros((32, 3), np.float32)


def person(x, y=300.0, width=20.0, height=50.0):
    """The box of a body whose centre is at (x, y)."""
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def ball(x, y=400.0):
    return person(x, y, 8.0, 8.0)


def detections(number, boxes, classes=None, confidence=0.9, keypoints=NO_POINTS):
    """`classes`: one class id a box (default: player); `confidence`: one for all, or one a box."""
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    classes = np.full(len(xyxy), 2) if classes is None else np.array(classes, np.intp)
    scores = np.zeros((len(xyxy), 4), np.float32)
    scores[np.arange(len(xyxy)), classes] = confidence
    return Detections(number, xyxy, scores, keypoints.astype(np.float32))


def motion(numbers, forward, backward, pairs, camera=None, cut_after=None):
    """forward, backward: (M, N, 4) nested lists."""
    steps = len(numbers)
    return Motion(
        np.array(numbers, np.int32),
        np.array(forward, np.float32).reshape(steps, -1, 4),
        np.array(backward, np.float32).reshape(steps, -1, 4),
        np.tile(np.eye(3), (steps, 1, 1)) if camera is None else np.array(camera, np.float64),
        np.array(pairs, np.int32).reshape(-1, 2),
        cut_after,
    )


def gliding(first, last, start, stop, pan=0.0):
    """Motion in which every body goes evenly from its box in `start` to its box in `stop`; None: not on that side.

    The camera moves the picture by `pan` pixels a frame. Bodies on one side only stay where they are.
    """
    numbers = np.arange(first, last + 1)
    share = (numbers - first) / (last - first)
    ahead, behind, pairs = [], [], []
    for a, b in zip(start, stop, strict=True):
        path = np.array([(1 - s) * np.array(a or b) + s * np.array(b or a) for s in share])
        if a is not None and b is not None:
            pairs.append((len(ahead), len(behind)))
        if a is not None:
            ahead.append(path)
        if b is not None:
            behind.append(path)
    none = np.zeros((len(numbers), 0, 4))
    camera = np.tile(np.eye(3), (len(numbers), 1, 1))
    camera[:, 0, 2] = pan * (numbers - first)
    return motion(
        numbers, np.stack(ahead, 1) if ahead else none, np.stack(behind, 1) if behind else none, pairs, camera
    )
