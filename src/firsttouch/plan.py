"""Which frames to look at, which samples to decode, which bytes to fetch, in which order. Pure values, no I/O.

A clip is a row of GOPs, of which a share is kept, evenly spread. From each of these it takes a prefix of its samples
(one `Step`: one codec context, one contiguous run of bytes), and looks at every k-th frame of it. What lies between two
looked-at frames is carried by flow where it was decoded and by interpolation where it was not. `make_plan` tries a
table of such plans and takes the one with the highest expected quality that fits the budget; fixed strides, prefixes
and key frames are rows of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .index import Index
from .predict import BRIDGE_FRAMES, EXTRAPOLATE_FRAMES, LEAP_FRAMES, LINK_SECONDS_A_LOOK, MOMENTUM_FRAMES
from .predict import F1_BY_GAP as LINEAR_QUALITY
from .predict import F1_BY_HOLE as HOLE_QUALITY
from .predict import F1_BY_STRIDE as FLOW_QUALITY
from .predict import FLOW_STEP as FLOW_STEP
from .predict import Rates as Rates
from .ranges import ByteRange, coalesce, total, weave

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

STRIDES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 25, 37, 50)
SHARES = (*(twentieths / 20 for twentieths in range(20, 3, -1)), 0.16, 0.12, 0.08, 0.04, 0.0)
FINER_FROM, FINER = 0.2, (0.01, 0.02, 0.03, 0.04)
"""From this share on the best is tried again with a little more: a twentieth of a GOP of 250 is 0.1 s."""
KEEPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.33, 0.2, 0.12, 0.07, 0.04, 0.02)
"""Shares of the GOPs that a plan may keep, evenly spread."""
SHORT_SHARES = (0.2, 0.12, 0.08, 0.04, 0.0)
"""Shares of each GOP that are tried where GOPs are left out: a few frames behind a key frame show who moves where."""
BEGIN_SECONDS, BEGIN_SECONDS_OF_ALL_GOPS = 0.12, 0.4
"""How long threads wait, most of it before so much is there that they hardly do again: the first requests share the
link. The second is shared among the GOPs: few chains give little to choose from. With the match at 100 Mbit/s each of
two threads waited 0.12 s (15 GOPs) to 0.26 s (three), and such plans end 0.08 s apart."""

DEFAULT_STRIDE = 12
"""Frames between looked-at frames at most when time does not bind: beyond it F1 falls faster than the time does. Looks
that cost little (a GPU, many cores, a slow link) are taken closer together."""

SECOND_COST = 0.1
"""The share of a plan's worth that a second costs: a judge who weighs speed takes about a tenth of the score."""

WHOLE_WORTH = 1.02
"""Every frame decoded is worth this much more than what is expected of it: plans that leave samples out are no better
where the tables say so by less than they are wrong."""

TO_THE_END = 0.6
"""From this share on the last GOP is decoded until what is left can be extrapolated: no later one bridges its hole."""

SHORTEST_RUN = 16
"""Samples in a step at least: below it a codec context costs more than it gives."""

WOVEN_STEPS, WOVEN_BYTES = 2, 256 * 1024
"""Steps whose bytes come by turns, and the bytes of a turn: what a core decodes in 60 ms."""

JOIN_BYTES = 32 * 1024
"""Ranges closer than this are one request: 32 KiB cost 2.6 ms at 100 Mbit/s, a request costs more."""


@dataclass(frozen=True, slots=True)
class Step:
    """A run of samples, from a key frame on, that one codec context decodes."""

    first_row: int
    stop_row: int
    end_row: int
    """How far `stop_row` may still be moved: the end of the GOP."""
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

    @property
    def look_at(self) -> tuple[int, ...]:
        return tuple(sorted(number for step in self.steps for number in step.look_at))

    @property
    def byte_ranges(self) -> list[ByteRange]:
        """What is fetched, in the order of the steps; of a whole clip two steps by turns, or one core would wait for
        the bytes of the first GOP to be over."""
        if self.share < 1.0:
            return [part for step in self.steps for part in step.byte_ranges]
        count = len(self.steps)
        starts = range(0, max(count - 1, 1), WOVEN_STEPS)  # nobody comes last and alone: one core would have no work
        groups = (self.steps[at : at + WOVEN_STEPS if at < starts[-1] else count] for at in starts)
        return [part for group in groups for part in weave([step.byte_ranges for step in group], WOVEN_BYTES)]

    @property
    def size_bytes(self) -> int:
        return total(self.byte_ranges)


