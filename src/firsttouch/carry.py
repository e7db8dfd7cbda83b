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
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from firsttouch.detect import Detections
from firsttouch.homography import Float, moved_points
from firsttouch.keypoints import cubic, everywhere, zeroed
from firsttouch.motion import Around, Motion, Steps, camera_across
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
    bodies = _Bodies.joined(
        _looked_at(tracks, wanted, width, height),
        _between_looks(tracks, between, wanted, width, height),
        *(_beyond(tracks, between, wanted, width, height, after=after) for after in (False, True)),
    )
    looked = np.isin(wanted, tracks.frame_numbers).tolist()
    bounds = np.stack([np.searchsorted(bodies.frame, wanted, side) for side in ("left", "right")], 1).tolist()
    return [
        FrameAnswer(
            number,
            moment,
            "detected" if looked[k] else "carried",
            bodies.id[start:stop],
            bodies.class_id[start:stop],
            bodies.confidence[start:stop],
            bodies.xyxy[start:stop],
            points[k],
        )
        for k, (number, moment, (start, stop)) in enumerate(zip(wanted.tolist(), moments.tolist(), bounds, strict=True))
    ]


Rows = npt.NDArray[np.intp]


class _Bodies(NamedTuple):
    """Bodies on frames, as columns (R, ...): frame number, id, class, confidence (0: absent), xyxy (NaN: absent)."""

    frame: Int
    id: Int
    class_id: npt.NDArray[np.uint8]
    confidence: Float
    xyxy: Float

    @classmethod
    def none(cls) -> _Bodies:
        whole, boxes = np.zeros(0, np.int32), np.zeros((0, 4), np.float32)
        return cls(whole, whole, np.zeros(0, np.uint8), np.zeros(0, np.float32), boxes)

    @staticmethod
    def joined(*parts: _Bodies) -> _Bodies:
        """By frame, and within one in the order they came in; without those that are absent."""
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        shown = np.flatnonzero((columns[3] > 0) & np.isfinite(columns[4]).all(-1))
        order = shown[np.argsort(columns[0][shown], kind="stable")]
        return _Bodies(*(column[order] for column in columns))


def _looked_at(tracks: Tracks, wanted: Int, width: int, height: int) -> _Bodies:
    frame = tracks.frame_numbers[tracks.look]
    here = np.flatnonzero(np.isin(frame, wanted))
    boxes = _clipped(tracks.xyxy[here], width, height)
    return _Bodies(frame[here], tracks.id[here], tracks.class_id[here], tracks.confidence[here], boxes)


