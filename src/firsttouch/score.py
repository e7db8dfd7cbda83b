"""The judge's formula: what an answer would score, what each term lost, and why.

This is the last public judge of the subnet (score-vision, 2025-08) as a versioned formula; a newer one goes
beside it in `FORMULAS`. Two things differ from the judge on purpose. It names the content of a crop with CLIP,
we take the class of the labelled box of highest IoU; it looks at 100 frames drawn at random, we look at all,
which is what the draw expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from firsttouch.errors import SettingsError
from firsttouch.labels import Labels
from firsttouch.measure import overlapping_pairs

BALL, PLAYER = 0, 2
LIMIT_SECONDS = 15.0
NEEDED_COVERAGE = 0.7
NEEDED_HOMOGRAPHIES = 0.4
LINE_FRAMES = 150
"""Pictures the line detector looks at, spread over the clip; the judge looks at all, at 20 ms each."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Pictures = Callable[[int], "NDArray[np.uint8] | None"]
"""Frame number to BGR picture; None when the clip has no such frame."""
Lines = Mapping[int, Floats]
"""The pitch lines of some frames' pictures, (K, 4) in pixels, by frame number."""


@dataclass(frozen=True, slots=True)
class BboxTerms:
    """`quality` is the mean of frames answered with objects; `coverage` their share of the judged ones."""

    value: float
    quality: float
    coverage: float
    frames_with_objects: int
    judged_frames: int


@dataclass(frozen=True, slots=True)
class KeypointTerms:
    """The letters of the formula; `lines` is None when there were no pictures to look at (taken as 0.5)."""

    value: float
    homography: float
    lines: float | None
    inside: float
    stability: float
    plausibility: float
    jumps: float
    continuity: float
    scale: float
    homography_share: float
    frames_with_homography: int


@dataclass(frozen=True, slots=True)
class Loss:
    """`points` of the final score that this term alone would give back if it were perfect."""

    term: str
    points: float
    why: str


@dataclass(frozen=True, slots=True)
class Score:
    version: str
    final: float
    bbox: BboxTerms
    keypoints: KeypointTerms
    speed: float
    losses: tuple[Loss, ...]


@dataclass(frozen=True, slots=True)
class Formula:
    """A version of the judge: its weights, and how it rates time."""

    version: str
    quality_weight: float
    speed_weight: float
    keypoint_weights: tuple[float, float, float, float, float]
    """Of homography, lines, inside, stability, and players' moves."""

    def final(self, bbox: float, keypoints: float, speed: float) -> float:
        return self.quality_weight * (bbox + keypoints) / 2 + self.speed_weight * speed

    def keypoints(self, terms: KeypointTerms) -> float:
        lines = 0.5 if terms.lines is None else terms.lines
        parts = (
            terms.homography,
            100 * lines,
            100 * terms.inside,
            100 * terms.stability,
            (100 * terms.plausibility + terms.jumps) / 2,
        )
        mean = sum(weight * part for weight, part in zip(self.keypoint_weights, parts, strict=True))
        return mean * terms.continuity * (terms.scale + terms.homography_share) / 2 / 100

    def speed(self, seconds: float, fastest: float, bbox: float) -> float:
        if bbox <= 0.2 or seconds >= LIMIT_SECONDS:
            return 0.0
        if seconds <= fastest:
            return 1.0
        return math.exp(-5 * (seconds - fastest) / (LIMIT_SECONDS - fastest))


LATEST = "score-vision-2025-08"
FORMULAS = {LATEST: Formula(LATEST, 0.65, 0.35, (0.25, 0.40, 0.20, 0.05, 0.10))}


