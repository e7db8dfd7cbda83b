"""What moved between two looked-at frames: boxes and camera, followed by sparse optical flow on half-size luma.

Points are seeded in every box and on the background, and tracked through the decoded frames by pyramidal Lucas-Kanade (OpenCV),
each step started from the velocity of the step before. The background gives the camera (a homography, because a broadcast camera
turns on its tripod), the points of a box give the box. Boxes of the first frame go forward, boxes of the last one backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from firsttouch.detect import Detections

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Grey = npt.NDArray[np.uint8]

# Six points a box measured as good as nine, and better than four (bench.carry on clip a).
SEEDS = np.array([(x, y) for y in (0.2, 0.45, 0.7) for x in (0.35, 0.65)], np.float32)
WINDOW = 9  # half-size pixels: most of the width of a far player, and OpenCV's fastest size
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03)
BACKGROUND_CELL = 40  # half-size pixels: one background point a cell, the best corner in it
CAMERA_ERROR = 1.5  # RANSAC threshold, half-size pixels
CUT_LIKENESS = 0.55  # thumbnails less alike than this, and a camera that cannot be found, are a cut


@dataclass(frozen=True, slots=True)
class Motion:
    """Boxes and camera from one looked-at frame (a) to the next (b), over the M decoded frames a..b inclusive.

    frame_numbers: (M,) int32, rising.
    forward: (M, Na, 4) float32 xyxy of the boxes of a in source pixels; NaN once lost.
    backward: (M, Nb, 4) float32 xyxy of the boxes of b; NaN once lost (seen from b).
    camera: (M, 3, 3) float64 homographies of source pixels, a -> frame m; behind a cut b -> frame m. NaN where unknown.
    pairs: (P, 2) int32, rows (of a, of b) that flow says are the same object.
    cut_after: the picture cuts between rows cut_after and cut_after + 1; None without a cut. With several cuts it is the first.
    """

    frame_numbers: npt.NDArray[np.int32]
    forward: Float
    backward: Float
    camera: Double
    pairs: npt.NDArray[np.int32]
    cut_after: int | None = None

    def __post_init__(self) -> None:
        steps = len(self.frame_numbers)
        if not (len(self.forward) == len(self.backward) == len(self.camera) == steps):
            raise ValueError(f"all columns must have {steps} rows, got {self.forward.shape}, {self.backward.shape}, {self.camera.shape}")

    @property
    def first(self) -> int:
        """Frame number of a."""
        return int(self.frame_numbers[0])

    @property
    def last(self) -> int:
        """Frame number of b."""
        return int(self.frame_numbers[-1])


def follow(
    greys: Sequence[Grey],
    frame_numbers: Sequence[int] | npt.NDArray[np.int32],
    first: Detections,
    last: Detections,
    scale: float,
) -> Motion:
    """The motion between two looked-at frames.

    greys: luma of the decoded frames a..b inclusive, uint8 (h, w), all of one size, evenly scaled down.
    scale: source pixels per grey pixel (2.0 for half-size).
    Pure: no threads, no state. Work is in OpenCV, which releases the GIL.
    """
    numbers = np.asarray(frame_numbers, np.int32)
    if len(greys) != len(numbers) or len(greys) < 2:
        raise ValueError(f"at least two greys, one for each frame number, got {len(greys)} and {len(numbers)}")
    cuts = find_cuts(greys)
    first_cut = cuts[0] if cuts else len(greys) - 1
    last_cut = cuts[-1] + 1 if cuts else 0
    forward, ahead = _track(greys, numbers, range(0, first_cut + 1), first.xyxy, scale)
    backward, behind = _track(greys, numbers, range(len(greys) - 1, last_cut - 1, -1), last.xyxy, scale)
    camera = ahead
    if cuts:
        camera[last_cut:] = behind[last_cut:]
    pairs = match_boxes(forward[-1], last.xyxy, first.class_id == 0, last.class_id == 0)
    return Motion(numbers, forward, backward, camera, pairs, cuts[0] if cuts else None)


def find_cuts(greys: Sequence[Grey]) -> list[int]:
    """Rows m for which the picture changes altogether between greys m and m + 1.

    Thumbnails are compared after the best small shift, so that a fast pan is not taken for a cut.
    """
    thumbs = [cv2.resize(g, (64, 36), interpolation=cv2.INTER_AREA).astype(np.float32) for g in greys]
    cuts = []
    for m, (before, after) in enumerate(zip(thumbs[:-1], thumbs[1:], strict=True)):
        if np.abs(before - after).mean() < 12.0:
            continue
        likeness = cv2.matchTemplate(after, before[4:-4, 12:-12], cv2.TM_CCOEFF_NORMED).max()
        if likeness < CUT_LIKENESS:
            cuts.append(m)
    return cuts


def match_boxes(moved: Float, boxes: Float, moved_ball: npt.NDArray[np.bool_], ball: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Rows of `moved` (boxes carried here, NaN where lost) and of `boxes` that are one object: (P, 2) int32.

    The cost is the distance of the centres over the mean height, which still says something where small boxes no longer overlap.
    """
    if not len(moved) or not len(boxes):
        return np.zeros((0, 2), np.int32)
    cost = box_distance(moved, boxes)
    size = np.log((boxes[:, 3] - boxes[:, 1])[None] / (moved[:, 3] - moved[:, 1])[:, None])
    cost = cost + 0.5 * np.abs(size)
    cost[np.not_equal.outer(moved_ball, ball)] = np.inf
    gate = np.where(moved_ball, 3.0, 0.6)[:, None]
    cost = np.where(cost <= gate, cost, 1e3)
    rows, columns = linear_sum_assignment(cost)
    good = cost[rows, columns] < 1e3
    return np.stack([rows[good], columns[good]], 1).astype(np.int32)