class Progress(NamedTuple):
    """What is done of a step: rows decoded, frames looked at."""

    rows: int
    looked: int = 0
    final_looks: tuple[int, ...] | None = None
    """Of a step whose decoding has ended, at its `rows`: all frame numbers to look at, rising. It grows no more."""


@dataclass(frozen=True, slots=True)
class _Gops:
    """The GOPs of an index (very short ones joined), and running sums over its rows: any prefix is costed at once."""

    first_row: IntArray
    stop_row: IntArray
    first_frame: IntArray
    looked: IntArray
    """Frames of each that have been looked at already."""
    final_rows: IntArray
    final_looks: IntArray
    """Rows and looks of each whose decoding has ended, -1 for the others."""
    bytes_before: IntArray
    decode_before: FloatArray
    decoded_before: IntArray
    shown_before: IntArray
    latest_before: IntArray

    def kept(self, keep: float, begun: Mapping[int, Progress]) -> _Gops:
        """This share of the GOPs, evenly spread, the first always; and those that are begun already."""
        if keep == 1.0:
            return self
        rank = np.floor(np.arange(len(self.first_row)) * keep)
        which = np.diff(rank, prepend=-1) > 0
        which |= np.isin(self.first_row, list(begun))
        return replace(
            self,
            first_row=self.first_row[which],
            stop_row=self.stop_row[which],
            first_frame=self.first_frame[which],
            looked=self.looked[which],
            final_rows=self.final_rows[which],
            final_looks=self.final_looks[which],
        )

    def span(self, rows: IntArray) -> IntArray:
        """Frames from the first to the latest that so many rows of each GOP show; B-frames between may be missing."""
        return np.asarray(np.maximum(self.latest_before[self.first_row + rows] + 1 - self.first_frame, 1), np.int64)

    def prefix(self, shares: FloatArray) -> tuple[IntArray, IntArray, FloatArray, IntArray, IntArray]:
        """Rows, bytes, decoding seconds, steps of flow and shown frames, (Q, G) each, of these shares (Q,) of each GOP,
        one row at least."""
        count = self.stop_row - self.first_row
        rows = np.clip(np.ceil(shares[:, None] * count), 1, count).astype(np.int64)
        if self.stop_row[-1] == len(self.bytes_before) - 1:
            to_the_end = np.where(shares >= TO_THE_END, count[-1] - EXTRAPOLATE_FRAMES, 0)
            rows[:, -1] = np.maximum(rows[:, -1], to_the_end)
        rows = np.where(self.final_rows < 0, rows, np.clip(self.final_rows, 1, count))
        first, stop = self.first_row, self.first_row + rows
        decoded = self.decoded_before[stop] - self.decoded_before[first]
        return (
            rows,
            self.bytes_before[stop] - self.bytes_before[first],
            self.decode_before[stop] - self.decode_before[first],
            np.minimum(decoded, rows // FLOW_STEP),
            self.shown_before[stop] - self.shown_before[first],
        )

    def closing(self, rows: IntArray) -> npt.NDArray[np.bool_]:
        """Whether nothing decoded follows on each prefix: then its last frame is looked at too."""
        follows = np.append(self.first_row[1:], -1)
        return np.asarray(self.first_row + rows != follows, np.bool_)


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
    done: Mapping[int, Progress] | None = None,
) -> Plan:
    """The plan whose expected time fits the budget and whose expected quality, less `SECOND_COST` a second, is highest.

    `stride`, `every_frame`, `key_frames_only`, `until_byte` (nothing at or behind this byte is fetched) and `look_at`
    (just these frame numbers) fix what the search would choose. `have` are bytes already here, `done` how far the step
    that begins at a row is: they cost nothing more, which is how a plan is made again half-way. When not even key
    frames fit the budget, the plan is the quickest one, in an order that is even wherever it stops.
    """
    if look_at is not None:
        return _just(index, rates, look_at)
    gops = _gops(index, rates, not every_frame, until_byte, done or {})
    if not gops.first_row.size:
        return Plan((), index.frame_count, stride or DEFAULT_STRIDE, 0.0, 0.0, 0.0, not every_frame)
    if every_frame:
        strides: Sequence[int] = (1,)
    elif stride is not None:
        strides = (stride,)
    else:
        strides = [few for few in STRIDES if few <= DEFAULT_STRIDE] if math.isinf(budget_seconds) else STRIDES
    fixed = every_frame or stride is not None or math.isinf(budget_seconds)
    shares: Sequence[float] = (0.0,) if key_frames_only else (1.0,) if fixed else SHARES
    short = (0.0,) if key_frames_only else SHORT_SHARES

    def tried(keep: float, shares: Sequence[float]) -> _Tried:
        chosen = gops.kept(keep, done or {})
        at_all = np.asarray(shares)
        seconds, quality = _judge(chosen, at_all, np.asarray(strides), rates, have, index.frame_count)
        whole = (at_all[:, None] == 1.0) & (keep == 1.0)
        worth = quality * np.exp(-SECOND_COST * seconds) * np.where(whole, WHOLE_WORTH, 1.0)
        worth = np.where(fixed | (seconds <= budget_seconds), worth, -seconds)
        share, stride = np.unravel_index(int(np.argmax(worth)), worth.shape)
        return _Tried(float(worth[share, stride]), keep, float(at_all[share]), strides[int(stride)])

    best = tried(1.0, shares)
    if not fixed and not (best.worth > 0.0 and best.share > short[0]):
        # GOPs are left out only where there is no time for more than a few frames of each.
        for keep in KEEPS[1:]:
            best = max(best, tried(keep, short), key=attrgetter("worth"))
            if best.worth > 0.0 and best.share > short[0]:
                break
    if not fixed and best.worth > 0.0 and FINER_FROM < best.share < 1.0:
        best = max(best, tried(best.keep, [best.share + more for more in FINER]), key=attrgetter("worth"))
    chosen = gops.kept(best.keep, done or {})
    return _plan(index, chosen, best.share, best.stride, rates, have, done or {}, skip_disposable=not every_frame)