def judge(
    answer: Labels,
    truth: Labels,
    seconds: float = 0.0,
    fastest: float | None = None,
    *,
    pictures: Pictures | None = None,
    lines: Lines | None = None,
    judged: Sequence[int] | None = None,
    version: str = LATEST,
    line_frames: int | None = LINE_FRAMES,
) -> Score:
    """What `answer` would score.

    `seconds` from request to the last byte of the answer; `fastest` is that of the fastest answer (None: ours).
    `judged` are the frames that look like a pitch (None: every frame of the truth's clip). Without `pictures`
    the line term is unknown, and taken as 0.5. `line_frames=None` looks for lines in every picture. `lines` are those
    of `clip_lines`, instead of pictures, for who judges many answers of one clip.
    """
    if version not in FORMULAS:
        raise SettingsError(f"no formula {version!r}", hint=f"there are {', '.join(FORMULAS)}")
    formula = FORMULAS[version]
    frames = np.array(sorted(judged) if judged is not None else range(truth.frame_count), np.int64)
    looked_at = answer.only(frames)
    bbox = bbox_terms(looked_at, truth, frames)
    keypoints = keypoint_terms(looked_at, frames, pictures, line_frames, formula, lines)
    speed = formula.speed(seconds, seconds if fastest is None else fastest, bbox.value)
    final = formula.final(bbox.value, keypoints.value, speed)
    losses = _losses(formula, bbox, keypoints, speed, seconds, fastest)
    return Score(version, final, bbox, keypoints, speed, losses)


# --- bbox ---------------------------------------------------------------------------------------------


def bbox_terms(answer: Labels, truth: Labels, frames: NDArray[np.int64]) -> BboxTerms:
    """The box score over the judged `frames`, for an answer that holds only those."""
    answered = answer.boxes_per_frame > 0
    scores = frame_scores(answer, truth)[answered]
    quality = min(1.0, float(scores.mean())) if len(scores) else 0.0
    coverage = len(scores) / len(frames) if len(frames) else 0.0
    value = round(float(np.clip(quality * min(1.0, coverage / NEEDED_COVERAGE), 0, 1)), 2)
    return BboxTerms(value, quality, coverage, len(scores), len(frames))


def frame_scores(answer: Labels, truth: Labels) -> Floats:
    """(F,) each frame's mean over expected classes times its area factor; 0 where no box is left."""
    kept = counted_boxes(answer)
    row, predicted = answer.row[kept], answer.class_ids[kept]
    expected = _expected_classes(answer, truth)[kept]
    earlier = _earlier_of_same(row, expected)
    right, person = predicted == expected, (expected >= 1) & (expected <= 3) & (predicted >= 1)
    points = np.where(right, 1.0, np.where(person, 0.5, -1.0)) / 2.0**earlier
    count = len(answer.frame_numbers)
    kinds = np.zeros((count, _NOT_A_BALL + 1), bool)
    kinds[row, expected] = True
    total = np.bincount(row, points, count)
    return np.asarray(total / (kinds.sum(axis=1) + 1) * _area_factor(answer, kept))


def counted_boxes(labels: Labels) -> Flags:
    """(N,) which boxes the judge keeps: people from 15 x 40 px, nothing that touches rows 0..150."""
    sizes = labels.xyxy[:, 2:] - labels.xyxy[:, :2]
    large = (sizes[:, 0] >= 15) & (sizes[:, 1] >= 40) | (labels.class_ids == BALL)
    return np.asarray(large & ~((labels.xyxy[:, 1] <= 150) & (labels.xyxy[:, 3] >= 0)))


_BACKGROUND, _NOT_A_BALL = 4, 5
"""What a person's box without a labelled one, and a ball's, are expected to show."""


def _expected_classes(answer: Labels, truth: Labels) -> NDArray[np.int64]:
    """(N,) the class of the labelled box of highest IoU (at least 0.5); only a frame's first ball counts."""
    balls = answer.class_ids == BALL
    expected = np.where(balls, _NOT_A_BALL, _BACKGROUND)
    left, right, overlap = overlapping_pairs(answer, truth, 0.5)
    order = np.argsort(overlap, kind="stable")
    expected[left[order]] = truth.class_ids[right[order]]
    later_ball = balls & (_earlier_of_same(answer.row, balls.astype(np.int64)) > 0)
    return np.where(later_ball, _NOT_A_BALL, expected)