@dataclass(frozen=True, slots=True)
class _Gaps:
    """Frames between two looks, and the bodies of either end in them. between: the motions of all looks.

    Of each gap (G,): look, the looked-at frame before it; first and last, the frame numbers of its ends; motion, None
    where nothing was decoded between. Of each body in a gap (P,): gap, and its rows of `Tracks` at the two ends, -1
    where it is not there. Of each body on each frame (R,), by frame: frame number and body.
    """

    between: Sequence[Motion | None]
    look: Rows
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    motions: list[Motion | None]
    gap: Rows
    left: Rows
    right: Rows
    frame: npt.NDArray[np.int64]
    body: Rows

    @classmethod
    def of(cls, tracks: Tracks, between: Sequence[Motion | None], wanted: Int) -> _Gaps:
        numbers = tracks.frame_numbers.astype(np.int64)
        gap = np.searchsorted(numbers, wanted) - 1
        inside = (gap >= 0) & (gap < len(numbers) - 1) & ~np.isin(wanted, numbers)
        frames = wanted[inside].astype(np.int64)
        look, gap_of_frame = np.unique(gap[inside], return_inverse=True)
        place = np.full(len(numbers) + 1, -1)  # of a gap, by the look before it; the last stands for look -1
        place[look] = np.arange(len(look))
        # A body's key in a gap is the same from both ends, and rises with the gap, then the id.
        span = int(tracks.id.max(initial=0)) + 1
        sides = [(rows := np.flatnonzero(of >= 0), of[rows] * span + tracks.id[rows])
                 for of in (place[tracks.look], place[tracks.look - 1])]  # fmt: skip
        keys = np.unique(np.concatenate([mine for _, mine in sides]))
        ends = []
        for rows, mine in sides:
            at = np.minimum(np.searchsorted(mine, keys), max(len(mine) - 1, 0))
            ends.append(np.where(mine[at] == keys, rows[at], -1) if len(mine) else np.full(len(keys), -1))
        gap_of_body = keys // span
        start, stop = (np.searchsorted(gap_of_body, gap_of_frame, side) for side in ("left", "right"))
        count = stop - start
        body = np.arange(count.sum()) + np.repeat(start - (np.cumsum(count) - count), count)
        motions = [between[k] for k in look.tolist()]
        ends_of_gap = numbers[look], numbers[look + 1]
        return cls(between, look, *ends_of_gap, motions, gap_of_body, ends[0], ends[1], np.repeat(frames, count), body)

    @property
    def cut(self) -> npt.NDArray[np.bool_]:
        """(G,) whether the picture cuts in the gap."""
        return np.array([motion is not None and motion.cut_after is not None for motion in self.motions], np.bool_)

    @property
    def both(self) -> npt.NDArray[np.bool_]:
        """(P,) whether a body is at both ends, and no cut between."""
        return (self.left >= 0) & (self.right >= 0) & ~self.cut[self.gap]

    @property
    def flown(self) -> npt.NDArray[np.bool_]:
        """(G,) whether flow goes through the gap."""
        return np.array([motion is not None and not motion.is_leap for motion in self.motions], np.bool_)

    @property
    def since(self) -> npt.NDArray[np.int64]:
        """(R,) frames since the look before."""
        return self.frame - self.first[self.gap[self.body]]

    @property
    def until(self) -> npt.NDArray[np.int64]:
        """(R,) frames until the look after."""
        return self.last[self.gap[self.body]] - self.frame

    @property
    def share(self) -> Float:
        """(R,) float32, how far through its gap a frame lies."""
        since = self.since
        return (since / (since + self.until)).astype(np.float32)


def _between_looks(tracks: Tracks, between: Sequence[Motion | None], wanted: Int, width: int, height: int) -> _Bodies:
    """The frames strictly between two looked-at frames."""
    gaps = _Gaps.of(tracks, between, wanted)
    start, stop = _boxes_at(tracks, gaps.left, width), _boxes_at(tracks, gaps.right, width)
    centre = np.empty((len(gaps.body), 2), np.float32)
    flown = gaps.flown[gaps.gap[gaps.body]]
    for fill, rows in ((_flown, np.flatnonzero(flown)), (_coasting, np.flatnonzero(~flown))):
        if len(rows):
            centre[rows] = fill(tracks, gaps, rows, _centre(start), _centre(stop))
    size = _sizes(tracks, gaps, start, stop)
    xyxy = np.concatenate([centre - size / 2, centre + size / 2], -1)
    confidence = _faded(tracks, gaps, _at_edge(xyxy, gaps, width))
    one = np.where(gaps.left >= 0, gaps.left, gaps.right)[gaps.body]
    frame = gaps.frame.astype(np.int32)
    return _Bodies(frame, tracks.id[one], tracks.class_id[one], confidence, _clipped(xyxy, width, height))


def _at_edge(xyxy: Float, gaps: _Gaps, width: int) -> npt.NDArray[np.bool_]:
    """(P,) whether a path leaves by a side of the picture: then its end is an exit or an entry, and no miss of
    the detector."""
    with np.errstate(invalid="ignore"):
        beside = (xyxy[:, 0] <= 2) | (xyxy[:, 2] >= width - 2)
    return np.bincount(gaps.body[beside], minlength=len(gaps.gap)) > 0


def _centre(boxes: Float) -> Float:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _boxes_at(tracks: Tracks, rows: Rows, width: int) -> Float:
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


