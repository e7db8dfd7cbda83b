"""What moved between two looked-at frames: boxes and camera, followed by sparse optical flow on half-size luma.

Points are seeded in every box and on the background, and tracked through the decoded frames by pyramidal
Lucas-Kanade (OpenCV),
each step started from the velocity of the step before. The background gives the camera (a homography, because
a broadcast camera
turns on its tripod), the points of a box give the box. Boxes of the first frame go forward, boxes of the last
one backward.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from firsttouch.detect import Detections
from firsttouch.homography import Float, moved_points
from firsttouch.predict import LEAP_FRAMES

Grey = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

SEEDS = np.array([(x, y) for y in (-0.3, -0.05, 0.2) for x in (-0.15, 0.15)], np.float32)
"""Where in a box its points are, from the centre, in box sizes: head, shirt and shorts, since legs swing."""
WINDOW = 9
"""Half-size pixels: most of the width of a far player, and OpenCV's fastest size. 7 to 11 measure alike, 15 is
worse."""
FIRST_LEVELS, LEVELS = 3, 1
"""Pyramid levels of the first step, which knows the camera but not the body's own velocity, and of the others,
which know both.
More levels let a point jump to the next player, fewer lose a turning one."""
STRAY = 0.25
"""A point that moves this many box widths unlike the others is put back into its place in the box."""
LOOKS = np.array([(x, y) for y in np.linspace(-0.4, 0.3, 7) for x in np.linspace(-0.3, 0.3, 4)], np.float32)
"""Where in a box its looks are taken, from the centre, in box sizes."""
UNLIKE = 0.1
"""Likeness to its first looks below which a box is doubted, and lost at the second time. Of boxes followed
rightly for 16 frames
of clip a 3 % are below it, of those that went astray 25 %, of a rendered clip 4 % and 50 %."""
CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03)
BACKGROUND_CELL = 40
"""Half-size pixels: one background point a cell, the best corner in it."""
CAMERA_ERROR = 1.5
"""RANSAC threshold of the camera, half-size pixels."""
VELOCITY_FRAMES = 6
"""Velocities are measured over about this many frames."""
FAR_FRAMES = 6
"""A longer step of the camera starts from a coarse search over the whole picture."""
ALIKE = 0.6
"""Correlation of grey histograms below which two frames without a common camera are two scenes."""
CUT_LIKENESS = 0.55
"""Thumbnails less alike than this, after the best shift, are a cut."""
BALL_PATCH = 9
"""Half-size pixels: the ball (3 to 8) and a rim of grass."""
BALL_CANDIDATES = 5
BALL_UNSEEN = 0.4
"""What the ball's place on the straight line is worth where nothing there looks like it (likeness of a found
one is up to 1)."""
BALL_TURN = 0.04
"""What each pixel a frame off the straight line's speed costs, in likeness."""
BALL_SPEED = 25.0
"""Half-size pixels a frame beyond which two balls are not the same one."""
SURE_MATCH = 0.2
"""A body that flow brings this close to a box (in heights) needs no second opinion from backward flow."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Boxes and camera from one looked-at frame (a) to the next (b), over the M decoded frames a..b inclusive.

    frame_numbers: (M,) int32, rising.
    forward: (M, Na, 4) float32 xyxy of the boxes of a in source pixels; NaN once lost.
    backward: (M, Nb, 4) float32 xyxy of the boxes of b; NaN once lost (seen from b),
        and for those that forward flow clearly reached.
    camera: (M, 3, 3) float64 homographies of source pixels, a -> frame m; behind a cut b -> frame m. NaN where
    unknown.
    pairs: (P, 2) int32, rows (of a, of b) that flow says are the same object.
    cut_after: the picture cuts between rows cut_after and cut_after + 1; None without a cut. With several cuts
    it is the first.
    """

    frame_numbers: npt.NDArray[np.int32]
    forward: Float
    backward: Float
    camera: Float
    pairs: npt.NDArray[np.int32]
    cut_after: int | None = None

    def __post_init__(self) -> None:
        steps = len(self.frame_numbers)
        if not (len(self.forward) == len(self.backward) == len(self.camera) == steps):
            shapes = self.forward.shape, self.backward.shape, self.camera.shape
            raise ValueError(f"all columns must have {steps} rows, got shapes {shapes}")

    def rows_near_start(self) -> tuple[int, int] | None:
        """First row and one some six frames later, to measure a velocity; None where a cut is in the way."""
        last = max(1, int(np.searchsorted(self.frame_numbers, self.first + VELOCITY_FRAMES, side="right")) - 1)
        return (0, last) if self.cut_after is None or last <= self.cut_after else None

    def rows_near_end(self) -> tuple[int, int] | None:
        """A row some six frames before the last, and the last; None where a cut is in the way."""
        last = len(self.frame_numbers) - 1
        start = min(int(np.searchsorted(self.frame_numbers, self.last - VELOCITY_FRAMES)), last - 1)
        return (start, last) if self.cut_after is None or start > self.cut_after else None

    @property
    def is_leap(self) -> bool:
        """Nothing was decoded between, and the ends are too far apart for flow."""
        return len(self.frame_numbers) == 2 and self.last - self.first > LEAP_FRAMES

    @property
    def first(self) -> int:
        """Frame number of a."""
        return int(self.frame_numbers[0])

    @property
    def last(self) -> int:
        """Frame number of b."""
        return int(self.frame_numbers[-1])


