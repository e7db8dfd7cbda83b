"""How many megabytes of a clip's start a stride and a budget need: the guide's formula put right.

The guide divides the frames it needs by 30 to get seconds of video. That holds only for consecutive frames:
those looked at lie `stride` apart, so they span `stride` times as much video. Its "safe defaults" (2, 3 and
4 MB) are its own figure rounded to a whole megabyte, plus one; they reach 8, 20 and 40 frames but count
on 18, 30 and 67. With the index of a clip there is no need to guess at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from firsttouch.clock import Deadline
from firsttouch.index import Index, locate_index, read_index
from firsttouch.ranges import MEGABYTE, ByteRange
from firsttouch.source import Facts, Source
from firsttouch.source.base import HEAD_BYTES, TAIL_BYTES
from firsttouch.sparse import SparseBytes

GUIDE_FPS = 30.0
GUIDE_MB_PER_SECOND = 1.5
SAFETY = 1.5


@dataclass(frozen=True, slots=True)
class Size:
    """`guide_megabytes` as the guide computes it, `megabytes` with its stride mistake corrected."""

    stride: int
    budget_seconds: float
    frames_needed: int
    video_seconds: float
    megabytes: float
    guide_megabytes: float
    guide_default_megabytes: int
    guide_default_frames: int


@dataclass(frozen=True, slots=True)
class ClipSize:
    """The same from a clip's own index. `coverage` is the share of its frames up to the last one needed."""

    frames_needed: int
    last_frame_number: int
    byte_count: int
    megabytes: float
    coverage: float
    whole_clip: bool


def estimate(
    stride: int,
    budget_seconds: float,
    *,
    fps: float = GUIDE_FPS,
    mb_per_second: float = GUIDE_MB_PER_SECOND,
    safety: float = SAFETY,
) -> Size:
    """The guide's sizing without a clip at hand. ValueError for a stride or budget that is not positive."""
    if stride < 1 or budget_seconds <= 0:
        raise ValueError(f"stride must be >= 1 and budget > 0, got {stride} and {budget_seconds}")
    frames = fps / stride * budget_seconds * safety
    as_written = frames / fps * mb_per_second
    default = math.floor(as_written + 0.5) + 1
    video_seconds = frames * stride / fps
    return Size(
        stride=stride,
        budget_seconds=budget_seconds,
        frames_needed=math.floor(frames + 1e-9),
        video_seconds=video_seconds,
        megabytes=video_seconds * mb_per_second,
        guide_megabytes=as_written,
        guide_default_megabytes=default,
        guide_default_frames=math.floor(default / mb_per_second * fps / stride + 1e-9),
    )


def from_index(index: Index, stride: int, budget_seconds: float, *, safety: float = SAFETY) -> ClipSize:
    """Bytes from the start of the file to the end of the last sample that the frames needed need."""
    wanted = estimate(stride, budget_seconds, fps=index.frames_per_second, safety=safety).frames_needed
    shown = index.frame_number[index.frame_number >= 0]
    last_frame = min((max(wanted, 1) - 1) * stride, int(shown.max()))
    rows = np.flatnonzero((index.frame_number >= 0) & (index.frame_number <= last_frame))
    upto = slice(0, int(rows.max()) + 1)
    byte_count = int((index.offset[upto] + index.size[upto]).max())
    return ClipSize(
        frames_needed=last_frame // stride + 1,
        last_frame_number=last_frame,
        byte_count=byte_count,
        megabytes=byte_count / MEGABYTE,
        coverage=(last_frame + 1) / len(shown),
        whole_clip=last_frame == int(shown.max()),
    )


async def fetch_index(source: Source, deadline: Deadline) -> tuple[Facts, Index]:
    """Open `source` and read its index; IndexNotFound where the container has none to give."""
    facts, sparse = await source.open(deadline=deadline)
    return facts, await read_whole_index(source, sparse)


async def read_whole_index(source: Source, sparse: SparseBytes) -> Index:
    """Fetch what the index still misses and read it; where ranges are ignored, that is up to the whole file."""
    while (missing := locate_index(sparse)) is not None:
        await source.fetch(missing)
    return read_index(sparse)


async def settle(source: Source, sparse: SparseBytes) -> None:
    """Wait for what `open` has asked for: a transfer cut off in the middle costs its connection."""
    size = sparse.size
    if size:
        await source.fetch_all([ByteRange(0, min(HEAD_BYTES, size)), ByteRange(max(0, size - TAIL_BYTES), size)])