def box_distance(a: Float, b: Float) -> Double:
    """(Na, Nb) distance of the centres, in mean heights; NaN rows give infinity."""
    centre_a, centre_b = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    height = ((a[:, 3] - a[:, 1])[:, None] + (b[:, 3] - b[:, 1])[None]) / 2
    gap = centre_a[:, None] - centre_b[None]
    distance = np.hypot(gap[..., 0], gap[..., 1]) / np.maximum(height, 1e-3)
    return np.where(np.isfinite(distance), distance, np.inf)


def _track(
    greys: Sequence[Grey], numbers: npt.NDArray[np.int32], order: range, boxes: Float, scale: float
) -> tuple[Float, Double]:
    """Boxes (M, N, 4) and camera (M, 3, 3) from row order[0] along `order`; rows not in `order` are NaN."""
    carried = np.full((len(greys), len(boxes), 4), np.nan, np.float32)
    camera = np.full((len(greys), 3, 3), np.nan)
    carried[order[0]], camera[order[0]] = boxes, np.eye(3)
    small = boxes / scale
    background = _background_points(greys[order[0]], small)
    seeds = (small[:, None, :2] + SEEDS * (small[:, None, 2:] - small[:, None, :2])).reshape(-1, 2)
    start = np.concatenate([seeds, background]).astype(np.float32)
    if not len(start):
        return carried, camera
    points, alive = start.copy(), np.ones(len(start), bool)
    velocity = np.zeros_like(start)
    height, width = greys[0].shape
    for before, after in zip(order[:-1], order[1:], strict=True):
        elapsed = abs(int(numbers[after]) - int(numbers[before]))
        points, alive, velocity = _step(greys[before], greys[after], points, alive, velocity, elapsed)
        homography = _camera(start[len(seeds) :], points[len(seeds) :], alive[len(seeds) :])
        if homography is not None:
            camera[after] = _rescaled(homography, scale)
        if len(boxes):
            carried[after] = _moved(boxes, start[: len(seeds)], points[: len(seeds)], alive[: len(seeds)], scale, (width, height))
    return carried, camera


