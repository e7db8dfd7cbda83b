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

DETECTOR_QUALITY = 0.9
"""bbox before coverage when every frame is looked at: an assumption; `firsttouch score` measures it."""

STRIDES = (1, 2, 3, 5, 8, 12, 18, 25, 37)
"""Distances between looked-at frames that the automatic stride chooses from."""

BUDGETS = tuple(quarter / 4 for quarter in range(2, 49))
"""Deadlines that `best_deadline` chooses from, in seconds."""

F1_BY_STRIDE = (
    (1, 1.0),
    (5, 0.94),
    (8, 0.92),
    (12, 0.91),
    (18, 0.90),
    (25, 0.87),
    (37, 0.84),
    (75, 0.6),
    (150, 0.3),
)
"""F1 of boxes carried by flow, by frames between looks, against every frame looked at. Up to 37 measured on real clips
before this code, beyond an extrapolation; `python -m bench carry` measures it again. The plan uses it too."""

F1_BY_GAP = ((1, 1.0), (5, 0.92), (8, 0.87), (12, 0.75), (25, 0.35), (50, 0.15), (100, 0.07), (200, 0.03))
"""The same without flow: frames that nobody decoded are interpolated over the gap."""

BRIDGE_FRAMES = 60
"""A hole without motion at most this long is interpolated; of a longer one only the ends are answered."""

EXTRAPOLATE_FRAMES = 8
"""How far anything is carried on its velocity alone, beyond what was decoded."""

LEAP_FRAMES = 12
"""Two frames further apart with nothing decoded between are a leap: bodies cannot be followed through it."""

MOMENTUM_FRAMES = 7.5
"""By e in so many frames falls the share of bodies that are found where their velocity would have them. Fitted to seven
plans for 2 to 3.6 MB of the match (F1 over its holes of 45 to 220 frames)."""

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
    """What binds: the link and the machine. The defaults are nominal (100 Mbit/s, 30 ms, two CPU cores)."""

    bytes_per_second: float = 12.5e6
    round_trip_seconds: float = 0.03
    connect_seconds: float = 0.0
    decode_ms: float = 3.6
    detect_ms: float = 6.0
    flow_ms: float = 1.4
    cores: float = 2.0

    @classmethod
    def of_run(
        cls,
        stage_seconds: Mapping[str, float],
        *,
        frame_count: int,
        frames_looked_at: int,
        bytes_per_second: float,
        cores: float,
        round_trip_seconds: float = 0.03,
    ) -> Rates:
        """What a run that answered the whole clip has shown; its stages are CPU seconds over all threads."""
        return cls(
            bytes_per_second=bytes_per_second,
            round_trip_seconds=round_trip_seconds,
            connect_seconds=stage_seconds.get("connect", 0.0),
            decode_ms=1000 * stage_seconds.get("decode", 0.0) / max(1, frame_count),
            detect_ms=1000 * stage_seconds.get("detect", 0.0) / max(1, frames_looked_at),
            flow_ms=500 * stage_seconds.get("carry", 0.0) / max(1, frame_count),
            cores=cores,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings that move time and score. `stride` None: chosen; `budget_seconds` None: no limit."""

    fetch: Fetch = "sparse"
    megabytes: float = 4.0
    stride: int | None = None
    budget_seconds: float | None = 2.0
    budget_after_first_frame: bool = False
    pitch: bool = True


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
    done = 1.0 if start + work <= limit else max(0.0, (limit - start) / work)
    seconds = min(start + work, limit)
    f1 = carried_f1(choice.stride)
    if choice.fetch == "sparse":  # coarse to fine: what is missing at the deadline is the end of each GOP
        coverage = 1.0 if done > 0 else 0.0
        f1 = done * f1 + (1 - done) * interpolate(F1_BY_GAP, (1 - done) * clip.frames_per_gop)
    else:  # in file order: what is missing at the deadline is the end of the clip
        coverage = reach * done
    return judged(coverage, f1, seconds, pitch=choice.pitch, fastest=fastest)


def carried_f1(stride: float) -> float:
    """Expected F1 against every frame looked at, when every `stride`-th is and the rest is carried by flow."""
    return interpolate(F1_BY_STRIDE, stride)


def judged(coverage: float, f1: float, seconds: float, *, pitch: bool, fastest: float) -> Prediction:
    """The score of an answer for `coverage` of the clip with `f1` in what it answers, after `seconds`.

    Key points are taken to be as well carried as boxes, which is an assumption.
    """
    bbox = DETECTOR_QUALITY * f1 * min(1.0, coverage / 0.7)
    keypoints = f1 * interpolate(KEYPOINTS_BY_COVERAGE, coverage) if pitch else 0.0
    speed = speed_term(seconds, fastest, bbox)
    return Prediction(seconds, coverage, f1, bbox, keypoints, speed, final_score(bbox, keypoints, speed))


def best_deadline(
    clip: Clip | None = None,
    rates: Rates | None = None,
    fastest: float = FASTEST_SECONDS,
    *,
    pitch: bool = True,
) -> float:
    """The budget in seconds after which another second costs more score than it brings (TIME_BUDGET_S=auto)."""
    scores = [
        (budget, predict(Choice(budget_seconds=budget, pitch=pitch), clip, rates, fastest).final) for budget in BUDGETS
    ]
    best = max(score for _, score in scores)
    return next(budget for budget, score in scores if score >= best - 0.001)


def _seconds(choice: Choice, stride: int, reach: float, clip: Clip, rates: Rates) -> tuple[float, float]:
    """Seconds before work can begin, and seconds of work after that, fetch and CPU side by side."""
    frames = clip.frame_count * reach
    size = clip.megabytes * 1e6 * reach
    fetch = size / rates.bytes_per_second
    start = rates.connect_seconds + 2 * rates.round_trip_seconds
    cpu = frames * (rates.decode_ms + rates.detect_ms / stride + (2 * rates.flow_ms if stride > 1 else 0.0))
    cpu_seconds = cpu / 1000 / rates.cores
    if choice.fetch in ("head", "full"):  # the guide's download: it ends before the decoder begins
        return start + fetch, cpu_seconds
    return start, max(fetch, cpu_seconds)
