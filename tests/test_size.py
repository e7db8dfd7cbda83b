"""Sizing: the guide's table, its mistake, and the real index."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import orjson
import pytest
import typer
from typer.testing import CliRunner

from firsttouch.clock import Deadline
from firsttouch.commands import size as size_command
from firsttouch.index import Index
from firsttouch.ranges import MEGABYTE
from firsttouch.size import estimate, fetch_index, from_index
from firsttouch.source import open_source
from tests.clips import SHARED_CLIPS
from tests.toy import toy_clip

CLIP_A = SHARED_CLIPS / "a_720p25_faststart.mp4"


GUIDE_SIZES = [(5, 2.0, 18, 0.9, 2), (3, 2.0, 30, 1.5, 3), (2, 3.0, 67, 3.375, 4)]
"""Stride, budget, the guide's frames and megabytes, and its safe default."""


@pytest.mark.parametrize(("stride", "budget", "frames", "guide_mb", "default_mb"), GUIDE_SIZES)
def test_the_guides_table_comes_out_as_it_says(
    stride: int, budget: float, frames: int, guide_mb: float, default_mb: int
) -> None:
    size = estimate(stride, budget)
    assert size.frames_needed == frames
    assert size.guide_megabytes == pytest.approx(guide_mb)
    assert size.guide_default_megabytes == default_mb


@pytest.mark.parametrize(("stride", "budget"), [(1, 1.0), (5, 2.0), (3, 2.0), (2, 3.0), (25, 4.0)])
def test_frames_lie_stride_apart_in_the_video(stride: int, budget: float) -> None:
    size = estimate(stride, budget)
    assert size.video_seconds == pytest.approx(30 / stride * budget * 1.5 * stride / 30)
    assert size.megabytes == pytest.approx(size.guide_megabytes * stride)


def test_the_guides_defaults_reach_fewer_frames_than_it_counts_on() -> None:
    assert [estimate(*row).guide_default_frames for row in ((5, 2.0), (3, 2.0), (2, 3.0))] == [8, 20, 40]


def test_nonsense_is_refused() -> None:
    for stride, budget in ((0, 2.0), (5, 0.0)):
        with pytest.raises(ValueError, match="stride must be"):
            estimate(stride, budget)


def read(path: Path) -> Index:
    async def run() -> Index:
        source = open_source(path)
        try:
            return (await fetch_index(source, Deadline.after(10)))[1]
        finally:
            await source.close()

    return asyncio.run(run())


@pytest.mark.parametrize("faststart", [True, False])
def test_the_bytes_named_hold_exactly_the_frames_needed(tmp_path: Path, faststart: bool) -> None:
    index = read(toy_clip(tmp_path, faststart=faststart))
    size = from_index(index, stride=5, budget_seconds=1.0)
    assert size.frames_needed == 7  # 25 / 5 * 1 * 1.5
    assert size.last_frame_number == 30
    ends = index.offset + index.size
    inside = index.frame_number[ends <= size.byte_count]
    assert set(range(31)) <= set(inside.tolist())
    one_less = index.frame_number[ends <= size.byte_count - 1]
    assert not set(range(31)) <= set(one_less.tolist()) or np.max(one_less) > 30
    assert size.coverage == pytest.approx(0.31)
    assert not size.whole_clip


def test_a_short_clip_is_needed_whole(tmp_path: Path) -> None:
    index = read(toy_clip(tmp_path, frames=20))
    size = from_index(index, stride=5, budget_seconds=30.0)
    assert size.whole_clip
    assert size.coverage == 1.0
    assert size.byte_count == int((index.offset + index.size).max())


@pytest.mark.skipif(not CLIP_A.exists(), reason="the shared clips are not here")
def test_a_real_clip() -> None:
    index = read(CLIP_A)
    size = from_index(index, stride=5, budget_seconds=2.0)
    assert size.frames_needed == 15
    assert size.last_frame_number == 70
    assert 0 < size.byte_count < CLIP_A.stat().st_size / 3


def test_the_command_prints_both_figures_and_json(tmp_path: Path) -> None:
    app = typer.Typer()
    size_command.register(app)
    clip = toy_clip(tmp_path)
    text = CliRunner().invoke(app, ["--stride", "5", "--budget", "2", str(clip)]).output
    assert "0.9 MB" in text
    assert "4.5 MB" in text
    assert "PARTIAL_DOWNLOAD_MB=" in text
    body = orjson.loads(CliRunner().invoke(app, ["--stride", "5", "--budget", "1", "--json", str(clip)]).output)
    assert body["estimate"]["guide_default_megabytes"] == 1
    assert body["clip"]["megabytes"] == pytest.approx(from_index(read(clip), 5, 1.0).byte_count / MEGABYTE)
