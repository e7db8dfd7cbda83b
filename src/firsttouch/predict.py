"""What a choice of settings would score: a plain model of time, coverage and the judge's formula.

Values in, values out; no clock, no I/O. `settings` uses it with nominal rates to warn at start-up, `size`,
`tune` and `doctor` with measured ones. It is a model: `tune` says how far it was from the runs it made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

Fetch = Literal["sparse", "head", "stream", "direct", "full"]

JUDGE_LIMIT_SECONDS = 15.0
"""Answers this late have no speed score."""

FASTEST_SECONDS = 1.0
"""What the fastest answer is taken to need when nobody says; the speed term is measured against it."""

DETECTOR_QUALITY = 0.98
"""bbox before coverage when every frame is looked at, our own such answer being the truth (`python -m bench profiles`).
Against labels it is less, for every choice alike; `firsttouch score` measures it."""

STRIDES = (1, 2, 3, 5, 8, 12, 18, 25, 37)
"""Distances between looked-at frames that the automatic stride chooses from."""

BUDGETS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0)
"""Deadlines that `best_deadline`, `tune` and TIME_BUDGET_S=auto choose from, in seconds."""

F1_BY_STRIDE = (
    (1, 1.0),
    (5, 0.98),
    (8, 0.97),
    (12, 0.96),
    (16, 0.95),
    (25, 0.92),
    (37, 0.83),
    (50, 0.75),
    (75, 0.6),
    (150, 0.3),
)
"""F1 of boxes carried by flow, by frames between looks, against every frame looked at: the mean of clip `a`
(`python -m bench carry`) and of the match with key frames every 50 and 250; beyond 50 an extrapolation. The plan uses
it too."""

F1_BY_GAP = ((1, 1.0), (6, 0.93), (9, 0.83), (13, 0.76), (17, 0.67), (26, 0.44), (39, 0.28), (59, 0.18), (100, 0.07))
"""The same without flow: frames that nobody decoded are interpolated over the gap between two frames alone."""

F1_BY_HOLE = (
    (1, 0.97),
    (5, 0.95),
    (8, 0.93),
    (12, 0.89),
    (16, 0.85),
    (20, 0.79),
    (25, 0.69),
    (30, 0.58),
    (38, 0.46),
    (58, 0.32),
)
"""F1 in a hole of so many frames that nobody decoded, where flow on either side of it says how fast everybody moves
(`python -m bench carry`: clip `a`; the match's lie within 0.03 of it)."""

BRIDGE_FRAMES = 60
"""A hole without motion at most this long is interpolated; of a longer one only the ends are answered."""

EXTRAPOLATE_FRAMES = 8
"""How far anything is carried on its velocity alone, beyond what was decoded."""

LEAP_FRAMES = 12
"""Two frames further apart with nothing decoded between are a leap: bodies cannot be followed through it."""

KEY_FRAME_COST = 10.0
"""A key frame's bytes, in those of other frames (the match)."""

MOMENTUM_FRAMES = 7.5
"""By e in so many frames falls the share of bodies that are found where their velocity would have them. Fitted to seven
plans for 2 to 3.6 MB of the match (F1 over its holes of 45 to 220 frames)."""

BOXES_BY_STRIDE = (
    (1, 1.0),
    (3, 0.90),
    (5, 0.86),
    (8, 0.80),
    (12, 0.76),
    (16, 0.74),
    (25, 0.58),
    (37, 0.39),
    (150, 0.1),
)
"""The judge's box score likewise: it takes a point away for a box on nobody, so it falls faster than F1 does. Up to 37
measured without a deadline on the match of `python -m bench profiles`; beyond an extrapolation."""

WITHOUT_TRACKER = (0.83, 0.79)
F1_BY_WIDTH = ((128, 0.3), (384, 0.89), (416, 0.94), (512, 0.96), (640, 1.0))
BOXES_BY_WIDTH = ((128, 0.3), (384, 0.84), (416, 0.96), (512, 0.98), (640, 1.0))
F1_BY_CONFIDENCE = ((0.25, 0.91), (0.4, 1.0), (0.5, 0.96), (0.6, 0.86))
BOXES_BY_CONFIDENCE = ((0.25, 0.64), (0.4, 1.0), (0.5, 1.04), (0.6, 1.03))
"""What DISABLE_TRACKING, IMG_SIZE and CONF_THRESHOLD leave of F1 and of the judge's box score, each alone, at every
fifth frame of the same match (0.25: at every frame; below 384 px a guess). Together they are taken to multiply: the
guide's three then leave an F1 of 0.70, which is what was measured."""

NATIVE_WIDTH = 640
REFERENCE_SHARE = 0.52
"""Frames that others need, and so must be decoded: 390 of the match's 750."""
FLOW_STEP = 3
"""Frames at least between two that flow goes through; those between are interpolated. Going through all of them costs
twice the flow and gains 0.008 of F1 (bench carry)."""
ANSWER_SECONDS = 0.1
"""Linking, carrying and writing 750 frames, whatever the looks: good enough for a prediction, a plan counts them."""
LINK_SECONDS_A_LOOK = 0.0007
"""Linking and carrying, for each look, on one core at the end: it takes 0.06 s with 61, 0.2 s with 255."""

KEYPOINTS_BY_COVERAGE = ((0.0, 0.0), (40 / 750, 0.02), (525 / 750, 0.55), (1.0, 0.77))
"""The judge's key-point score of the first part of a clip, measured with the judge's own code."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The clip a prediction is for; the defaults are the usual challenge."""

    seconds: float = 30.0
    frames_per_second: float = 25.0
    megabytes: float = 14.0
    frames_per_gop: int = 50

    @property
    def frame_count(self) -> int:
        return max(1, round(self.seconds * self.frames_per_second))

    def __str__(self) -> str:
        return f"a {self.seconds:g} s clip of {self.frame_count} frames and {self.megabytes:.3g} MB"


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine and link can do: the three rates that bind, and the time before the first byte."""

    bytes_per_second: float = 12.5e6
    round_trip_seconds: float = 0.03
    decode_key_seconds: float = 0.014
    decode_reference_seconds: float = 0.006
    decode_disposable_seconds: float = 0.0
    detect_seconds: float = 0.013
    flow_seconds: float = 0.003
    """For each frame that flow goes through."""
    flow_look_seconds: float = 0.004
    """For each pair of looks, on top."""
    workers: int = 2
    core_share: float = 1.0
    """How much of a core a worker gets while it works: the rest goes to other programs, or is waited for."""

    def decode_seconds(self, keys: float, references: float) -> float:
        """What so many key and other reference frames should take one core."""
        return keys * self.decode_key_seconds + references * self.decode_reference_seconds

    def follow_seconds(self, pairs: float, frames: float) -> float:
        """What flow over so many pairs of looks with so many decoded frames should take one core."""
        return pairs * self.flow_look_seconds + frames * self.flow_seconds

    @property
    def cores(self) -> float:
        """CPU seconds that the workers compute in a second."""
        return self.workers * self.core_share

    def decoding_times(self, factor: float) -> Rates:
        return replace(
            self,
            decode_key_seconds=self.decode_key_seconds * factor,
            decode_reference_seconds=self.decode_reference_seconds * factor,
        )

    def following_times(self, factor: float) -> Rates:
        return replace(self, flow_seconds=self.flow_seconds * factor, flow_look_seconds=self.flow_look_seconds * factor)


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings that move time and score. `stride` None: chosen; `budget_seconds` None: no limit."""

    fetch: Fetch = "sparse"
    megabytes: float = 4.0
    stride: int | None = None
    budget_seconds: float | None = 2.0
    budget_after_first_frame: bool = False
    pitch: bool = True
    tracking: bool = True
    width: int | None = None
    """Of the detector's input; None: its own."""
    confidence: float = 0.4


@dataclass(frozen=True, slots=True)
class Prediction:
    """Expected time and score; `coverage` is the share of frames answered, `f1` how well those are."""

    seconds: float
    coverage: float
    f1: float
    bbox: float
    keypoints: float
    speed: float
    final: float


def interpolate(table: Sequence[tuple[float, float]], x: float) -> float:
    """Piecewise linear, held constant outside the table."""
    if x <= table[0][0]:
        return table[0][1]
    for (x0, y0), (x1, y1) in pairwise(table):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return table[-1][1]


def speed_term(seconds: float, fastest: float, bbox: float) -> float:
    """The judge's speed score (SCORING: none for bbox <= 0.2 or from 15 s on)."""
    if bbox <= 0.2 or seconds >= JUDGE_LIMIT_SECONDS:
        return 0.0
    if seconds <= fastest:
        return 1.0
    return math.exp(-5 * (seconds - fastest) / (JUDGE_LIMIT_SECONDS - fastest))


def final_score(bbox: float, keypoints: float, speed: float) -> float:
    return 0.65 * (0.5 * bbox + 0.5 * keypoints) + 0.35 * speed


def predict(
    choice: Choice, clip: Clip | None = None, rates: Rates | None = None, fastest: float = FASTEST_SECONDS
) -> Prediction:
    """Time and score of `choice` on `clip` under `rates`; the automatic stride takes the best of STRIDES."""
    clip, rates = clip or Clip(), rates or Rates()
    if choice.stride is None:
        options = [predict(replace(choice, stride=s), clip, rates, fastest) for s in STRIDES]
        return max(options, key=lambda p: p.final)
    reach = min(1.0, choice.megabytes / clip.megabytes) if choice.fetch == "head" else 1.0
    start, work = _seconds(choice, choice.stride, reach, clip, rates)
    limit = math.inf if choice.budget_seconds is None else choice.budget_seconds
    if choice.budget_after_first_frame:
        limit += start
    if choice.fetch == "sparse" and choice.stride == 1 and start + work > limit:
        return predict(replace(choice, stride=2), clip, rates, fastest)  # gaps appear, and gaps cost flow
    limit -= ANSWER_SECONDS
    done = 1.0 if start + work <= limit else max(0.0, (limit - start) / work)
    seconds = min(start + work, limit) + ANSWER_SECONDS
    f1, boxes = carried(choice)
    if choice.fetch == "sparse":  # coarse to fine: what is missing at the deadline is the end of each GOP
        coverage = 1.0 if done > 0 else 0.0
        hole = (1 - done) * clip.frames_per_gop
        moving = done * (clip.frames_per_gop + KEY_FRAME_COST) > KEY_FRAME_COST + LEAP_FRAMES
        left = done + (1 - done) * interpolate(F1_BY_HOLE if moving else F1_BY_GAP, hole)
        f1, boxes = f1 * left, boxes * boxes_of(left)
    else:  # in file order: what is missing at the deadline is the end of the clip
        coverage = reach * done
    return judged(coverage, f1, seconds, pitch=choice.pitch, fastest=fastest, boxes=boxes)


def carried(choice: Choice) -> tuple[float, float]:
    """Expected shares of F1 and of the judge's box score that are left of those of every frame looked at."""
    stride, width = choice.stride or 1, min(choice.width or NATIVE_WIDTH, NATIVE_WIDTH)
    f1 = interpolate(F1_BY_STRIDE, stride) * interpolate(F1_BY_WIDTH, width)
    boxes = interpolate(BOXES_BY_STRIDE, stride) * interpolate(BOXES_BY_WIDTH, width)
    f1 *= interpolate(F1_BY_CONFIDENCE, choice.confidence)
    boxes *= interpolate(BOXES_BY_CONFIDENCE, choice.confidence)
    if not choice.tracking:
        f1, boxes = f1 * WITHOUT_TRACKER[0], boxes * WITHOUT_TRACKER[1]
    return f1, min(1.0, boxes)


def boxes_of(f1: float) -> float:
    """What the judge makes of boxes with this F1: the stride that has it says."""
    by_f1 = sorted((quality, interpolate(BOXES_BY_STRIDE, stride)) for stride, quality in F1_BY_STRIDE)
    return interpolate([(0.0, 0.0), *by_f1], f1)


def judged(
    coverage: float, f1: float, seconds: float, *, pitch: bool, fastest: float, boxes: float | None = None
) -> Prediction:
    """The score of an answer for `coverage` of the clip with `f1` in what it answers, after `seconds`.

    The judge compares key points with nothing but themselves and the picture's lines: their score is one of coverage.
    """
    bbox = DETECTOR_QUALITY * (boxes_of(f1) if boxes is None else boxes) * min(1.0, coverage / 0.7)
    keypoints = interpolate(KEYPOINTS_BY_COVERAGE, coverage) if pitch else 0.0
    speed = speed_term(seconds, fastest, bbox)
    return Prediction(seconds, coverage, f1, bbox, keypoints, speed, final_score(bbox, keypoints, speed))


def best_deadline(
    clip: Clip | None = None,
    rates: Rates | None = None,
    fastest: float = FASTEST_SECONDS,
    *,
    pitch: bool = True,
) -> float:
    """What TIME_BUDGET_S=auto comes to on the usual clip; with a clip's index, `tune.best_budget` says it."""
    return best_of({b: predict(Choice(budget_seconds=b, pitch=pitch), clip, rates, fastest).final for b in BUDGETS})


def best_of(score_by_budget: Mapping[float, float]) -> float:
    """The shortest budget after which another second costs more score than it brings."""
    best = max(score_by_budget.values())
    return min(budget for budget, score in score_by_budget.items() if score >= best - 0.001)


def _seconds(choice: Choice, stride: int, reach: float, clip: Clip, rates: Rates) -> tuple[float, float]:
    """Seconds before work can begin, and seconds of work after that, fetch and CPU side by side."""
    frames = clip.frame_count * reach
    fetch = clip.megabytes * 1e6 * reach / rates.bytes_per_second
    start = 2 * rates.round_trip_seconds
    keys, looks = frames / clip.frames_per_gop, frames / stride
    decoded = frames if stride == 1 else max(keys, REFERENCE_SHARE * frames)
    smaller = ((choice.width or NATIVE_WIDTH) / NATIVE_WIDTH) ** 2
    cpu_seconds = rates.decode_seconds(keys, decoded - keys) + looks * rates.detect_seconds * smaller
    if stride > 1:
        cpu_seconds += rates.follow_seconds(looks, frames / FLOW_STEP)
    work = cpu_seconds / rates.cores
    if choice.fetch in ("head", "full"):  # the guide's download: it ends before the decoder begins
        return start + fetch, work
    return start, max(fetch, work)
