"""Which frames to look at, which samples to decode, which bytes to fetch, in which order. Pure values, no I/O.

A clip is a row of GOPs. From each chosen GOP a plan takes a prefix of its samples (one `Step`: one codec context, one
contiguous run of bytes), and looks at every k-th frame of it. What lies between two looked-at frames is carried by
flow where it was decoded and by interpolation where it was not. `make_plan` tries a table of such plans and takes the
one with the highest expected quality that fits the budget; fixed strides, prefixes and key frames are rows of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .index import Index
from .ranges import ByteRange, coalesce, total

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# F1 of the clip, by the distance in frames between looked-at frames: carried by flow, and interpolated without it.
# Measured on real clips with `python -m bench.carry`.
FLOW_QUALITY = (
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
LINEAR_QUALITY = (
    (1, 1.0),
    (5, 0.92),
    (8, 0.87),
    (12, 0.75),
    (25, 0.35),
    (50, 0.15),
    (100, 0.07),
    (200, 0.03),
)

STRIDES = (6, 8, 10, 12, 14, 16, 20, 25, 37, 50)
SHARES = (0.0, 0.04, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0)
SKIPS = (1, 2, 3, 5, 8, 13, 25, 50)
DEFAULT_STRIDE = 12
"""Frames between looked-at frames when time does not bind: beyond it F1 falls faster than the time does."""

SECOND_COST = 0.1
"""The share of a plan's worth that a second costs: a judge who weighs speed takes about a tenth of the score."""

SHORTEST_RUN = 16
"""Samples in a step at least: below it a codec context costs more than it gives."""

JOIN_BYTES = 32 * 1024
"""Ranges closer than this are one request: 32 KiB cost 2.6 ms at 100 Mbit/s, a request costs more."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine and link can do: the three rates that bind, and the time before the first byte."""

    bytes_per_second: float = 12.5e6
    round_trip_seconds: float = 0.03
    decode_key_seconds: float = 0.008
    decode_reference_seconds: float = 0.0045
    decode_disposable_seconds: float = 0.0
    detect_seconds: float = 0.011
    flow_seconds: float = 0.0025
    workers: int = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A run of samples, from a key frame on, that one codec context decodes."""

    first_row: int
    stop_row: int
    byte_ranges: tuple[ByteRange, ...]
    look_at: tuple[int, ...]
    """Frame numbers, rising; the first decoded frame at or after each is looked at."""
    cost_seconds: float
    """CPU seconds to decode, look and follow."""

    @property
    def rows(self) -> range:
        return range(self.first_row, self.stop_row)

    @property
    def size_bytes(self) -> int:
        return sum(len(part) for part in self.byte_ranges)


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order to fetch and decode them: coarse to fine over the whole clip."""

    steps: tuple[Step, ...]
    frame_count: int
    stride: int
    share: float
    """Share of each chosen GOP's samples that is decoded."""
    expected_seconds: float
    expected_quality: float
    """Expected F1 over all frames of the clip, unanswered frames counting as 0."""
    skip_disposable: bool = True
    whole: bool = True
    """Every sample of the clip is in a step: nothing was left out for time or bytes."""

    @property
    def look_at(self) -> tuple[int, ...]:
        return tuple(sorted(number for step in self.steps for number in step.look_at))

    @property
    def byte_ranges(self) -> list[ByteRange]:
        """What is fetched, in the order of the steps."""
        return [part for step in self.steps for part in step.byte_ranges]

    @property
    def size_bytes(self) -> int:
        return total(self.byte_ranges)


@dataclass(frozen=True, slots=True)
class _Gop:
    """One GOP of the index (or a few very short ones), with running sums so that a prefix is costed without a loop."""

    first_row: int
    stop_row: int
    frame_numbers: IntArray
    bytes_until: IntArray = field(repr=False)
    decode_until: FloatArray = field(repr=False)
    decoded_until: IntArray = field(repr=False)

    def prefix(self, share: float) -> int:
        """How many rows a share of this GOP is: the key frame at least."""
        count = self.stop_row - self.first_row
        return max(1, min(count, math.ceil(share * count)))