def _sizes(tracks: Tracks, gaps: _Gaps, start: Float, stop: Float) -> Float:
    """(R, 2) widths and heights: heights from end to end; widths too, but forgetting the ends for what is
    usual of the body.

    A running body's width swings with its stride, so a few frames away its mean says more than the last glance.
    """
    one, two = start[:, 2:] - start[:, :2], stop[:, 2:] - stop[:, :2]
    left, right, body, share = gaps.left >= 0, gaps.right >= 0, gaps.body, gaps.share
    one, two = np.where(left[:, None], one, two), np.where(right[:, None], two, one)
    usual_one = np.where(left, tracks.aspect[gaps.left], tracks.aspect[gaps.right])
    usual_two = np.where(right, tracks.aspect[gaps.right], tracks.aspect[gaps.left])
    size = (1 - share)[:, None] * one[body] + share[:, None] * two[body]
    usual = ((1 - share) * usual_one[body] + share * usual_two[body]) * size[:, 1]
    since, until = gaps.since, gaps.until
    nearest = np.minimum(np.where(left[body], since, until), np.where(right[body], until, since))
    size[:, 0] = usual + np.exp(-nearest / WIDTH_MEMORY_FRAMES) * (size[:, 0] - usual)
    return np.asarray(size, np.float32)


def _flow(carried: Float, tracks: Tracks, rows: Rows) -> Float:
    """(M, P, 2) centres of a motion's boxes for the bodies at one end; NaN for those that were not detected there."""
    answer = np.full((len(carried), len(rows), 2), np.nan, np.float32)
    known = np.flatnonzero(rows >= 0)
    detected = known[tracks.row[rows[known]] >= 0]
    answer[:, detected] = _centre(carried[:, tracks.row[rows[detected]]])
    return answer


@dataclass(frozen=True, slots=True)
class _Paths:
    """Where flow takes the boxes of one end of some gaps, one motion after the other in one column of centres (C, 2).

    at: (P,) where a body's path begins in it, -1 for those that no flow goes with; and how far apart its centres on a
    motion's rows lie, `stride` (P,).
    """

    centres: Float
    at: Rows
    stride: Rows

    @classmethod
    def of(cls, tracks: Tracks, carried: Sequence[Float], motion_of_body: Rows, rows: Rows) -> _Paths:
        """`carried` of each motion (M, N, 4), `rows` of `Tracks` (P,), -1 where a body is not at this end of one."""
        counts = np.array([boxes.shape[1] for boxes in carried], np.intp)
        sizes = np.array([boxes.shape[0] * boxes.shape[1] for boxes in carried], np.intp)
        begins = np.cumsum(sizes) - sizes
        row = np.where(rows >= 0, tracks.row[rows], -1)
        at = np.where(row >= 0, begins[motion_of_body] + row, -1)
        return cls(_centre(np.concatenate([boxes.reshape(-1, 4) for boxes in carried])), at, counts[motion_of_body])

    def on(self, body: Rows, step: Rows) -> Float:
        """(R, 2) centres of bodies (R,) on the rows (R,) of their motions, the first being 0."""
        at = self.at[body]
        if not len(self.centres):
            return np.full((len(body), 2), np.nan, np.float32)
        here = self.centres[np.where(at >= 0, at + step * self.stride[body], 0)]
        return np.where((at >= 0)[:, None], here, np.float32(np.nan))