class _Tried(NamedTuple):
    """A row of the table, and what it is worth: less than nothing where it does not fit, the less the later."""

    worth: float
    keep: float
    share: float
    stride: int


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
        steps.append(Step(key, stops[key], stops[key], spans, tuple(looks[key]), cost))
    size = sum(step.size_bytes for step in steps)
    work = sum(step.cost_seconds for step in steps) / rates.cores
    seconds = rates.round_trip_seconds + max(size / rates.bytes_per_second, work)
    seconds += LINK_SECONDS_A_LOOK / rates.core_share * sum(map(len, looks.values()))
    quality = len(set(look_at)) / max(1, index.frame_count)
    return Plan(tuple(steps), index.frame_count, 0, 0.0, seconds, quality, skip_disposable=False)


def _judge(
    gops: _Gops, shares: FloatArray, strides: IntArray, rates: Rates, have: Sequence[ByteRange], frame_count: int
) -> tuple[FloatArray, FloatArray]:
    """Seconds and quality of shares (Q,) of the GOPs for strides (S,), (Q, S) both: the table in a few operations."""
    rows, size, decode, steps, shown = gops.prefix(shares)
    rows, steps, shown = rows[:, None], steps[:, None], shown[:, None]
    closing, stride = gops.closing(rows), strides[:, None]
    looks = np.maximum(look_counts(shown, stride, closing), gops.looked)
    looks = np.where(gops.final_looks < 0, looks, gops.final_looks)
    more = looks - gops.looked
    flow = more * rates.flow_look_seconds + steps * rates.flow_seconds
    work = (decode[:, None] + more * rates.detect_seconds + np.where(stride > 1, flow, 0.0)).sum(-1)
    seconds = _seconds(work, size.sum(-1)[:, None], decode.max(-1)[:, None], len(gops.first_row), rates, have)
    seconds = seconds + LINK_SECONDS_A_LOOK / rates.core_share * looks.sum(-1)
    # Inside the prefix flow carries; from its last look to the next GOP's first one nothing is decoded.
    span = np.maximum(gops.span(rows), shown)
    gap = np.maximum(1.0, (span - closing) / np.maximum(1, looks - closing))
    reach = np.diff(np.append(gops.first_frame, frame_count))
    found, answered = hole_value(np.maximum(reach - span, 0), looks > 1)
    value = span * quality_between(gap, FLOW_QUALITY) + found
    return seconds, _covered_f1(value.sum(-1), (span + answered).sum(-1), frame_count)