def spread_order(count: int) -> list[int]:
    """0..count-1 so that every prefix of the list lies evenly: the middle first, then the quarters (van der Corput)."""
    if count <= 0:
        return []
    bits = max(1, (count - 1).bit_length())
    mirrored = (int(format(number, f"0{bits}b")[::-1], 2) for number in range(1 << bits))
    return [number for number in mirrored if number < count]


def quality_between(gap: npt.ArrayLike, table: Sequence[tuple[int, float]]) -> FloatArray:
    """Mean quality of the frames between two looked-at frames `gap` apart."""
    at, value = zip(*table, strict=True)
    return np.asarray(np.interp(np.log(np.maximum(np.asarray(gap, float), 1.0)), np.log(at), value), np.float64)


def make_plan(
    index: Index,
    rates: Rates,
    budget_seconds: float = math.inf,
    *,
    stride: int | None = None,
    every_frame: bool = False,
    key_frames_only: bool = False,
    until_byte: int | None = None,
    look_at: Sequence[int] | None = None,
    have: Sequence[ByteRange] = (),
    done: Mapping[int, int] | None = None,
) -> Plan:
    """The plan whose expected time fits the budget and whose expected quality, less `SECOND_COST` a second, is highest.

    `stride`, `every_frame`, `key_frames_only`, `until_byte` (nothing at or behind this byte is fetched) and `look_at`
    (just these frame numbers) fix what the search would choose. `have` are bytes already here, `done` the rows already
    decoded of the step that begins at a row: they cost nothing more, which is how a plan is made again half-way. When
    not even key frames fit the budget, the plan is the quickest one, in an order that is even wherever it stops.
    """
    if look_at is not None:
        return _just(index, rates, look_at)
    gops = _gops(index, rates, not every_frame, until_byte, done or {})
    if not gops:
        return Plan((), index.frame_count, stride or DEFAULT_STRIDE, 0.0, 0.0, 0.0, not every_frame)
    if every_frame:
        strides: Sequence[int] = (1,)
    elif stride is not None:
        strides = (stride,)
    elif math.isinf(budget_seconds):
        strides = (DEFAULT_STRIDE,)
    else:
        strides = STRIDES
    fixed = every_frame or stride is not None or math.isinf(budget_seconds)
    shares: Sequence[float] = (0.0,) if key_frames_only else (1.0,) if fixed else SHARES
    best: tuple[float, float, _Draft] | None = None
    for draft in _drafts(gops, strides, shares, SKIPS if not fixed and len(gops) > 1 else (1,)):
        seconds = draft.seconds(rates, have)
        value = draft.quality(index.frame_count)
        fits = fixed or seconds <= budget_seconds
        rank = (value * math.exp(-SECOND_COST * seconds) if fits else -seconds, -seconds)
        if best is None or rank > best[:2]:
            best = (*rank, draft)
    assert best is not None
    return best[2].plan(index, rates, have, skip_disposable=not every_frame)


