"""The plan is a value: tables of clips and rates, and what must hold for each."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsttouch.index import Index
from firsttouch.plan import (
    DEFAULT_STRIDE,
    FLOW_QUALITY,
    HOLE_QUALITY,
    LINEAR_QUALITY,
    SECOND_COST,
    Progress,
    Rates,
    expected_quality,
    hole_value,
    make_plan,
    quality_between,
    spread_order,
)
from firsttouch.predict import BRIDGE_FRAMES, EXTRAPOLATE_FRAMES
from firsttouch.ranges import ByteRange, total

FAST = Rates(decode_key_seconds=0.008, decode_reference_seconds=0.0045, detect_seconds=0.011, flow_seconds=0.0025)
SLOW_LINK = Rates(bytes_per_second=13.2e6 / 8, round_trip_seconds=0.1)
SLOW_CPU = Rates(decode_key_seconds=0.03, decode_reference_seconds=0.02, detect_seconds=0.06, flow_seconds=0.01)


def clip(frames: int = 750, gop: int = 50, key_bytes: int = 90_000, other_bytes: int = 18_000) -> Index:
    """An index as x264 would make it without B-frames."""
    rows = np.arange(frames)
    is_key = rows % gop == 0
    size = np.where(is_key, key_bytes, other_bytes).astype(np.int32)
    offset = 5000 + np.concatenate([[0], size.cumsum()[:-1]]).astype(np.int64)
    return Index(
        codec="h264",
        extradata=b"",
        width=1280,
        height=720,
        rotation=0,
        time_base=Fraction(1, 25),
        frames_per_second=25.0,
        duration_seconds=frames / 25,
        size_bytes=int(offset[-1] + size[-1]),
        container="mp4",
        offset=offset,
        size=size,
        dts=rows.astype(np.int64),
        pts=rows.astype(np.int64),
        is_keyframe=is_key,
        frame_number=rows.astype(np.int32),
        is_disposable=np.zeros(frames, bool),
    )


def test_without_a_deadline_the_whole_clip_is_planned_at_the_default_stride():
    plan = make_plan(clip(), FAST)
    assert plan.stride == DEFAULT_STRIDE
    assert plan.share == 1.0
    assert sum(len(step.rows) for step in plan.steps) == 750
    assert np.diff(plan.look_at).max() <= DEFAULT_STRIDE + 1


def test_looks_that_cost_little_are_taken_closer_together():
    gpu = replace(FAST, workers=16, detect_seconds=0.001, bytes_per_second=1e9)
    plans = [make_plan(clip(), rates, budget) for rates in (FAST, gpu) for budget in (math.inf, 3.0)]
    assert [plan.stride <= 5 for plan in plans] == [False, False, True, True]
    assert plans[2].expected_quality > 0.975
    assert plans[2].expected_seconds < 0.5


@pytest.mark.parametrize(
    ("name", "index", "rates", "budget", "at_least", "at_most_bytes"),
    [
        ("fast link", clip(), FAST, 3.0, 0.88, math.inf),
        ("long GOPs", clip(gop=250), FAST, 3.0, 0.88, math.inf),
        ("one key frame", clip(gop=750), FAST, 4.0, 0.85, math.inf),
        ("slow link", clip(), SLOW_LINK, 1.5, 0.15, 2.5e6),
        ("slow link, long GOPs", clip(gop=250), SLOW_LINK, 1.5, 0.1, 2.5e6),
        ("slow CPU", clip(), SLOW_CPU, 2.0, 0.2, math.inf),
        ("tiny budget", clip(), FAST, 0.25, 0.1, 2.5e6),
        ("all key frames", clip(gop=1, key_bytes=40_000), FAST, 2.0, 0.3, math.inf),
    ],
)
def test_the_plan_fits_its_budget_and_is_worth_it(name, index, rates, budget, at_least, at_most_bytes):
    plan = make_plan(index, rates, budget)
    assert plan.expected_seconds <= budget, name
    assert plan.expected_quality >= at_least, name
    assert plan.size_bytes <= at_most_bytes, name
    assert plan.look_at, name


def test_a_tight_plan_covers_the_clip_evenly():
    plan = make_plan(clip(), SLOW_LINK, 1.5)
    looks = np.array(plan.look_at)
    per_third = [int(((looks >= at) & (looks < at + 250)).sum()) for at in (0, 250, 500)]
    assert max(per_third) <= 1.5 * min(per_third)


def test_more_budget_is_never_worse():
    qualities = [make_plan(clip(), SLOW_LINK, budget).expected_quality for budget in (0.3, 0.6, 1.0, 2.0, 4.0, 8.0)]
    assert qualities == sorted(qualities)


def test_a_faster_link_is_never_worse():
    plans = [make_plan(clip(), Rates(bytes_per_second=mbit * 1e6 / 8), 1.5) for mbit in (5, 13, 30, 100, 1000)]
    worths = [plan.expected_quality * math.exp(-SECOND_COST * plan.expected_seconds) for plan in plans]
    assert worths == sorted(worths)


def test_where_bytes_are_few_gops_are_left_out_and_the_rest_show_who_moves():
    plan = make_plan(clip(key_bytes=160_000), SLOW_LINK, 1.5)
    assert 8 <= len(plan.steps) < 15
    assert all(len(step.rows) > 1 and len(step.look_at) > 1 for step in plan.steps)
    keys_only = make_plan(clip(key_bytes=160_000), SLOW_LINK, 1.5, key_frames_only=True)
    assert plan.expected_quality > 1.3 * keys_only.expected_quality


def test_a_plan_made_again_keeps_the_gops_that_are_begun():
    begun = {50: Progress(3), 650: Progress(2)}
    plan = make_plan(clip(key_bytes=160_000), SLOW_LINK, 0.8, done=begun)
    assert begun.keys() <= {step.first_row for step in plan.steps}


def test_a_gop_whose_decoding_has_ended_is_planned_as_it_is_and_the_others_get_the_time():
    begun = range(50, 400, 50)
    ended = {first: Progress(20, 3, (first, first + 10, first + 19)) for first in begun}
    plan, other = (
        make_plan(clip(), SLOW_CPU, 3.0, done=done) for done in (ended, {first: Progress(20, 3) for first in begun})
    )
    rows = {step.first_row: len(step.rows) for step in plan.steps}
    assert {rows[first] for first in begun} == {20}
    assert next(step.look_at for step in plan.steps if step.first_row == 50) == (50, 60, 69)
    assert plan.share > other.share


@pytest.mark.parametrize(("moving", "length"), [(False, 10), (True, 10), (True, 45), (True, 200)])
def test_a_hole_is_worth_less_than_its_answered_frames_and_more_where_velocities_are_known(moving, length):
    found, answered = hole_value(np.array([length]), np.array([moving]))
    still, _ = hole_value(np.array([length]), np.array([False]))
    assert still[0] <= found[0] < answered[0] <= length
    assert answered[0] == (length if length < BRIDGE_FRAMES else 2 * EXTRAPOLATE_FRAMES)


def test_every_prefix_of_the_steps_lies_evenly_over_the_clip():
    starts = [step.first_row for step in make_plan(clip(), FAST).steps]
    assert starts[0] == 0
    assert 300 <= starts[1] <= 450
    first_four = sorted(starts[:4])
    assert max(np.diff([*first_four, 750])) <= 250


@given(st.integers(1, 400))
def test_spread_order_is_a_permutation(count):
    assert sorted(spread_order(count)) == list(range(count))


def test_every_frame_looks_at_every_frame_and_skips_nothing():
    plan = make_plan(clip(frames=120), FAST, every_frame=True)
    assert plan.look_at == tuple(range(120))
    assert not plan.skip_disposable


@pytest.mark.parametrize("stride", [1, 5, 7, 25])
def test_a_fixed_stride_is_kept(stride):
    plan = make_plan(clip(), FAST, 0.5, stride=stride)
    assert plan.stride == stride
    assert plan.share == 1.0
    assert np.diff(plan.look_at).max() <= stride + 1


def test_a_prefix_plan_asks_for_nothing_behind_its_end():
    plan = make_plan(clip(), FAST, stride=5, until_byte=4 * 1024 * 1024)
    assert max(part.stop for part in plan.byte_ranges) <= 4 * 1024 * 1024
    assert plan.expected_quality < 0.45  # F1 with 540 of 750 frames missing


def test_key_frames_only_decodes_one_sample_of_each_gop():
    plan = make_plan(clip(), FAST, key_frames_only=True)
    assert plan.look_at == tuple(range(0, 750, 50))
    assert plan.size_bytes == 15 * 90_000


def test_wanted_frames_need_just_the_samples_up_to_them():
    plan = make_plan(clip(), FAST, look_at=[0, 50, 57, 700])
    assert {step.first_row: step.stop_row for step in plan.steps} == {0: 1, 50: 58, 700: 701}
    assert plan.size_bytes == 3 * 90_000 + 7 * 18_000


def test_bytes_at_hand_and_rows_done_cost_nothing_more():
    index = clip()
    fresh = make_plan(index, SLOW_LINK, stride=12)
    have = [ByteRange(0, index.size_bytes // 2)]
    again = make_plan(index, SLOW_LINK, stride=12, have=have, done={0: Progress(50, 4), 50: Progress(50, 4)})
    assert again.expected_seconds < fresh.expected_seconds - 1.0
    assert sum(step.cost_seconds for step in again.steps) < sum(step.cost_seconds for step in fresh.steps)


def test_frames_looked_at_cost_nothing_more():
    index = clip()
    decoded, looked = ({first: Progress(50, looks) for first in range(0, 400, 50)} for looks in (0, 4))
    saved = make_plan(index, FAST, stride=12, done=decoded).expected_seconds
    saved -= make_plan(index, FAST, stride=12, done=looked).expected_seconds
    assert saved == pytest.approx(8 * 4 * (FAST.detect_seconds + FAST.flow_look_seconds) / 2)


def test_half_a_core_is_planned_for_as_one_of_half_the_speed():
    half, whole = (make_plan(clip(), replace(FAST, core_share=share), stride=12) for share in (0.5, 1.0))
    gained = half.expected_seconds / whole.expected_seconds
    assert 1.8 < gained <= 2.0


@pytest.mark.parametrize(("gop", "least"), [(50, 0.86), (250, 0.75)])
def test_where_cores_are_a_little_too_slow_the_ends_of_gops_are_left_out_rather_than_looks(gop, least):
    for slower in (1.0, 1.1, 1.2, 1.3, 1.4):
        rates = FAST.decoding_times(slower).following_times(slower)
        plan = make_plan(clip(gop=gop), replace(rates, detect_seconds=slower * FAST.detect_seconds), 2.6)
        assert plan.expected_quality > least, slower
        assert plan.stride <= 25, slower


def test_the_last_gop_is_decoded_until_its_end_can_be_extrapolated():
    plan = make_plan(clip(), replace(FAST, core_share=0.7), 2.6)
    rows = {step.first_row: len(step.rows) for step in plan.steps}
    assert rows[650] < 50 - EXTRAPOLATE_FRAMES == rows[700]


@pytest.mark.parametrize("frames", [500, 750, 1250])
def test_of_a_whole_clip_no_gop_comes_last_and_alone(frames):
    plan = make_plan(clip(frames=frames, gop=250), FAST)
    owner = [next(step for step in plan.steps if step.byte_ranges[0].start <= part.start < step.byte_ranges[-1].stop)
             for part in plan.byte_ranges]  # fmt: skip
    begun = {step.first_row: next(i for i, of in enumerate(owner) if of is step) for step in plan.steps}
    last = max(begun, key=lambda row: begun[row])
    assert any(of.first_row != last for of in owner[begun[last] :])
    assert total(plan.byte_ranges) == sum(step.size_bytes for step in plan.steps)


def test_very_short_gops_share_a_step():
    plan = make_plan(clip(gop=1, key_bytes=30_000), FAST)
    assert len(plan.steps) <= 50
    assert sum(len(step.rows) for step in plan.steps) == 750


def test_a_cut_gop_looks_at_its_last_frame_so_that_flow_has_two_ends():
    plan = make_plan(clip(gop=250), SLOW_LINK, 1.5)
    assert plan.share < 1.0
    for step in plan.steps:
        assert step.look_at[-1] == step.stop_row - 1


def test_expected_quality_rises_with_looks_and_with_decoding():
    all_decoded = np.arange(751)
    none = np.zeros(751, np.int64)
    sparse, dense = np.arange(0, 750, 50), np.arange(0, 750, 10)
    assert expected_quality(dense, all_decoded, 750) > expected_quality(sparse, all_decoded, 750)
    assert expected_quality(sparse, all_decoded, 750) > expected_quality(sparse, none, 750)
    assert expected_quality(np.array([], np.int64), none, 750) == 0.0


@pytest.mark.parametrize("table", [FLOW_QUALITY, HOLE_QUALITY, LINEAR_QUALITY])
def test_quality_tables_fall_and_are_met(table):
    gaps, values = zip(*table, strict=True)
    assert list(values) == sorted(values, reverse=True)
    assert quality_between(gaps, table) == pytest.approx(values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 80), st.floats(0.05, 5.0), st.floats(1e5, 1e8))
def test_any_plan_is_sound(frames, gop, budget, bytes_per_second):
    index = clip(frames=frames, gop=gop)
    plan = make_plan(index, Rates(bytes_per_second=bytes_per_second), budget)
    assert plan.steps
    assert total(plan.byte_ranges) <= index.size_bytes
    assert 0.0 <= plan.expected_quality <= 1.0
    for step in plan.steps:
        assert index.is_keyframe[step.first_row]
        assert list(step.look_at) == sorted(set(step.look_at))
        for row in step.rows:
            wanted = index.byte_range(row)
            assert any(part.start <= wanted.start and wanted.stop <= part.stop for part in step.byte_ranges)
