"""Every frame of the clip from the looked-at ones: boxes along their flow, key points along the camera, never
across a cut.

Between two looked-at frames a body seen in both goes from one to the other along its forward flow, corrected
so that it arrives,
and its backward flow, corrected the same way; near a it trusts the first, near b the second. A body seen in
one of them only is
carried until flow loses it, at most half the way. Nothing is frozen, nothing invented: what cannot be carried
is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from firsttouch.detect import Detections
from firsttouch.homography import Float, moved_points
from firsttouch.keypoints import cubic, everywhere, zeroed
from firsttouch.motion import Motion, camera_across
from firsttouch.predict import BRIDGE_FRAMES, EXTRAPOLATE_FRAMES
from firsttouch.track import Int, Tracks, motions_between

Mode = Literal["flow", "linear"]

WIDTH_MEMORY_FRAMES = 4.0
"""How soon the width seen in a glance is forgotten for the body's usual one."""
FADE_FRAMES = 25
"""Carried confidence falls by 1/e over this many frames from the nearest glance that supports it."""


@dataclass(frozen=True, slots=True, eq=False)
class FrameAnswer:
    """What is answered for one frame. ids (N,) int32, class_ids (N,) uint8, confidence (N,) float32, xyxy (N,
    4) float32 source
    pixels, keypoints (32, 3) float32 (x, y, confidence; zeros: not known). how: "detected" where the frame was
    looked at."""

    frame_number: int
    pts_seconds: float
    how: Literal["detected", "carried"]
    ids: Int
    class_ids: npt.NDArray[np.uint8]
    confidence: Float
    xyxy: Float
    keypoints: Float


def carry(
    tracks: Tracks,
    detections: Sequence[Detections],
    motions: Sequence[Motion],
    frame_numbers: Sequence[int] | Int,
    pts_seconds: Sequence[float] | Float,
    width: int,
    height: int,
    mode: Mode = "flow",
) -> list[FrameAnswer]:
    """Answers for the wanted frames (rising), looked-at or not; those nothing can be said about have no objects.

    motions: between neighbouring looked-at frames, any may be absent. mode="linear" ignores them (the ruler to
    compare with).
    """
    if mode == "linear":
        motions = []
    between = motions_between(detections, motions)
    wanted = np.asarray(frame_numbers, np.int32)
    moments = np.asarray(pts_seconds, np.float64)
    points = everywhere(detections, between, wanted, width, height)
    answers = {}
    for piece in _pieces(tracks, between, wanted, width, height):
        answers.update(piece.by_frame())
    looked = set(tracks.frame_numbers.tolist())
    nothing = _empty()
    return [
        FrameAnswer(
            int(number),
            float(moment),
            "detected" if int(number) in looked else "carried",
            *answers.get(int(number), nothing),
            points[k],
        )
        for k, (number, moment) in enumerate(zip(wanted, moments, strict=True))
    ]


Objects = tuple[Int, npt.NDArray[np.uint8], Float, Float]


