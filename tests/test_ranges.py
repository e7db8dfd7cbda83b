"""Byte ranges are plain values: what a reader would compute by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from firsttouch.ranges import ByteRange, total, weave


def test_runs_are_woven_by_turns_and_the_longer_one_goes_on_alone():
    woven = weave([[ByteRange(0, 25)], [ByteRange(100, 105), ByteRange(110, 115)]], 10)
    assert [(part.start, part.stop) for part in woven] == [(0, 10), (100, 105), (10, 20), (110, 115), (20, 25)]


@given(st.lists(st.lists(st.integers(1, 50), max_size=4), max_size=4), st.integers(1, 20))
def test_weaving_loses_no_byte_and_keeps_the_order_within_a_run(sizes, piece):
    runs, at = [], 0
    for run in sizes:
        runs.append([])
        for size in run:
            runs[-1].append(ByteRange(at, at + size))
            at += size + 1
    woven = weave(runs, piece)
    assert total(woven) == sum(map(sum, sizes))
    assert all(len(part) <= piece for part in woven)
    for run in runs:
        mine = [part.start for part in woven if any(whole.start <= part.start < whole.stop for whole in run)]
        assert mine == sorted(mine)