def _earlier_of_same(row: NDArray[np.int64], kind: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) how many boxes of the same frame and kind come before each one."""
    key = row * 8 + kind
    order = np.argsort(key, kind="stable")
    _, start, counts = np.unique(key[order], return_index=True, return_counts=True)
    earlier = np.empty(len(key), np.int64)
    earlier[order] = np.arange(len(key)) - np.repeat(start, counts)
    return earlier


def _area_factor(labels: Labels, kept: Flags) -> Floats:
    """(F,) 1 for few small boxes, less where they cover the picture or are large on average."""
    areas = (labels.xyxy[kept, 2:] - labels.xyxy[kept, :2]).prod(axis=1) / (labels.width * labels.height)
    count = len(labels.frame_numbers)
    total = np.bincount(labels.row[kept], areas, count)
    mean = total / np.maximum(np.bincount(labels.row[kept], minlength=count), 1)
    many = np.exp(-3 * np.maximum(total - 0.15, 0))
    return np.asarray(np.where(mean <= 0.015, many, np.exp(-80 * np.maximum(mean - 0.015, 0))))


# --- key points ---------------------------------------------------------------------------------------


def _template() -> Floats:
    """The subnet's 32 pitch vertices in cm, x along 12000, y along 7000. Not the real pitch: see `pitch`."""
    left = [(0, y) for y in (0, 1450, 2584, 4416, 5550, 7000)]
    left += [(550, 2584), (550, 4416), (1100, 3500)]
    left += [(2015, y) for y in (1450, 2584, 4416, 5550)]
    middle = [(6000, y) for y in (0, 2585, 4415, 7000)]
    right = [(9985, y) for y in (1450, 2584, 4416, 5550)]
    right += [(10900, 3500), (11450, 2584), (11450, 4416)]
    right += [(12000, y) for y in (0, 1450, 2584, 4416, 5550, 7000)]
    return np.array(left + middle + right + [(5085, 3500), (6915, 3500)], np.float64)


TEMPLATE = _template()
_OUTLINE = TEMPLATE[[0, 5, 29, 24]].astype(np.float32)


def keypoint_terms(
    answer: Labels,
    frames: NDArray[np.int64],
    pictures: Pictures | None = None,
    line_frames: int | None = LINE_FRAMES,
    formula: Formula = FORMULAS[LATEST],
    lines: Lines | None = None,
) -> KeypointTerms:
    """The key-point score over the judged `frames`, for an answer that holds only those.

    What is a mean over the frames that have a homography is 0 when none has one.
    """
    valid = valid_points(answer)
    homographies, qualities = _homographies(answer, valid)
    rows = np.array(sorted(homographies), np.int64)
    counted = counted_boxes(answer)
    boxes = _boxes_by_row(answer, counted)
    people = _boxes_by_row(answer, counted & (answer.class_ids != BALL))
    points = answer.keypoints[:, :, :2].astype(np.float64)
    segment = _segments(answer)
    plausibility = _plausibility(answer, segment)
    stability = _stability(answer, valid, rows, segment)
    terms = KeypointTerms(
        value=0.0,
        homography=_mean([qualities[r] for r in rows]),
        lines=_line_term(answer, valid, rows, pictures, line_frames, lines),
        inside=_mean([_share_inside(boxes[r], homographies[r]) for r in rows]),
        stability=_mean(stability[segment[rows]]),
        plausibility=_mean(plausibility[segment[rows]]),
        jumps=_jumps(answer),
        continuity=_continuity(answer, valid, frames),
        scale=min(1.0, _mean([_scale(points[r, valid[r]], people[r]) for r in rows])),
        homography_share=min(1.0, len(rows) / len(frames) / NEEDED_HOMOGRAPHIES) if len(frames) else 0.0,
        frames_with_homography=len(rows),
    )
    return replace(terms, value=formula.keypoints(terms))