def _empty() -> Objects:
    return np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Frames (T,) of one stretch and the bodies (P,) in it: xyxy (T, P, 4), confidence (T, P), 0 where absent."""

    frames: Int
    ids: Int
    class_ids: npt.NDArray[np.uint8]
    confidence: Float
    xyxy: Float

    def by_frame(self) -> dict[int, Objects]:
        shown = (self.confidence > 0) & np.isfinite(self.xyxy).all(-1)
        return {
            int(frame): (
                self.ids[which],
                self.class_ids[which],
                self.confidence[t][which],
                self.xyxy[t][which],
            )
            for t, (frame, which) in enumerate(zip(self.frames, shown, strict=True))
        }


@dataclass(frozen=True, slots=True)
class _Ends:
    """The bodies (P,) of one stretch: rows of `Tracks` at its two ends, -1 where not there."""

    left: npt.NDArray[np.intp]
    right: npt.NDArray[np.intp]


def _pieces(tracks: Tracks, between: Sequence[Motion | None], wanted: Int, width: int, height: int) -> list[_Piece]:
    numbers = tracks.frame_numbers
    pieces = []
    for look, number in enumerate(numbers):
        rows = tracks.at(look)
        here = wanted[wanted == number]
        boxes = _clipped(tracks.xyxy[rows], width, height)
        pieces.append(
            _Piece(
                here,
                tracks.id[rows],
                tracks.class_id[rows],
                np.tile(tracks.confidence[rows], (len(here), 1)),
                np.tile(boxes, (len(here), 1, 1)),
            )
        )
    for look in range(len(numbers) - 1):
        frames = wanted[(wanted > numbers[look]) & (wanted < numbers[look + 1])]
        if len(frames):
            pieces.append(_stretch(tracks, look, between, frames, width, height))
    if len(numbers):
        before, after = wanted[wanted < numbers[0]], wanted[wanted > numbers[-1]]
        pieces.append(_beyond(tracks, 0, between, before, width, height))
        pieces.append(_beyond(tracks, len(numbers) - 1, between, after, width, height))
    return pieces


def _joined(tracks: Tracks, look: int) -> _Ends:
    """Bodies of looked-at frames `look` and `look + 1`, joined by id."""
    left, right = tracks.at(look), tracks.at(look + 1)
    ids = np.union1d(tracks.id[left], tracks.id[right])
    rows = []
    for side in (left, right):
        mine = tracks.id[side]
        place = np.minimum(np.searchsorted(mine, ids), max(len(mine) - 1, 0))
        rows.append(np.where(mine[place] == ids, place + side.start, -1) if len(mine) else np.full(len(ids), -1))
    return _Ends(rows[0], rows[1])


def _stretch(
    tracks: Tracks, look: int, between: Sequence[Motion | None], frames: Int, width: int, height: int
) -> _Piece:
    """The frames strictly between two looked-at frames."""
    motion = between[look]
    first, last = int(tracks.frame_numbers[look]), int(tracks.frame_numbers[look + 1])
    ends = _joined(tracks, look)
    both = (ends.left >= 0) & (ends.right >= 0)
    if motion is not None and motion.cut_after is not None:
        both[:] = False
    since, until = (frames - first)[:, None], (last - frames)[:, None]
    share = (since / (last - first)).astype(np.float32)[..., None]
    start, stop = _boxes_at(tracks, ends.left, width), _boxes_at(tracks, ends.right, width)
    if motion is not None and not motion.is_leap:
        centre = _flown(tracks, motion, ends, both, _centre(start), _centre(stop), frames, share)
    else:
        centre = _coasting(tracks, look, between, ends, both, _centre(start), _centre(stop), frames, share)
    size = _sizes(tracks, ends, start, stop, share, since, until)
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], -1)
    confidence = _faded(tracks, ends, both, since, until, motion, _at_edge(xyxy, width))
    class_ids = np.where(ends.left >= 0, tracks.class_id[ends.left], tracks.class_id[ends.right])
    ids = np.where(ends.left >= 0, tracks.id[ends.left], tracks.id[ends.right])
    return _Piece(frames, ids, class_ids, confidence, _clipped(xyxy, width, height))


def _at_edge(xyxy: Float, width: int) -> npt.NDArray[np.bool_]:
    """(P,) whether a path leaves by a side of the picture: then its end is an exit or an entry, and no miss of
    the detector."""
    with np.errstate(invalid="ignore"):
        return np.asarray(((xyxy[..., 0] <= 2) | (xyxy[..., 2] >= width - 2)).any(0))


def _centre(boxes: Float) -> Float:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _boxes_at(tracks: Tracks, rows: npt.NDArray[np.intp], width: int) -> Float:
    """Boxes (P, 4), NaN where there is none. One that the picture's side cuts off gets its usual width back,
    so that it can move."""
    boxes = np.full((len(rows), 4), np.nan, np.float32)
    there = rows >= 0
    boxes[there] = tracks.xyxy[rows[there]]
    usual = np.full(len(rows), np.nan, np.float32)
    usual[there] = tracks.aspect[rows[there]] * (boxes[there, 3] - boxes[there, 1])
    with np.errstate(invalid="ignore"):
        boxes[:, 0] = np.where(boxes[:, 0] <= 2, np.minimum(boxes[:, 0], boxes[:, 2] - usual), boxes[:, 0])
        boxes[:, 2] = np.where(boxes[:, 2] >= width - 2, np.maximum(boxes[:, 2], boxes[:, 0] + usual), boxes[:, 2])
    return boxes


def _sizes(
    tracks: Tracks,
    ends: _Ends,
    start: Float,
    stop: Float,
    share: Float,
    since: npt.NDArray[np.integer],
    until: npt.NDArray[np.integer],
) -> Float:
    """(T, P, 2) widths and heights: heights from end to end; widths too, but forgetting the ends for what is
    usual of the body.

    A running body's width swings with its stride, so a few frames away its mean says more than the last glance.
    """
    one, two = start[:, 2:] - start[:, :2], stop[:, 2:] - stop[:, :2]
    left, right = (ends.left >= 0)[:, None], (ends.right >= 0)[:, None]
    one, two = np.where(left, one, two), np.where(right, two, one)
    size = (1 - share) * one + share * two
    usual_one = np.where(left[:, 0], tracks.aspect[ends.left], tracks.aspect[ends.right])
    usual_two = np.where(right[:, 0], tracks.aspect[ends.right], tracks.aspect[ends.left])
    usual = ((1 - share[..., 0]) * usual_one + share[..., 0] * usual_two) * size[..., 1]
    nearest = np.minimum(np.where(left[:, 0], since, until), np.where(right[:, 0], until, since))
    memory = np.exp(-nearest / WIDTH_MEMORY_FRAMES)
    size[..., 0] = usual + memory * (size[..., 0] - usual)
    return np.asarray(size, np.float32)


def _flow(carried: Float, tracks: Tracks, rows: npt.NDArray[np.intp]) -> Float:
    """(M, P, 2) centres of a motion's boxes for the bodies at one end; NaN for those that were not detected there."""
    answer = np.full((len(carried), len(rows), 2), np.nan, np.float32)
    known = np.flatnonzero(rows >= 0)
    detected = known[tracks.row[rows[known]] >= 0]
    answer[:, detected] = _centre(carried[:, tracks.row[rows[detected]]])
    return answer