def _flown(tracks: Tracks, gaps: _Gaps, rows: Rows, start: Float, stop: Float) -> Float:
    """(R, 2) centres by flow: between both ends where the body is at both, else along the flow of its only end."""
    which = np.flatnonzero(gaps.flown)
    motions = [motion for k in which.tolist() if (motion := gaps.motions[k]) is not None]
    steps = Steps.of(motions)
    place = np.zeros(len(gaps.look), np.intp)
    place[which] = np.arange(len(which))
    motion_of_body = place[gaps.gap]
    body, everybody = gaps.body[rows], np.arange(len(gaps.gap))
    left, right = (np.where(gaps.flown[gaps.gap], end, -1) for end in (gaps.left, gaps.right))
    forward = _Paths.of(tracks, [motion.forward for motion in motions], motion_of_body, left)
    backward = _Paths.of(tracks, [motion.backward for motion in motions], motion_of_body, right)
    final = np.diff(steps.start)[motion_of_body] - 1
    first_forward, last_forward = forward.on(everybody, np.zeros_like(final)), forward.on(everybody, final)
    first_backward, last_backward = backward.on(everybody, np.zeros_like(final)), backward.on(everybody, final)
    around = steps.around(motion_of_body[body], gaps.frame[rows])
    begin = steps.start[motion_of_body[body]]
    near = around.share.astype(np.float32)[:, None]
    ahead, behind = (
        (1 - near) * path.on(body, around.before - begin) + near * path.on(body, around.after - begin)
        for path in (forward, backward)
    )
    ahead, behind = ahead + (start - first_forward)[body], behind + (stop - last_backward)[body]
    alone = np.where((gaps.left >= 0)[body, None], ahead, behind)
    miss_ahead = (stop - start - (last_forward - first_forward))[body]
    miss_behind = (start - stop - (first_backward - last_backward))[body]
    doubt_ahead, doubt_behind = np.abs(miss_ahead).sum(-1), np.abs(miss_behind).sum(-1)
    both, share = gaps.both[body], gaps.share[rows]
    one, two = ahead + share[:, None] * miss_ahead, behind + (1 - share)[:, None] * miss_behind
    weight_one = np.where(np.isnan(one[:, 0]), 0.0, (1 - share) / (1 + share * doubt_ahead) ** 2)
    weight_two = np.where(np.isnan(two[:, 0]), 0.0, share / (1 + (1 - share) * doubt_behind) ** 2)
    total = weight_one + weight_two
    with np.errstate(invalid="ignore"):
        mixed = (weight_one[:, None] * zeroed(one) + weight_two[:, None] * zeroed(two)) / total[:, None]
    lost = np.flatnonzero(both & (total == 0))
    if len(lost):
        ends = start[body[lost]], stop[body[lost]]
        passed = Around(around.before[lost], around.after[lost], around.share[lost])
        mixed[lost] = _ruler(motions, motion_of_body[body[lost]], passed, *ends, share[lost, None])
    return np.where(both[:, None], mixed, alone).astype(np.float32)


def _ruler(motions: Sequence[Motion], motion: Rows, around: Around, start: Float, stop: Float, share: Float) -> Float:
    """(R, 2) straight lines between the ends, drawn in the world the camera sees."""
    plain = (1 - share) * start + share * stop
    unknown = np.full((3, 3), np.nan)
    across = [camera_across(each) for each in motions]
    back = np.stack([unknown if camera is None else np.linalg.inv(camera) for camera in across])[motion]
    path = (1 - share) * start + share * moved_points(back, stop)
    cameras = around.between(np.concatenate([each.camera for each in motions]))
    here = moved_points(cameras, path)
    return np.where(np.isfinite(here), here, plain).astype(np.float32)


def _coasting(tracks: Tracks, gaps: _Gaps, rows: Rows, start: Float, stop: Float) -> Float:
    """(R, 2) centres in holes without motion: a cubic between the ends that keeps the velocity measured on
    either side."""
    leaving, coming = (np.full((len(gaps.gap), 2), np.nan, np.float32) for _ in range(2))
    for k in np.flatnonzero(~gaps.flown).tolist():
        mine, look = np.flatnonzero(gaps.gap == k), int(gaps.look[k])
        leaving[mine] = _velocity(tracks, look, gaps.between, gaps.left[mine], leaving=True)
        coming[mine] = _velocity(tracks, look + 1, gaps.between, gaps.right[mine], leaving=False)
    body = gaps.body[rows]
    length = (gaps.last - gaps.first)[gaps.gap, None].astype(np.float64)
    chord = (stop - start) / length
    v0 = np.where(np.isfinite(leaving), leaving, chord) * length
    v1 = np.where(np.isfinite(coming), coming, chord) * length
    share = gaps.share[rows, None]
    joined = cubic(start[body], stop[body], v0[body], v1[body], share)
    near_left = start[body] + gaps.since[rows, None] * zeroed(leaving)[body]
    near_right = stop[body] - gaps.until[rows, None] * zeroed(coming)[body]
    alone = np.where((gaps.left >= 0)[body, None], near_left, near_right)
    far = np.where(share < 0.5, near_left, near_right)
    apart = np.where(length[body] > BRIDGE_FRAMES, far, joined)
    return np.asarray(np.where(gaps.both[body, None], apart, alone), np.float32)