def _just(index: Index, rates: Rates, look_at: Sequence[int]) -> Plan:
    """The samples these frames need, each from its key frame on; the bytes of no other frame behind them."""
    stops: dict[int, int] = {}
    looks: dict[int, list[int]] = {}
    for number in sorted(set(look_at)):
        row = int(index.row_of_frame[number])
        key = int(index.gop_of_row[row])
        stops[key] = max(stops.get(key, 0), row + 1)
        looks.setdefault(key, []).append(number)
    keys = sorted(stops)
    steps = []
    for at in spread_order(len(keys)):
        key = keys[at]
        decode = rates.decode_key_seconds + (stops[key] - key - 1) * rates.decode_reference_seconds
        spans = tuple(coalesce(index.byte_range(row) for row in range(key, stops[key])))
        cost = decode + len(looks[key]) * rates.detect_seconds
        steps.append(Step(key, stops[key], spans, tuple(looks[key]), cost))
    size = sum(step.size_bytes for step in steps)
    work = sum(step.cost_seconds for step in steps) / rates.workers
    seconds = rates.round_trip_seconds + max(size / rates.bytes_per_second, work)
    quality = len(set(look_at)) / max(1, index.frame_count)
    return Plan(tuple(steps), index.frame_count, 0, 0.0, seconds, quality, skip_disposable=False, whole=False)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One row of the table: every `skip`-th GOP, a share of its rows, every `stride`-th frame."""

    gops: Sequence[_Gop]
    stride: int
    share: float

    def rows(self) -> list[int]:
        return [gop.prefix(self.share) for gop in self.gops]

    def looks(self) -> list[IntArray]:
        found = []
        follows = [gop.first_row for gop in self.gops[1:]]
        for position, (gop, rows) in enumerate(zip(self.gops, self.rows(), strict=True)):
            shown = np.sort(gop.frame_numbers[:rows])
            closing = position == len(follows) or gop.first_row + rows != follows[position]
            found.append(_evenly(shown[shown >= 0], self.stride, closing))
        return found

    def cpu_seconds(self, rates: Rates) -> float:
        work = 0.0
        for gop, rows, looks in zip(self.gops, self.rows(), self.looks(), strict=True):
            flow = gop.decoded_until[rows - 1] * rates.flow_seconds if self.stride > 1 else 0.0
            work += gop.decode_until[rows - 1] + flow + looks.size * rates.detect_seconds
        return float(work)

    def seconds(self, rates: Rates, have: Sequence[ByteRange]) -> float:
        """Fetch and work overlap: the larger of the two, plus the first round trip and the last step's decoding."""
        work = self.cpu_seconds(rates)
        size = sum(int(gop.bytes_until[rows - 1]) for gop, rows in zip(self.gops, self.rows(), strict=True))
        size = max(0, size - sum(len(part) for part in have))
        fetch = size / rates.bytes_per_second
        longest = max(float(gop.decode_until[rows - 1]) for gop, rows in zip(self.gops, self.rows(), strict=True))
        last = min(work / max(1, len(self.gops)), 0.1)
        return rates.round_trip_seconds * (size > 0) + max(fetch + last, work / rates.workers, longest)

    def quality(self, frame_count: int) -> float:
        # Unshown samples (frame number -1) fall on entry 0, which stays zero.
        decoded = np.zeros(frame_count + 1, np.int64)
        for gop, rows in zip(self.gops, self.rows(), strict=True):
            decoded[gop.frame_numbers[:rows] + 1] = 1
        decoded[0] = 0
        looks = np.unique(np.concatenate(self.looks()))
        return expected_quality(looks, decoded.cumsum(), frame_count)

    def plan(self, index: Index, rates: Rates, have: Sequence[ByteRange], *, skip_disposable: bool) -> Plan:
        looks = self.looks()
        steps = []
        for at in spread_order(len(self.gops)):
            gop, rows = self.gops[at], self.gops[at].prefix(self.share)
            spans = _byte_ranges(index, gop.first_row, gop.first_row + rows)
            flow = gop.decoded_until[rows - 1] * rates.flow_seconds if self.stride > 1 else 0.0
            cost = float(gop.decode_until[rows - 1] + flow + looks[at].size * rates.detect_seconds)
            numbers = tuple(int(number) for number in looks[at])
            steps.append(Step(gop.first_row, gop.first_row + rows, spans, numbers, cost))
        return Plan(
            tuple(steps),
            index.frame_count,
            self.stride,
            self.share,
            self.seconds(rates, have),
            self.quality(index.frame_count),
            skip_disposable,
            sum(len(step.rows) for step in steps) == len(index.offset),
        )


