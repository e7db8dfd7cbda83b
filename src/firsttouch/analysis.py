"""The answer for a clip: what was done of it, carried to every frame.

`fill` is the last step of the way: looks and motions -> identities -> frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .carry import FrameAnswer, carry
from .decode import StreamDecoder
from .index import Index
from .options import Options
from .plan import Plan, Rates
from .predict import Fetch
from .track import link
from .work import Snapshot

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]

STAGES = ("connect", "index", "fetch", "decode", "detect", "carry", "answer", "first_frame", "total")
"""Keys of `stage_seconds`. `fetch` and `total` are wall time, `first_frame` is a moment; `decode`, `detect` and
`carry` are summed over threads."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answer for a clip, and what it took. `frames` has one entry for each frame that is answered."""

    source: str
    size_bytes: int | None
    width: int
    height: int
    frame_count: int
    frames_per_second: float
    duration_seconds: float
    stopped_by: Literal["end", "deadline"]
    fetch: Fetch
    runtime: str
    hardware_decoding: bool
    bytes_fetched: int
    requests: int
    frames_decoded: int
    frames_detected: int
    stage_seconds: dict[str, float]
    frames: list[FrameAnswer]
    plan: Plan | None = None
    rates: Rates | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """The clip as it is answered: from the index, or counted in a stream."""

    width: int
    height: int
    frame_count: int
    frames_per_second: float
    duration_seconds: float
    pts_seconds: FloatArray


def view_of(index: Index | None, work: Snapshot, stream: StreamDecoder | None) -> View:
    """What is known of the clip: from its index, or as far as the stream was decoded."""
    if index is not None:
        return View(
            index.width,
            index.height,
            index.frame_count,
            index.frames_per_second,
            index.duration_seconds,
            np.asarray(index.pts[index.row_of_frame] * float(index.time_base), np.float64),
        )
    assert stream is not None
    known = sorted(work.pts)
    ticks = np.interp(np.arange(known[-1] + 1), known, [work.pts[number] for number in known])
    times = np.asarray((ticks - ticks[0]) * float(stream.time_base), np.float64)
    length = float(times[-1]) + 1.0 / stream.frames_per_second
    return View(work.width, work.height, len(times), stream.frames_per_second, length, times)


def fill(view: View, work: Snapshot, options: Options, *, beyond: bool, whole: bool) -> list[FrameAnswer]:
    """Identities, then the frames between the looks; `whole`: all frames, whether or not there is something in them.

    `beyond` the first and last look, and in holes, frames are answered as far as anything can be carried there; without
    it only what is known, which costs little while there are few looks: how partial answers are made.
    """
    known = _known(work)
    numbers = np.arange(view.frame_count, dtype=np.int32) if beyond else known
    tracks = link(work.detections, work.motions, tracking=options.tracking, sure=options.sure)
    frames = carry(tracks, work.detections, work.motions, numbers, view.pts_seconds[numbers], view.width, view.height)
    return frames if whole else _answered(frames, known)


def _known(work: Snapshot) -> IntArray:
    """Frames looked at or between two looks that flow joins, rising, (N,) int32."""
    looked = [np.array([look.frame_number for look in work.detections], np.int32)]
    joined = [np.arange(motion.first, motion.last + 1, dtype=np.int32) for motion in work.motions]
    return np.unique(np.concatenate(looked + joined))


def _answered(frames: list[FrameAnswer], known: IntArray) -> list[FrameAnswer]:
    """The known frames, and those that something was carried to beyond them."""
    certain = set(known.tolist())
    return [frame for frame in frames if frame.frame_number in certain or frame.ids.size or frame.keypoints.any()]