@dataclass(frozen=True, slots=True)
class Steps:
    """The decoded frames of G motions as M rows, one motion after the other.

    motion: (M,) which of them a row is of. start: (G + 1,) where each begins. numbers: (M,) frame numbers.
    """

    motion: npt.NDArray[np.intp]
    start: npt.NDArray[np.intp]
    numbers: npt.NDArray[np.int64]

    @classmethod
    def of(cls, motions: Sequence[Motion]) -> Steps:
        lengths = [len(motion.frame_numbers) for motion in motions]
        numbers = [np.zeros(0, np.int64), *(motion.frame_numbers.astype(np.int64) for motion in motions)]
        start = np.concatenate([[0], np.cumsum(lengths, dtype=np.intp)])
        return cls(np.repeat(np.arange(len(motions)), lengths), start, np.concatenate(numbers))

    def around(self, motion: npt.NDArray[np.intp], frames: npt.NDArray[np.integer]) -> Around:
        """For frames (F,) within their motions (F,), the rows to interpolate between."""
        span = int(self.numbers.max(initial=0)) + 1
        place = np.searchsorted(self.motion * span + self.numbers, motion * span + frames)
        after = np.minimum(place, self.start[motion + 1] - 1)
        before = np.where(self.numbers[after] == frames, after, np.maximum(after - 1, self.start[motion]))
        length = np.maximum(self.numbers[after] - self.numbers[before], 1)
        return Around(before, after, (frames - self.numbers[before]) / length)


class Around(NamedTuple):
    """Rows of `Steps` (F,) before and at or after each frame, and what the second counts (F,)."""

    before: npt.NDArray[np.intp]
    after: npt.NDArray[np.intp]
    share: Float

    def between(self, values: Float) -> Float:
        """Values (M, ...) of the rows on the frames (F, ...). NaN spoils what it touches: none across a cut."""
        share = self.share.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray((1 - share) * values[self.before] + share * values[self.after])