def _flown(
    tracks: Tracks,
    motion: Motion,
    ends: _Ends,
    both: npt.NDArray[np.bool_],
    start: Float,
    stop: Float,
    frames: Int,
    share: Float,
) -> Float:
    """(T, P, 2) centres by flow: between both ends where the body is at both, else along the flow of its only end."""
    forward, backward = _flow(motion.forward, tracks, ends.left), _flow(motion.backward, tracks, ends.right)
    ahead, behind = np.split(motion.on_frames(np.concatenate([forward, backward], 1), frames), 2, axis=1)
    ahead, behind = ahead + (start - forward[0]), behind + (stop - backward[-1])
    alone = np.where((ends.left >= 0)[:, None], ahead, behind)
    if not both.any():
        return np.asarray(alone)
    miss_ahead = stop - start - (forward[-1] - forward[0])
    miss_behind = start - stop - (backward[0] - backward[-1])
    doubt_ahead, doubt_behind = np.abs(miss_ahead).sum(-1)[:, None], np.abs(miss_behind).sum(-1)[:, None]
    one, two = ahead + share * miss_ahead, behind + (1 - share) * miss_behind
    weight_one = (1 - share) / (1 + share * doubt_ahead) ** 2
    weight_two = share / (1 + (1 - share) * doubt_behind) ** 2
    weight_one = np.where(np.isnan(one[..., :1]), 0.0, weight_one)
    weight_two = np.where(np.isnan(two[..., :1]), 0.0, weight_two)
    total = weight_one + weight_two
    with np.errstate(invalid="ignore"):
        mixed = (weight_one * zeroed(one) + weight_two * zeroed(two)) / total
    if (total[:, both] == 0).any():
        mixed = np.where(total > 0, mixed, _ruler(motion, start, stop, frames, share))
    return np.asarray(np.where(both[:, None], mixed, alone))


def _ruler(motion: Motion, start: Float, stop: Float, frames: Int, share: Float) -> Float:
    """(T, P, 2) straight lines between the ends, drawn in the world the camera sees."""
    plain = (1 - share) * start + share * stop
    camera = camera_across(motion)
    if camera is None:
        return plain
    path = (1 - share) * start + share * moved_points(np.linalg.inv(camera), stop)
    cameras = motion.on_frames(motion.camera.reshape(-1, 9), frames).reshape(-1, 1, 3, 3).astype(np.float64)
    here = moved_points(cameras, path)
    return np.where(np.isfinite(here), here, plain).astype(np.float32)


def _coasting(
    tracks: Tracks,
    look: int,
    between: Sequence[Motion | None],
    ends: _Ends,
    both: npt.NDArray[np.bool_],
    start: Float,
    stop: Float,
    frames: Int,
    share: Float,
) -> Float:
    """(T, P, 2) centres in a hole without motion: a cubic between the ends that keeps the velocity measured on
    either side."""
    first, last = int(tracks.frame_numbers[look]), int(tracks.frame_numbers[look + 1])
    leaving = _velocity(tracks, look, between, ends.left, leaving=True)
    coming = _velocity(tracks, look + 1, between, ends.right, leaving=False)
    length = float(last - first)
    chord = (stop - start) / length
    v0 = np.where(np.isfinite(leaving), leaving, chord)
    v1 = np.where(np.isfinite(coming), coming, chord)
    joined = cubic(start, stop, v0 * length, v1 * length, share)
    since, until = (frames - first)[:, None, None], (last - frames)[:, None, None]
    near_left = start + since * zeroed(leaving)
    near_right = stop - until * zeroed(coming)
    alone = np.where((ends.left >= 0)[:, None], near_left, near_right)
    far = np.where(share < 0.5, near_left, near_right)
    apart = far if length > BRIDGE_FRAMES else joined
    return np.asarray(np.where(both[:, None], apart, alone), np.float32)