def valid_points(labels: Labels) -> Flags:
    """(F, 32) points that are given, lie in the picture, and are 25 px from those kept before them."""
    points = labels.keypoints[:, :, :2].astype(np.float64)
    inside = (points >= 0).all(axis=2) & (points[..., 0] < labels.width) & (points[..., 1] < labels.height)
    valid = (points != 0).any(axis=2) & inside
    for i in range(1, points.shape[1]):
        near = np.linalg.norm(points[:, :i] - points[:, i : i + 1], axis=2) < 25
        valid[:, i] &= ~(near & valid[:, :i]).any(axis=1)
    return np.asarray(valid)


def _homographies(answer: Labels, valid: Flags) -> tuple[dict[int, Floats], dict[int, float]]:
    """Image to scaled pitch for every frame that allows one, and the frame's KS term."""
    scaled = TEMPLATE * (answer.width / 7000, answer.height / 12000)
    threshold = max(12.0, 0.01 * answer.width)
    homographies: dict[int, Floats] = {}
    qualities: dict[int, float] = {}
    for row in np.flatnonzero(valid.sum(axis=1) >= 4):
        image = answer.keypoints[row, valid[row], :2].astype(np.float64)
        pitch = scaled[valid[row]]
        matrix, inliers = cv2.findHomography(image, pitch, cv2.RANSAC, threshold)
        if matrix is None:
            continue
        errors = np.linalg.norm(_project(image, np.asarray(matrix, np.float64)) - pitch, axis=1)
        homographies[int(row)] = np.asarray(matrix, np.float64)
        share = float(np.asarray(inliers).mean())
        qualities[int(row)] = (100 * share + max(0.0, 100 - float(errors.mean()))) / 2
    return homographies, qualities


def _project(points: Floats, matrix: Floats) -> Floats:
    mapped = np.column_stack([points, np.ones(len(points))]) @ np.asarray(matrix).T
    return np.asarray(mapped[:, :2] / np.where(mapped[:, 2:] == 0, 1e-12, mapped[:, 2:]))


def _share_inside(boxes: Floats, matrix: Floats) -> float:
    """Share of (B, 4) boxes whose centre falls into the outline.

    The judge maps to pixels (the pitch scaled to the picture) but compares with an outline in cm: so do we.
    """
    if not len(boxes):
        return 0.0
    centres = _project((boxes[:, :2] + boxes[:, 2:]) / 2, matrix).astype(np.float32)
    tests = [cv2.pointPolygonTest(_OUTLINE, (float(x), float(y)), False) for x, y in centres]
    return float(np.mean(np.array(tests) >= 0))


def _scale(points: Floats, people: Floats) -> float:
    """Mean distance between the points by that between people, at most 1.5; 1 with fewer than two."""
    if len(points) < 2 or len(people) < 2:
        return 1.0
    centres = (people[:, :2] + people[:, 2:]) / 2
    return min(1.5, _mean_distance(points) / max(_mean_distance(centres), 1e-6))


def _mean_distance(points: Floats) -> float:
    first, second = np.triu_indices(len(points), 1)
    return float(np.linalg.norm(points[first] - points[second], axis=1).mean())