def use_one_thread() -> None:
    """Keep OpenCV from sharing each call between threads of its own: the callers are the threads."""
    cv2.setNumThreads(1)


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
    Forward flow carries all boxes of a; backward flow, which costs as much, only the boxes of b that forward
    flow did not clearly
    reach. Pure: no threads, no state. Work is in OpenCV, which releases the GIL.
    """
    numbers = np.asarray(frame_numbers, np.int32)
    if len(greys) != len(numbers) or len(greys) < 2:
        raise ValueError(f"at least two greys, one for each frame number, got {len(greys)} and {len(numbers)}")
    before, after = first.xyxy / scale, last.xyxy / scale
    if len(greys) == 2 and numbers[1] - numbers[0] > LEAP_FRAMES:
        return _leap(greys, numbers, before, after, scale)
    cuts = find_cuts(greys)
    ahead = range(cuts[0] + 1 if cuts else len(greys))
    behind = range(len(greys) - 1, cuts[-1] if cuts else -1, -1)
    camera = _follow_camera(greys, numbers, ahead, before)
    forward = _follow_boxes(greys, numbers, ahead, before, camera)
    if cuts:
        camera[behind] = _follow_camera(greys, numbers, behind, after)[behind]
    clear = _clearly_reached(forward[-1], after, first.class_id == 0, last.class_id == 0)
    backward = np.full((len(greys), len(after), 4), np.nan, np.float32)
    backward[:, ~clear] = _follow_boxes(greys, numbers, behind, after[~clear], camera)
    pairs = _paired(forward, backward, before, after, first.class_id == 0, last.class_id == 0)
    if not cuts:
        pairs = _with_ball(greys, numbers, first, last, before, after, camera, forward, backward, pairs)
    return Motion(
        numbers, forward * scale, backward * scale, _rescaled(camera, scale), pairs, cuts[0] if cuts else None
    )


def _leap(greys: Sequence[Grey], numbers: npt.NDArray[np.int32], before: Float, after: Float, scale: float) -> Motion:
    """Two looked-at frames far apart with nothing decoded between: the camera if it can be found, no flow of boxes.

    Where there is no common camera and the greys are spread differently, there was a cut somewhere between.
    """
    camera = _follow_camera(greys, numbers, range(2), before)
    forward = np.stack([before, np.full_like(before, np.nan)])
    backward = np.stack([np.full_like(after, np.nan), after])
    cut = None if np.isfinite(camera[1]).all() or _histogram_likeness(*greys) > ALIKE else 0
    if cut is not None:
        camera[1] = np.eye(3)
    pairs = np.zeros((0, 2), np.int32)
    return Motion(numbers, forward * scale, backward * scale, _rescaled(camera, scale), pairs, cut)


def _histogram_likeness(before: Grey, after: Grey) -> float:
    histograms = [np.bincount(g[::4, ::4].ravel() >> 3, minlength=32).astype(np.float32) for g in (before, after)]
    return float(np.corrcoef(histograms[0], histograms[1]).ravel()[1])


def find_cuts(greys: Sequence[Grey]) -> list[int]:
    """Rows m for which the picture changes altogether between greys m and m + 1.

    Thumbnails are compared after the best small shift, so that a fast pan is not taken for a cut.
    """
    thumbs = [cv2.resize(g, (64, 36), interpolation=cv2.INTER_AREA).astype(np.float32) for g in greys]
    cuts = []
    for m, (before, after) in enumerate(itertools.pairwise(thumbs)):
        if np.abs(before - after).mean() < 12.0:
            continue
        likeness = cv2.matchTemplate(after, before[4:-4, 12:-12], cv2.TM_CCOEFF_NORMED).max()
        if likeness < CUT_LIKENESS:
            cuts.append(m)
    return cuts


def _clearly_reached(carried: Float, boxes: Float, carried_ball: Bool, ball: Bool) -> Bool:
    """(Nb,) whether a carried box of the same kind came close and no other is near, so that there is nothing
    to settle."""
    distance = box_distance(carried, boxes)
    distance[np.not_equal.outer(carried_ball, ball)] = np.inf
    if not distance.size:
        return np.zeros(len(boxes), np.bool_)
    close = (distance < SURE_MATCH) & (distance <= distance.min(0)) & (distance <= distance.min(1, keepdims=True))
    rivals = (distance < 3 * SURE_MATCH).sum(0) > 1
    return np.asarray(close.any(0) & ~rivals & ~ball)


def _paired(
    forward: Float, backward: Float, before: Float, after: Float, before_ball: Bool, after_ball: Bool
) -> npt.NDArray[np.int32]:
    """Rows (of a, of b) that are one object, (P, 2): the nearer of forward flow at b and backward flow at a
    decides."""
    if not len(before) or not len(after):
        return np.zeros((0, 2), np.int32)
    cost = np.minimum(box_distance(forward[-1], after), box_distance(before, backward[0]))
    tall = np.log((after[:, 3] - after[:, 1])[None] / (before[:, 3] - before[:, 1])[:, None])
    cost = cost + 0.5 * np.abs(tall)
    cost[np.not_equal.outer(before_ball, after_ball)] = np.inf
    cost = np.where(cost <= np.where(before_ball, 3.0, 0.6)[:, None], cost, 1e3)
    rows, columns = linear_sum_assignment(cost)
    good = cost[rows, columns] < 1e3
    return np.stack([rows[good], columns[good]], 1).astype(np.int32)


def box_distance(a: Float, b: Float) -> Float:
    """(Na, Nb) distance of the centres, in mean heights; NaN rows give infinity."""
    centre_a, centre_b = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    height = ((a[:, 3] - a[:, 1])[:, None] + (b[:, 3] - b[:, 1])[None]) / 2
    gap = centre_a[:, None] - centre_b[None]
    distance = np.hypot(gap[..., 0], gap[..., 1]) / np.maximum(height, 1e-3)
    return np.where(np.isfinite(distance), distance, np.inf)


def camera_across(motion: Motion | None) -> Float | None:
    """Homography from the first to the last frame; None without motion, behind a cut, or where it was not found."""
    if motion is None or motion.cut_after is not None or not np.isfinite(motion.camera[-1]).all():
        return None
    return np.asarray(motion.camera[-1])


def moved_boxes(homography: Float, boxes: Float) -> Float:
    """Boxes (N, 4) whose centres go through a homography; width and height stay."""
    centre = moved_points(homography, (boxes[:, :2] + boxes[:, 2:]) / 2)
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def _follow_camera(greys: Sequence[Grey], numbers: npt.NDArray[np.int32], order: range, boxes: Float) -> Float:
    """(M, 3, 3) homographies in grey pixels from row order[0] to each row of `order`; NaN where not found, or
    not in `order`."""
    camera = np.full((len(greys), 3, 3), np.nan)
    camera[order[0]] = np.eye(3)
    start = _background_points(greys[order[0]], boxes)
    points, velocity = start.copy(), np.zeros_like(start)
    for step, (before, after) in enumerate(itertools.pairwise(order)):
        if len(points) < 8:
            break
        elapsed = abs(int(numbers[after]) - int(numbers[before]))
        levels = FIRST_LEVELS if step == 0 else LEVELS + 1
        if elapsed > FAR_FRAMES and step == 0:
            velocity = velocity + _coarse_shift(greys[before], greys[after]) / elapsed
        moved, found = _flow(greys[before], greys[after], points, points + velocity * elapsed, levels)
        velocity = ((moved - points) / elapsed)[found]
        start, points = start[found], moved[found]
        homography = _camera(start, points)
        if homography is not None:
            camera[after] = homography
    return camera


def _coarse_shift(before: Grey, after: Grey) -> Float:
    """(2,) pixels by which the scene moved: phase correlation of quarter-size pictures without their slow shades.

    On clip a it is within 15 px (source) of the camera at 25 and 40 frames in half of all cases, which is near
    enough for flow.
    """
    size = (before.shape[1] // 4, before.shape[0] // 4)
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    thumbs = []
    for grey in (before, after):
        thumb = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        thumbs.append((thumb - cv2.GaussianBlur(thumb, (0, 0), 4)) * window)
    (x, y), _ = cv2.phaseCorrelate(*thumbs)
    return np.array([4 * x, 4 * y], np.float32)


def _follow_boxes(
    greys: Sequence[Grey], numbers: npt.NDArray[np.int32], order: range, boxes: Float, camera: Float
) -> Float:
    """Boxes (M, N, 4) in grey pixels along `order` from row order[0]; NaN once lost, and for rows not in `order`.

    Every step starts where the camera and the body's own velocity lead; the median of the points' displacement
    moves the box.
    """
    carried = np.full((len(greys), len(boxes), 4), np.nan, np.float32)
    carried[order[0]] = boxes
    size = boxes[:, 2:] - boxes[:, :2]
    places = SEEDS * size[:, None]
    limit = np.maximum(1.0, STRAY * size[:, :1])
    picture = np.array(greys[0].shape[::-1], np.float32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    points = centre[:, None] + places
    velocity = np.zeros_like(centre)
    looks = _looks(greys[order[0]], centre, size)
    unlike = np.zeros(len(boxes), np.int32)
    alive = np.arange(len(boxes))
    for step, (before, after) in enumerate(itertools.pairwise(order)):
        if not len(alive):
            break
        elapsed = abs(int(numbers[after]) - int(numbers[before]))
        by_camera = _camera_step(camera, before, after, centre) - centre
        guess = points + (by_camera + velocity * elapsed)[:, None]
        levels = FIRST_LEVELS if step == 0 else LEVELS
        moved, found = _flow(greys[before], greys[after], points.reshape(-1, 2), guess.reshape(-1, 2), levels)
        moved, found = moved.reshape(points.shape), found.reshape(points.shape[:2])
        shift = _median(moved - points, found)
        likeness = _likeness(looks, _looks(greys[after], centre + shift, size))
        unlike = np.where(likeness < UNLIKE, unlike + 1, 0)
        centre = centre + shift
        stray = ~found | (np.abs(moved - points - shift[:, None]).max(-1) > limit)
        points = np.where(stray[..., None], centre[:, None] + places, moved)
        velocity = (shift - by_camera) / elapsed
        inside = (centre > 0).all(1) & (centre < picture).all(1)
        held = (found.sum(1) >= 2) & inside & (unlike < 2)
        alive, centre, velocity, points = alive[held], centre[held], velocity[held], points[held]
        places, limit, size, looks, unlike = places[held], limit[held], size[held], looks[held], unlike[held]
        carried[after, alive] = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return carried


def _looks(grey: Grey, centre: Float, size: Float) -> Float:
    """(N, 28) what boxes look like: greys on a grid over head, shirt and shorts, less their mean, of length 1."""
    if not len(centre):
        return np.zeros((0, len(LOOKS)), np.float32)
    places = (centre[:, None] + LOOKS * size[:, None]).astype(np.float32)
    places[np.isnan(places)] = 0.0
    x, y = np.ascontiguousarray(places[..., 0]), np.ascontiguousarray(places[..., 1])
    values = cv2.remap(grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-3))


def _likeness(one: Float, two: Float) -> Float:
    """(N,) correlation of looks, -1 to 1."""
    return np.asarray((one * two).sum(1))


def _with_ball(
    greys: Sequence[Grey],
    numbers: npt.NDArray[np.int32],
    first: Detections,
    last: Detections,
    before: Float,
    after: Float,
    camera: Float,
    forward: Float,
    backward: Float,
    pairs: npt.NDArray[np.int32],
) -> npt.NDArray[np.int32]:
    """Write the path of the likeliest ball into `forward` and `backward`, and give back the pairs with it in."""
    a, b = _likeliest_ball(first), _likeliest_ball(last)
    if a is None or b is None or not np.isfinite(camera).all():
        return pairs
    path = _ball_path(greys, numbers, before[a], after[b], camera)
    if path is None:
        return pairs
    forward[:, a], backward[:, b] = path, path
    others = pairs[(pairs[:, 0] != a) & (pairs[:, 1] != b)]
    return np.concatenate([others, np.array([[a, b]], np.int32)])


def _likeliest_ball(detections: Detections) -> int | None:
    balls = np.flatnonzero(detections.class_id == 0)
    return int(balls[detections.class_scores[balls, 0].argmax()]) if len(balls) else None


def _ball_path(
    greys: Sequence[Grey], numbers: npt.NDArray[np.int32], start: Float, stop: Float, camera: Float
) -> Float | None:
    """(M, 4) boxes of the ball from `start` to `stop`: the places that look like it, joined at little cost (Viterbi).

    Flow loses so small a thing, but both its ends are known, so it is searched for around the straight line
    between them, as seen
    by the camera. A kick costs, but may be. None where the ball could not have come that far.
    """
    ends = np.stack([(start[:2] + start[2:]) / 2, (stop[:2] + stop[2:]) / 2])
    home = _homed(camera[-1], ends[1:])[0]
    elapsed = float(numbers[-1] - numbers[0])
    speed = (home - ends[0]) / elapsed
    if np.hypot(*speed) > BALL_SPEED:
        return None
    radius = int(np.clip(8 + 0.4 * np.hypot(*(home - ends[0])), 10, 48))
    shares = (numbers - numbers[0]) / elapsed
    templates = [_patch(greys[0], ends[0], BALL_PATCH), _patch(greys[-1], ends[1], BALL_PATCH)]
    if any(t.std() < 2 for t in templates):
        return None
    places: list[Float] = [ends[:1]]
    scores: list[Float] = [np.zeros(1)]
    for m in range(1, len(greys) - 1):
        middle = _moved_by(camera[m], (ends[0] + shares[m] * (home - ends[0]))[None])[0]
        found, likeness = _ball_candidates(greys[m], middle, radius, templates)
        places.append(_homed(camera[m], np.concatenate([found, middle[None]])))
        scores.append(np.append(likeness, BALL_UNSEEN))
    places.append(home[None].astype(np.float64))
    scores.append(np.zeros(1))
    chosen = _cheapest_path(places, scores, numbers, speed)
    sizes = (1 - shares)[:, None] * (start[2:] - start[:2]) + shares[:, None] * (stop[2:] - stop[:2])
    centres = np.stack([_moved_by(camera[m], place[None])[0] for m, place in enumerate(chosen)])
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], 1).astype(np.float32)


def _ball_candidates(grey: Grey, middle: Float, radius: int, templates: list[Grey]) -> tuple[Float, Float]:
    """The few places (K, 2) around `middle` that look most like either template, and how much (K,)."""
    region = _patch(grey, middle, 2 * radius + BALL_PATCH)
    likeness = np.maximum(*(cv2.matchTemplate(region, t, cv2.TM_CCOEFF_NORMED) for t in templates))
    peaks = np.flatnonzero((likeness >= cv2.dilate(likeness, np.ones((5, 5), np.uint8))) & (likeness > BALL_UNSEEN))
    peaks = peaks[np.argsort(-likeness.ravel()[peaks])[:BALL_CANDIDATES]]
    y, x = np.unravel_index(peaks, likeness.shape)
    fine = np.stack([x + _vertex(likeness, y, x, 0, 1), y + _vertex(likeness, y, x, 1, 0)], 1)
    corner = np.round(middle) - (likeness.shape[1] // 2, likeness.shape[0] // 2)
    return fine + corner, likeness.ravel()[peaks].astype(np.float64)


def _vertex(values: Float, y: npt.NDArray[np.intp], x: npt.NDArray[np.intp], dy: int, dx: int) -> Float:
    """Offset of the top of the parabola through a peak and its two neighbours; 0 at the rim."""
    height, width = values.shape
    inside = (y >= 1) & (y < height - 1) & (x >= 1) & (x < width - 1)
    y, x = np.clip(y, 1, height - 2), np.clip(x, 1, width - 2)
    low, top, high = values[y - dy, x - dx], values[y, x], values[y + dy, x + dx]
    bend = low - 2 * top + high
    return np.where(inside & (bend < -1e-6), 0.5 * (low - high) / np.where(bend < -1e-6, bend, -1), 0.0)


def _cheapest_path(
    places: list[Float], scores: list[Float], numbers: npt.NDArray[np.int32], speed: Float
) -> list[Float]:
    """One place per row: most likeness, least change of speed (pixels a frame) against the straight line."""
    best, came = scores[0], []
    for m in range(1, len(places)):
        elapsed = float(numbers[m] - numbers[m - 1])
        step = (places[m][None] - places[m - 1][:, None]) / elapsed - speed
        value = best[:, None] - BALL_TURN * np.minimum(np.hypot(step[..., 0], step[..., 1]), 20.0)
        came.append(value.argmax(0))
        best = value.max(0) + scores[m]
    k = int(best.argmax())
    chosen = [places[-1][k]]
    for m in range(len(places) - 2, -1, -1):
        k = int(came[m][k])
        chosen.append(places[m][k])
    return chosen[::-1]


def _patch(grey: Grey, centre: Float, side: int) -> Grey:
    """A square around a place, centred on a whole pixel, the picture's rim repeated outside."""
    half = side // 2
    x, y = np.round(centre).astype(int)
    rows = np.clip(np.arange(y - half, y - half + side), 0, grey.shape[0] - 1)
    columns = np.clip(np.arange(x - half, x - half + side), 0, grey.shape[1] - 1)
    return np.asarray(grey[rows[:, None], columns])