def _velocity(
    tracks: Tracks, look: int, between: Sequence[Motion | None], rows: npt.NDArray[np.intp], *, leaving: bool
) -> Float:
    """(P, 2) pixels a frame of the bodies at a looked-at frame, from the flow on its decoded side; NaN where
    unknown."""
    unknown = np.full((len(rows), 2), np.nan, np.float32)
    neighbour = look - 1 if leaving else look
    motion = between[neighbour] if 0 <= neighbour < len(between) else None
    if motion is None:
        return unknown
    carried = _flow(motion.backward if leaving else motion.forward, tracks, rows)
    step = motion.rows_near_end() if leaving else motion.rows_near_start()
    if step is None:
        return unknown
    a, b = step
    return np.asarray((carried[b] - carried[a]) / (motion.frame_numbers[b] - motion.frame_numbers[a]), np.float32)


def _faded(
    tracks: Tracks,
    ends: _Ends,
    both: npt.NDArray[np.bool_],
    since: npt.NDArray[np.integer],
    until: npt.NDArray[np.integer],
    motion: Motion | None,
    at_edge: npt.NDArray[np.bool_],
) -> Float:
    """(T, P) confidence: of the nearer end, fading with the distance; 0 where a body is not carried that far."""
    left = np.where(ends.left >= 0, tracks.confidence[ends.left], 0.0)
    right = np.where(ends.right >= 0, tracks.confidence[ends.right], 0.0)
    length = since + until
    share = since / length
    meeting = ((1 - share) * left + share * right) * np.exp(-np.minimum(since, until) / (4 * FADE_FRAMES))
    cut = motion is not None and motion.cut_after is not None
    followed = motion is not None and not motion.is_leap
    reach: Float | int = length / 2 if followed else EXTRAPOLATE_FRAMES
    if followed:
        reach = np.where(at_edge | cut, length, reach)
    only_left = np.where(since <= reach, left * np.exp(-since / FADE_FRAMES), 0.0)
    only_right = np.where(until <= reach, right * np.exp(-until / FADE_FRAMES), 0.0)
    alone = np.where(ends.left >= 0, only_left, only_right)
    joined = both & ((length <= BRIDGE_FRAMES) | followed | (np.minimum(since, until) <= EXTRAPOLATE_FRAMES))
    return np.where(joined, meeting, np.where(both, 0.0, alone)).astype(np.float32)


def _beyond(
    tracks: Tracks, look: int, between: Sequence[Motion | None], frames: Int, width: int, height: int
) -> _Piece:
    """Before the first or after the last looked-at frame: a few frames on the velocity last measured."""
    number = int(tracks.frame_numbers[look])
    frames = frames[np.abs(frames - number) <= EXTRAPOLATE_FRAMES]
    rows = np.arange(tracks.at(look).start, tracks.at(look).stop)
    leaving = look > 0 or len(tracks.frame_numbers) == 1
    velocity = zeroed(_velocity(tracks, look, between, rows, leaving=leaving))
    elapsed = (frames - number)[:, None, None]
    xyxy = tracks.xyxy[rows] + elapsed * np.concatenate([velocity, velocity], 1)
    confidence = tracks.confidence[rows] * np.exp(-np.abs(elapsed[..., 0]) / FADE_FRAMES)
    return _Piece(
        frames,
        tracks.id[rows],
        tracks.class_id[rows],
        confidence.astype(np.float32),
        _clipped(xyxy, width, height),
    )


def _clipped(xyxy: Float, width: int, height: int) -> Float:
    """Boxes cut at the picture's edge; NaN where less than a third of one is left."""
    limit = np.array([width, height, width, height], np.float32)
    inside = np.clip(xyxy, 0, limit)
    area = (xyxy[..., 2] - xyxy[..., 0]) * (xyxy[..., 3] - xyxy[..., 1])
    left = (inside[..., 2] - inside[..., 0]) * (inside[..., 3] - inside[..., 1])
    return np.where((left > area / 3)[..., None], inside, np.nan).astype(np.float32)