def _velocity(tracks: Tracks, look: int, between: Sequence[Motion | None], rows: Rows, *, leaving: bool) -> Float:
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


def _faded(tracks: Tracks, gaps: _Gaps, at_edge: npt.NDArray[np.bool_]) -> Float:
    """(R,) confidence: of the nearer end, fading with the distance; 0 where a body is not carried that far."""
    body, since, until = gaps.body, gaps.since, gaps.until
    at_left, gap = (gaps.left >= 0)[body], gaps.gap[body]
    left = np.where(at_left, tracks.confidence[gaps.left][body], 0.0)
    right = np.where((gaps.right >= 0)[body], tracks.confidence[gaps.right][body], 0.0)
    length = since + until
    share = since / length
    meeting = ((1 - share) * left + share * right) * np.exp(-np.minimum(since, until) / (4 * FADE_FRAMES))
    followed, both = gaps.flown[gap], gaps.both[body]
    reach = np.where(followed, np.where(at_edge[body] | gaps.cut[gap], length, length / 2), EXTRAPOLATE_FRAMES)
    only_left = np.where(since <= reach, left * np.exp(-since / FADE_FRAMES), 0.0)
    only_right = np.where(until <= reach, right * np.exp(-until / FADE_FRAMES), 0.0)
    alone = np.where(at_left, only_left, only_right)
    joined = both & ((length <= BRIDGE_FRAMES) | followed | (np.minimum(since, until) <= EXTRAPOLATE_FRAMES))
    return np.where(joined, meeting, np.where(both, 0.0, alone)).astype(np.float32)


def _beyond(
    tracks: Tracks, between: Sequence[Motion | None], wanted: Int, width: int, height: int, *, after: bool
) -> _Bodies:
    """Before the first or after the last looked-at frame: a few frames on the velocity last measured."""
    if not len(tracks.frame_numbers):
        return _Bodies.none()
    look = len(tracks.frame_numbers) - 1 if after else 0
    number = int(tracks.frame_numbers[look])
    frames = wanted[(wanted > number) if after else (wanted < number)]
    frames = frames[np.abs(frames - number) <= EXTRAPOLATE_FRAMES]
    rows = np.arange(tracks.at(look).start, tracks.at(look).stop)
    leaving = after or len(tracks.frame_numbers) == 1
    velocity = zeroed(_velocity(tracks, look, between, rows, leaving=leaving))
    frame, row = np.repeat(frames, len(rows)), np.tile(rows, len(frames))
    elapsed = (frame - number)[:, None]
    xyxy = tracks.xyxy[row] + elapsed * np.tile(velocity, (len(frames), 2))
    confidence = tracks.confidence[row] * np.exp(-np.abs(elapsed[:, 0]) / FADE_FRAMES)
    boxes = _clipped(xyxy, width, height)
    return _Bodies(frame, tracks.id[row], tracks.class_id[row], confidence.astype(np.float32), boxes)


def _clipped(xyxy: Float, width: int, height: int) -> Float:
    """Boxes cut at the picture's edge; NaN where less than a third of one is left."""
    limit = np.array([width, height, width, height], np.float32)
    inside = np.clip(xyxy, 0, limit)
    area = (xyxy[..., 2] - xyxy[..., 0]) * (xyxy[..., 3] - xyxy[..., 1])
    left = (inside[..., 2] - inside[..., 0]) * (inside[..., 3] - inside[..., 1])
    return np.where((left > area / 3)[..., None], inside, np.nan).astype(np.float32)