def hole_value(length: IntArray, moving: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray]:
    """Expected frames found rightly, and frames answered, in holes of `length` frames that nobody decodes.

    `moving`: frames decoded beside the hole say how fast everybody moves; without them a straight line has to do.
    """
    side = length / 2.0
    bridged = length < BRIDGE_FRAMES
    reach = np.where(bridged, side, np.minimum(side, EXTRAPOLATE_FRAMES))
    coasted = 2 * MOMENTUM_FRAMES * (1.0 - np.exp(-reach / MOMENTUM_FRAMES))
    curved = np.where(bridged, length * quality_between(length, HOLE_QUALITY), coasted)
    straight = 2.0 * reach * quality_between(length + 1, LINEAR_QUALITY)
    return np.where(moving, curved, straight), np.broadcast_to(2.0 * reach, moving.shape)


def _covered_f1(found: npt.ArrayLike, answered: npt.ArrayLike, frame_count: int) -> FloatArray:
    """F1 over all frames of the clip: what is not answered is missed, but is not wrong."""
    return np.asarray(2.0 * np.asarray(found) / (np.asarray(answered) + max(1, frame_count)), np.float64)


def look_counts(shown: IntArray, stride: IntArray | int, closing: npt.NDArray[np.bool_]) -> IntArray:
    """How many of `shown` frames are looked at: about every `stride`-th, and the last one where nothing follows on."""
    open_end = np.maximum(1, np.round(shown / stride))
    closed = np.where(shown > 1, np.maximum(1, np.round((shown - 1) / stride)) + 1, 1)
    return np.where(shown > 0, np.where(closing, closed, open_end), 0).astype(np.int64)


def _seconds(
    work: FloatArray,
    size: IntArray | int,
    longest_decoding: FloatArray | float,
    steps: int,
    rates: Rates,
    have: Sequence[ByteRange],
) -> FloatArray:
    """Fetch and work overlap: the larger of the two, plus the first round trip, and the last step's decoding or the
    time at the beginning when too little is there to work on."""
    missing = np.maximum(0, size - sum(len(part) for part in have))
    fetch = missing / rates.bytes_per_second
    last = np.minimum(work / max(1, steps), 0.1)
    longest = np.maximum(work / rates.cores, longest_decoding / rates.core_share)
    longest = longest + np.minimum(BEGIN_SECONDS + BEGIN_SECONDS_OF_ALL_GOPS / max(1, steps), fetch)
    return np.asarray(rates.round_trip_seconds * (missing > 0) + np.maximum(fetch + last, longest), np.float64)


def _plan(
    index: Index,
    gops: _Gops,
    share: float,
    stride: int,
    rates: Rates,
    have: Sequence[ByteRange],
    done: Mapping[int, Progress],
    *,
    skip_disposable: bool,
) -> Plan:
    """The steps of one row of the table, with what is expected of them."""
    columns = gops.prefix(np.array([share]))
    rows, size, decode, flow_steps = columns[0][0], columns[1][0], columns[2][0], columns[3][0]
    closing = gops.closing(rows)
    decoded = np.zeros(index.frame_count + 1, np.int64)
    looks = []
    for at, (first, count) in enumerate(zip(gops.first_row.tolist(), rows.tolist(), strict=True)):
        shown = np.sort(index.frame_number[first : first + count].astype(np.int64))
        shown = shown[shown >= 0]
        decoded[shown + 1] = 1
        final = done[first].final_looks if first in done else None
        looks.append(_evenly(shown, stride, bool(closing[at])) if final is None else np.array(final, np.int64))
    counts = np.array([len(numbers) for numbers in looks])
    more = np.maximum(counts - gops.looked, 0)
    flow = more * rates.flow_look_seconds + flow_steps * rates.flow_seconds if stride > 1 else 0.0
    cost = decode + more * rates.detect_seconds + flow
    steps = []
    for at in spread_order(len(looks)):
        first, stop = int(gops.first_row[at]), int(gops.first_row[at] + rows[at])
        spans = _byte_ranges(index, first, stop)
        numbers = tuple(looks[at].tolist())
        steps.append(Step(first, stop, int(gops.stop_row[at]), spans, numbers, float(cost[at])))
    seconds = float(_seconds(cost.sum(), int(size.sum()), decode.max(), len(steps), rates, have))
    seconds += LINK_SECONDS_A_LOOK / rates.core_share * int(counts.sum())
    quality = expected_quality(np.unique(np.concatenate(looks)), decoded.cumsum(), index.frame_count)
    return Plan(tuple(steps), index.frame_count, stride, share, seconds, quality, skip_disposable)