def expected_quality(looks: IntArray, decoded_before: IntArray, frame_count: int) -> float:
    """Expected F1 over the clip: flow between looked-at frames where all is decoded, interpolation elsewhere.

    `looks` (K,) rising frame numbers; `decoded_before` (frame_count + 1,) running count of decoded frames.
    """
    if looks.size == 0 or frame_count == 0:
        return 0.0
    gap = np.diff(looks)
    inside = decoded_before[looks[1:] + 1] - decoded_before[looks[:-1] + 1]
    flow, linear = quality_between(gap, FLOW_QUALITY), quality_between(gap, LINEAR_QUALITY)
    # A gap that is decoded in part is carried by flow from one side and interpolated over the rest.
    share = np.clip(inside / np.maximum(gap, 1), 0.0, 1.0)
    rest = quality_between(gap * (1.0 - share), LINEAR_QUALITY)
    value = np.where(share >= 0.999, flow, share * flow + (1.0 - share) * np.maximum(linear, rest))
    ends = np.array([looks[0], frame_count - 1 - looks[-1]], np.float64)
    ends_value = ends * quality_between(2 * ends + 1, LINEAR_QUALITY)
    return float((1.0 + (value * gap).sum() + ends_value.sum()) / frame_count)


def _drafts(
    gops: Sequence[_Gop], strides: Sequence[int], shares: Sequence[float], skips: Sequence[int]
) -> Iterator[_Draft]:
    for skip in skips:
        chosen = gops[::skip]
        if skip > 1 and len(chosen) < 2:
            return
        for share in shares if skip == 1 else [share for share in shares if share in (0.0, 0.12, 1.0)]:
            for stride in strides:
                yield _Draft(chosen, stride, share)
                if share == 0.0:
                    break


def _gops(
    index: Index, rates: Rates, skip_disposable: bool, until_byte: int | None, done: Mapping[int, int]
) -> list[_Gop]:
    count = len(index.offset)
    costs = np.where(index.is_keyframe, rates.decode_key_seconds, rates.decode_reference_seconds)
    skipped = index.is_disposable & skip_disposable
    costs = np.where(skipped, rates.decode_disposable_seconds, costs)
    ends = index.offset + index.size
    found = []
    for first, stop in _runs([int(row) for row in index.key_rows], count):
        if until_byte is not None and (beyond := ends[first:stop] > until_byte).any():
            stop = first + int(np.argmax(beyond))
        if stop <= first:
            continue
        rows = slice(first, stop)
        spent = np.arange(first, stop) < first + done.get(first, 0)
        found.append(
            _Gop(
                first,
                stop,
                index.frame_number[rows].astype(np.int64),
                index.size[rows].astype(np.int64).cumsum(),
                np.where(spent, 0.0, costs[rows]).cumsum(),
                (~skipped[rows] & ~spent).astype(np.int64).cumsum(),
            )
        )
    return found


def _runs(keys: list[int], count: int) -> Iterator[tuple[int, int]]:
    """First and stop rows of GOPs; GOPs of a few samples are taken together, or a clip of key frames has 750."""
    first = keys[0] if keys else count
    for key in [*keys[1:], count]:
        if key - first >= SHORTEST_RUN or key == count:
            if key > first:
                yield first, key
            first = key


def _evenly(shown: IntArray, stride: int, closing: bool) -> IntArray:
    """About every `stride`-th of the shown frames, evenly, the first always; the last too when nothing follows on."""
    if shown.size == 0:
        return shown
    if closing:
        count = max(1, round((shown.size - 1) / stride)) + 1 if shown.size > 1 else 1
        at = np.linspace(0, shown.size - 1, count).round().astype(np.int64)
    else:
        count = max(1, round(shown.size / stride))
        at = np.arange(count) * shown.size // count
    return np.unique(shown[at])


def decode_stop(index: Index, stop_row: int) -> int:
    """Where feeding a decoder ends so that it gives every frame before `stop_row`.

    At the end of a GOP that may be later: leading frames of the next key frame (open GOP) need this GOP.
    """
    before = index.key_rows[index.key_rows < stop_row]
    at_end = stop_row >= len(index.offset) or bool(index.is_keyframe[stop_row])
    return index.gop_rows(int(before[-1])).stop if at_end and before.size else stop_row


def _byte_ranges(index: Index, first_row: int, stop_row: int) -> tuple[ByteRange, ...]:
    rows = range(first_row, decode_stop(index, stop_row))
    return tuple(coalesce((index.byte_range(row) for row in rows), gap=JOIN_BYTES))