def _step(
    before: Grey, after: Grey, points: Float, alive: npt.NDArray[np.bool_], velocity: Float, elapsed: int
) -> tuple[Float, npt.NDArray[np.bool_], Float]:
    """One Lucas-Kanade step of the points still alive, started where their velocity leads."""
    guess = points + velocity * elapsed
    which = np.flatnonzero(alive)
    if not len(which):
        return points, alive, velocity
    options: dict[str, Any] = {
        "winSize": (WINDOW, WINDOW),
        "maxLevel": 3,
        "criteria": CRITERIA,
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "minEigThreshold": 1e-4,
    }
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points[which].reshape(-1, 1, 2), guess[which].reshape(-1, 1, 2), **options
    )
    ok = found[:, 0] == 1
    points, alive, velocity = points.copy(), alive.copy(), velocity.copy()
    velocity[which] = (moved[:, 0] - points[which]) / elapsed
    points[which] = moved[:, 0]
    alive[which] = ok
    return points, alive, velocity


def _moved(
    boxes: Float, start: Float, points: Float, alive: npt.NDArray[np.bool_], scale: float, size: tuple[int, int]
) -> Float:
    """Boxes shifted by the median of their points; NaN where too few points live or the centre has left the picture."""
    shift = np.where(alive[:, None], points - start, np.nan).reshape(len(boxes), len(SEEDS), 2)
    enough = alive.reshape(len(boxes), len(SEEDS)).sum(1) >= 2
    moved = np.full_like(boxes, np.nan)
    if enough.any():
        median = np.nanmedian(shift[enough], axis=1) * scale
        moved[enough] = boxes[enough] + np.concatenate([median, median], 1)
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    outside = ~((centre > 0) & (centre < np.array(size) * scale)).all(1)
    moved[outside] = np.nan
    return moved


def _background_points(grey: Grey, boxes: Float) -> Float:
    """The best corner of every cell of the picture that is not in a box; half-size pixels."""
    height, width = grey.shape
    cell = BACKGROUND_CELL
    rows, columns = height // cell, width // cell
    if not rows or not columns:
        return np.zeros((0, 2), np.float32)
    quarter = cv2.resize(grey, (columns * cell // 2, rows * cell // 2), interpolation=cv2.INTER_AREA)
    corners = cv2.cornerMinEigenVal(quarter, 5)
    for x0, y0, x1, y1 in (boxes / 2).astype(int):
        corners[max(y0 - 2, 0) : y1 + 3, max(x0 - 2, 0) : x1 + 3] = 0
    side = cell // 2
    blocks = corners.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    best = blocks.argmax(1)
    good = blocks[np.arange(len(best)), best] > 1e-4
    y = np.arange(rows).repeat(columns) * side + best // side
    x = np.tile(np.arange(columns), rows) * side + best % side
    factor = np.array([width / (columns * side), height / (rows * side)])
    points = (np.stack([x, y], 1) + 0.5) * factor - 0.5
    return np.asarray(points[good], np.float32)


def _camera(start: Float, points: Float, alive: npt.NDArray[np.bool_]) -> Double | None:
    if alive.sum() < 8:
        return None
    homography, inliers = cv2.findHomography(start[alive], points[alive], cv2.USAC_FAST, CAMERA_ERROR)
    if homography is None or inliers.sum() < max(8, 0.3 * alive.sum()):
        return None
    return np.asarray(homography, np.float64)


def _rescaled(homography: Double, scale: float) -> Double:
    """From grey pixels to source pixels, pixel centres kept: x_source = scale * (x_grey + 0.5) - 0.5."""
    up = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5], [0, 0, 1.0]])
    full = up @ homography @ np.linalg.inv(up)
    return np.asarray(full / full[2, 2])