def expected_quality(looks: IntArray, decoded_before: IntArray, frame_count: int) -> float:
    """Expected F1 over the clip: flow between looked-at frames where all is decoded, interpolation elsewhere.

    `looks` (K,) rising frame numbers; `decoded_before` (frame_count + 1,) running count of decoded frames.
    """
    if looks.size == 0 or frame_count == 0:
        return 0.0
    gap = np.diff(looks)
    inside = decoded_before[looks[1:] + 1] - decoded_before[looks[:-1] + 1]
    flown = (inside >= 0.999 * gap) | (gap <= LEAP_FRAMES)
    # What is decoded of any other gap is carried by flow from one side, the rest is a hole.
    hole = np.where(flown, 0, gap - inside)
    shows = flown | (inside > 1)
    moving = shows | np.append(False, shows[:-1]) | np.append(shows[1:], False)
    found, answered = hole_value(hole, moving)
    ends = np.minimum([looks[0], frame_count - 1 - looks[-1]], EXTRAPOLATE_FRAMES)
    ends_found, ends_answered = hole_value(2 * ends, np.array([shows[:1].any(), shows[-1:].any()]))
    found = (gap - hole) * quality_between(gap, FLOW_QUALITY) + found
    total_answered = 1.0 + (gap - hole + answered).sum() + ends_answered.sum() / 2
    return float(_covered_f1(1.0 + found.sum() + ends_found.sum() / 2, total_answered, frame_count))


def _gops(
    index: Index, rates: Rates, skip_disposable: bool, until_byte: int | None, done: Mapping[int, Progress]
) -> _Gops:
    count = len(index.offset)
    costs = np.where(index.is_keyframe, rates.decode_key_seconds, rates.decode_reference_seconds)
    skipped = index.is_disposable & skip_disposable
    costs = np.where(skipped, rates.decode_disposable_seconds, costs)
    ends = index.offset + index.size
    runs = []
    for first, stop in _runs([int(row) for row in index.key_rows], count):
        if until_byte is not None and (beyond := ends[first:stop] > until_byte).any():
            stop = first + int(np.argmax(beyond))
        if stop > first:
            runs.append((first, stop))
    for first, progress in done.items():
        costs[first : first + progress.rows] = 0.0
        skipped[first : first + progress.rows] = True
    begun = [done.get(first, Progress(0)) for first, _ in runs]
    starts, stops = (np.array([run[side] for run in runs], np.int64) for side in (0, 1))
    return _Gops(
        starts,
        stops,
        np.maximum(index.frame_number[starts], 0).astype(np.int64) if runs else starts,
        np.array([of.looked for of in begun], np.int64),
        np.array([-1 if of.final_looks is None else of.rows for of in begun], np.int64),
        np.array([-1 if of.final_looks is None else len(of.final_looks) for of in begun], np.int64),
        _before(index.size),
        _before(costs),
        _before(~skipped),
        _before(index.frame_number >= 0),
        np.maximum.accumulate(np.append(-1, index.frame_number.astype(np.int64))),
    )


def _before(values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Running sums with a leading zero: entry r is the sum of what lies before row r."""
    column = np.asarray(values)
    return np.concatenate([[0], np.cumsum(column, dtype=np.float64 if column.dtype.kind == "f" else np.int64)])


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
    """What `coalesce` makes of the samples' ranges, without a range for each."""
    rows = slice(first_row, decode_stop(index, stop_row))
    order = np.argsort(index.offset[rows], kind="stable")
    starts = index.offset[rows][order].astype(np.int64)
    stops = np.maximum.accumulate(starts + index.size[rows][order])
    breaks = np.flatnonzero(starts[1:] > stops[:-1] + JOIN_BYTES)
    edges = zip(starts[np.append(0, breaks + 1)].tolist(), stops[np.append(breaks, -1)].tolist(), strict=True)
    return tuple(ByteRange(start, stop) for start, stop in edges)