def _boxes_by_row(answer: Labels, kept: Flags) -> list[Floats]:
    """The kept boxes of every frame."""
    ends = np.cumsum(np.bincount(answer.row[kept], minlength=len(answer.frame_numbers)))
    return np.split(answer.xyxy[kept].astype(np.float64), ends[:-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Moves:
    """How far players moved between one answered frame and another: row before, row after, pixels."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    pixels: Floats


def _moves(answer: Labels) -> _Moves:
    """Every player from one appearance to the next, whatever lies between."""
    players = np.flatnonzero(answer.class_ids == PLAYER)
    order = players[np.lexsort((answer.row[players], answer.ids[players]))]
    boxes = answer.xyxy[order].astype(np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    same = answer.ids[order][1:] == answer.ids[order][:-1]
    pixels = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return _Moves(answer.row[order][:-1][same], answer.row[order][1:][same], pixels[same])


def _segments(answer: Labels) -> NDArray[np.int64]:
    """(F,) a new one starts after a frame where half of its players moved more than 20 px."""
    count = len(answer.frame_numbers)
    moves = _moves(answer)
    direct = moves.after - moves.before == 1
    jumped = np.bincount(moves.after[direct & (moves.pixels > 20)], minlength=count)
    players = np.bincount(answer.row[answer.class_ids == PLAYER], minlength=count)
    cut = (players > 0) & (jumped >= 0.5 * players)
    return np.concatenate([[0], np.cumsum(cut)[:-1]]).astype(np.int64) if count else np.zeros(0, np.int64)


def _plausibility(answer: Labels, segment: NDArray[np.int64]) -> Floats:
    """P of every segment."""
    sizes = np.bincount(segment, minlength=1)
    moves = _moves(answer)
    gap = answer.frame_numbers[moves.after] - answer.frame_numbers[moves.before]
    counted = (moves.after - moves.before == 1) & (gap <= 2) & (segment[moves.after] == segment[moves.before])
    where = segment[moves.after[counted]]
    total = np.bincount(where, minlength=len(sizes))
    wild = np.bincount(where, moves.pixels[counted] > 30, len(sizes))
    share = np.where(total > 0, 1 - wild / np.maximum(total, 1), 0.5)
    return np.where(sizes == 1, 1.0, share)


def _jumps(answer: Labels) -> float:
    """J, 0..100: small moves and cuts are fine, moves of 2..10 px count half."""
    pixels = _moves(answer).pixels
    return 100 * float(np.where((pixels > 2) & (pixels <= 10), 0.5, 1.0).mean()) if len(pixels) else 0.0


def _stability(answer: Labels, valid: Flags, rows: NDArray[np.int64], segment: NDArray[np.int64]) -> Floats:
    """S of every segment: how alike the distances between common points stay, frames in string order."""
    sizes = np.bincount(segment, minlength=1)
    result = np.where(sizes == 1, 1.0, 0.5)
    first, second = np.triu_indices(valid.shape[1], 1)
    names = answer.frame_numbers.astype(str)
    for number in np.flatnonzero(sizes > 1):
        mine = rows[segment[rows] == number]
        if len(mine) < 2:
            continue
        ordered = mine[np.argsort(names[mine])]
        points = answer.keypoints[ordered, :, :2].astype(np.float64)
        distances = np.linalg.norm(points[:, first] - points[:, second], axis=2)
        both = valid[ordered][:, first] & valid[ordered][:, second]
        common = both[1:] & both[:-1]
        change = np.abs(np.diff(distances, axis=0)) / (distances[:-1] + 1e-6)
        counts = common.sum(axis=1)
        means = np.where(common, change, 0).sum(axis=1)[counts > 0] / counts[counts > 0]
        if len(means):
            result[number] = math.exp(-10 * float(means.mean()))
    return result


def _continuity(answer: Labels, valid: Flags, frames: NDArray[np.int64]) -> float:
    """C: do the points of consecutive judged frames move smoothly; runs weigh by their length."""
    row_of = {int(number): row for row, number in enumerate(answer.frame_numbers)}
    diagonal = math.hypot(answer.width, answer.height)
    total = 0.0
    for at, number in enumerate(frames):
        if at == 0 or number != frames[at - 1] + 1:
            total += 1.0
            continue
        now, before = row_of.get(int(number)), row_of.get(int(number) - 1)
        if now is None or before is None:
            continue
        if answer.has_all_keypoints[now] and answer.has_all_keypoints[before]:
            total += _step(answer, valid, before, now, diagonal)
    return total / len(frames) if len(frames) else 0.0


def _step(answer: Labels, valid: Flags, before: int, now: int, diagonal: float) -> float:
    points = answer.keypoints[[before, now], :, :2].astype(np.float64)
    if not points.any():
        return 1.0
    common = valid[before] & valid[now]
    if not common.any():
        return 0.0
    move = float(np.linalg.norm(points[1, common] - points[0, common], axis=1).mean())
    return _sigmoid(move / diagonal)


def _sigmoid(distance: float) -> float:
    """1 near 0, one half at 2 %, 0 beyond: the judge's curve for distances as shares of the picture."""
    return 1 / (1 + math.exp(min((distance - 0.02) / 0.0037, 500)))


# --- lines --------------------------------------------------------------------------------------------


def _line_term(
    answer: Labels,
    valid: Flags,
    rows: NDArray[np.int64],
    pictures: Pictures | None,
    most: int | None,
    lines: Lines | None,
) -> float | None:
    """L, over frames spread evenly; None without pictures or lines."""
    if lines is None and pictures is not None:
        spread = np.linspace(0, len(rows) - 1, min(len(rows), most or len(rows)))
        lines = _lines_in(pictures, answer.frame_numbers[rows[spread.astype(int)]])
    size = np.array([answer.width, answer.height], np.float64)
    values = []
    for row in rows:
        found = (lines or {}).get(int(answer.frame_numbers[row]))
        if found is not None:
            points = answer.keypoints[row, valid[row], :2] / size
            values.append(line_score(points, found / np.tile(size, 2)))
    return _mean(values) if values else None


def _lines_in(pictures: Pictures, numbers: Iterable[int]) -> Lines:
    """The lines of those of these frames that there is a picture of."""
    seen = ((int(number), pictures(int(number))) for number in numbers)
    return {number: find_lines(picture) for number, picture in seen if picture is not None}


def clip_lines(clip: str, frame_count: int, most: int = LINE_FRAMES) -> Lines:
    """The lines in `most` pictures of a local clip, evenly spread. Raises SettingsError when it cannot be opened."""
    numbers = np.linspace(0, frame_count - 1, min(most, frame_count)).astype(int)
    return _lines_in(clip_pictures(clip), numbers.tolist())


def line_score(points: Floats, lines: Floats) -> float:
    """How near (M, 2) points are to the nearest of (K, 4) segments, both as shares of width and height."""
    if not len(points):
        return 0.5
    if not len(lines):
        return 0.0
    start, along = lines[None, :, :2], (lines[:, 2:] - lines[:, :2])[None]
    length = np.maximum((along**2).sum(-1), 1e-18)
    at = np.clip(((points[:, None] - start) * along).sum(-1) / length, 0, 1)[..., None]
    distance = np.linalg.norm(points[:, None] - (start + at * along), axis=-1).min(axis=1)
    return _sigmoid(float(distance.mean()))


def find_lines(picture: NDArray[np.uint8]) -> Floats:
    """(K, 4) segments in pixels: white on grass, as the judge finds pitch lines in a BGR picture."""
    grass = cv2.inRange(cv2.cvtColor(picture, cv2.COLOR_BGR2HSV), (35, 40, 40), (85, 255, 255))
    grass = cv2.morphologyEx(grass, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    white = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones((31, 31), np.uint8)) > 30
    edges = cv2.Canny(cv2.GaussianBlur(np.where(white, grass, 0).astype(np.uint8), (5, 5), 0), 30, 100)
    found = cv2.HoughLinesP(edges, 1, math.pi / 360, 30, minLineLength=10, maxLineGap=15)
    if found is None:
        return np.zeros((0, 4))
    lines = np.asarray(found, np.float64).reshape(-1, 4)
    steps = np.linspace(0, 1, 30)[None, :, None]
    samples = (lines[:, None, :2] + (lines[:, None, 2:] - lines[:, None, :2]) * steps).astype(int)
    return np.asarray(lines[(grass[samples[..., 1], samples[..., 0]] > 0).all(axis=1)])


# --- why ----------------------------------------------------------------------------------------------


def _losses(
    formula: Formula,
    bbox: BboxTerms,
    keypoints: KeypointTerms,
    speed: float,
    seconds: float,
    fastest: float | None,
) -> tuple[Loss, ...]:
    """What each term would give back if it alone were perfect, largest first; without key points they are one term."""
    final = formula.final(bbox.value, keypoints.value, speed)
    best = seconds if fastest is None else fastest

    def boxes(quality: float, coverage: float) -> float:
        value = round(min(1.0, quality * min(1.0, coverage / NEEDED_COVERAGE)), 2)
        return formula.final(value, keypoints.value, formula.speed(seconds, best, value)) - final

    def points(**perfect: Any) -> float:
        value = formula.keypoints(replace(keypoints, **perfect))
        return formula.final(bbox.value, value, speed) - final

    time = formula.final(bbox.value, keypoints.value, 1.0) - final
    k = keypoints
    rows = [
        Loss("coverage", boxes(bbox.quality, 1.0), _coverage_text(bbox)),
        Loss("box quality", boxes(1.0, bbox.coverage), f"boxes of answered frames rate {bbox.quality:.2f} of 1"),
        Loss("speed", time, _speed_text(bbox, seconds, best)),
    ]
    if k.frames_with_homography == 0:
        all_points = formula.final(bbox.value, 1.0, speed) - final
        rows.append(Loss("key points", all_points, "no frame has key points that give a homography: is SKIP_PITCH=1?"))
        return _largest_first(rows)
    rows += [
        Loss("homography fit", points(homography=100.0), f"points fit the pitch at {k.homography:.0f} of 100"),
        Loss("lines", points(lines=1.0), _line_text(k)),
        Loss("inside", points(inside=1.0), f"{k.inside:.0%} of boxes map into the pitch"),
        Loss("stability", points(stability=1.0), f"distances between points hold at {k.stability:.2f} of 1"),
        Loss("players' moves", points(plausibility=1.0, jumps=100.0), _move_text(k)),
        Loss("continuity", points(continuity=1.0), f"from frame to frame points go on at {k.continuity:.2f} of 1"),
        Loss("scale", points(scale=1.0), f"points lie {k.scale:.2f} times as far apart as people"),
        Loss("homographies", points(homography_share=1.0), _homography_text(k, bbox.judged_frames)),
    ]
    return _largest_first(rows)


def _largest_first(rows: list[Loss]) -> tuple[Loss, ...]:
    return tuple(sorted((row for row in rows if row.points >= 0.0005), key=lambda row: -row.points))


def _coverage_text(bbox: BboxTerms) -> str:
    return f"70 % coverage missed: {bbox.frames_with_objects} of {bbox.judged_frames} frames have objects"


def _speed_text(bbox: BboxTerms, seconds: float, fastest: float) -> str:
    if bbox.value <= 0.2:
        return f"no speed score: bbox {bbox.value:.2f} is not above 0.2"
    if seconds >= LIMIT_SECONDS:
        return f"no speed score: {seconds:.1f} s is not under {LIMIT_SECONDS:.0f} s"
    return f"{seconds:.2f} s, {seconds - fastest:.2f} s after the fastest"


def _move_text(keypoints: KeypointTerms) -> str:
    plausible, jumps = keypoints.plausibility, keypoints.jumps
    return f"{plausible:.0%} of players' moves are plausible, and jumps rate {jumps:.0f} of 100"


def _homography_text(keypoints: KeypointTerms, judged: int) -> str:
    return f"40 % missed: {keypoints.frames_with_homography} of {judged} frames have a homography"


def _line_text(keypoints: KeypointTerms) -> str:
    if keypoints.lines is None:
        return "unknown without the video, taken as 0.5: give --video"
    return f"points lie near pitch lines at {keypoints.lines:.2f} of 1"


def _mean(values: Any) -> float:
    values = np.asarray(values, np.float64)
    return float(values.mean()) if values.size else 0.0


def clip_pictures(clip: str) -> Pictures:
    """The pictures of a local clip by OpenCV's count, to be asked for in rising order.

    Raises SettingsError when OpenCV cannot open it.
    """
    capture = cv2.VideoCapture(clip)
    if not capture.isOpened():
        raise SettingsError(f"cannot open the video {clip}", hint="--video takes a local clip")
    position = -1

    def picture(frame_number: int) -> NDArray[np.uint8] | None:
        nonlocal position
        while position < frame_number:
            if not capture.grab():
                return None
            position += 1
        found, image = capture.retrieve()
        return np.asarray(image, np.uint8) if found else None

    return picture