def _moved_by(homography: Float, points: Float) -> Float:
    moved = np.concatenate([points, np.ones((len(points), 1))], 1) @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def _homed(homography: Float, points: Float) -> Float:
    return _moved_by(np.linalg.inv(homography), points)


def _flow(before: Grey, after: Grey, points: Float, guess: Float, levels: int) -> tuple[Float, Bool]:
    """One pyramidal Lucas-Kanade step: points (N, 2) in the later picture, and which were found."""
    options: dict[str, Any] = {
        "winSize": (WINDOW, WINDOW),
        "maxLevel": levels,
        "criteria": CRITERIA,
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
        "minEigThreshold": 1e-4,
    }
    start = np.ascontiguousarray(points, np.float32).reshape(-1, 1, 2)
    target = np.array(guess, np.float32).reshape(-1, 1, 2)
    moved, found, _ = cv2.calcOpticalFlowPyrLK(before, after, start, target, **options)
    return np.asarray(moved[:, 0], np.float32), np.asarray(found[:, 0] == 1)


def _median(values: Float, known: Bool) -> Float:
    """(N, 2) median over the known of values (N, S, 2); NaN where none is. Ten times faster than nanmedian."""
    ordered = np.sort(np.where(known[..., None], values, np.nan), axis=1)
    count = known.sum(1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)
    rows = np.arange(len(values))
    return np.asarray((ordered[rows, low] + ordered[rows, high]) / 2, np.float32)


def _camera_step(camera: Float, before: int, after: int, points: Float) -> Float:
    """Points (N, 2) moved as the camera moved between two rows; unmoved where that is not known."""
    if not (np.isfinite(camera[before, 0, 0]) and np.isfinite(camera[after, 0, 0])):
        return points
    h = camera[after] @ np.linalg.inv(camera[before])
    moved = np.concatenate([points, np.ones((len(points), 1))], 1) @ h.T
    return np.asarray(moved[:, :2] / moved[:, 2:], np.float32)


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


def _camera(start: Float, points: Float) -> Float | None:
    """The homography most of the points follow; None when fewer than eight, or than 30 %, agree on one."""
    if len(start) < 8:
        return None
    homography, inliers = cv2.findHomography(start, points, cv2.USAC_FAST, CAMERA_ERROR)
    if homography is None or inliers.sum() < max(8, 0.3 * len(start)):
        return None
    return np.asarray(homography, np.float64)


def _rescaled(homographies: Float, scale: float) -> Float:
    """(M, 3, 3) from grey pixels to source pixels, pixel centres kept: x_source + 0.5 = scale * (x_grey + 0.5)."""
    offset = 0.5 * scale - 0.5
    up = np.array([[scale, 0, offset], [0, scale, offset], [0, 0, 1.0]])
    full = up @ homographies @ np.linalg.inv(up)
    return np.asarray(full / full[:, 2:, 2:])
